"""Record all codes of an offer, and when a signing key was retired."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "offer_code",
        sa.Column("code", sa.Text(collation="C"), nullable=False),
        sa.Column("offer_id", sa.BigInteger(), nullable=False),
        sa.Column("code_as_written", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["offer_id"], ["offer.id"], name=op.f("fk_offer_code_offer_id")),
        sa.PrimaryKeyConstraint("code", name=op.f("pk_offer_code")),
        sa.UniqueConstraint(
            "offer_id", "code", "code_as_written", name=op.f("uq_offer_code_offer_id_code_code_as_written")
        ),
    )
    op.execute(
        "insert into offer_code (code, offer_id, code_as_written, created_at) "
        "select code, id, code_as_written, created_at from offer"
    )
    op.create_foreign_key(
        op.f("fk_offer_current_code"),
        "offer",
        "offer_code",
        ["id", "code", "code_as_written"],
        ["offer_id", "code", "code_as_written"],
        deferrable=True,
        initially="DEFERRED",
    )
    op.drop_constraint(op.f("uq_offer_code"), "offer", type_="unique")
    op.add_column("signing_key", sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Loses aliases: only the current code of each offer still works. Retired keys are accepted again."""
    op.drop_column("signing_key", "retired_at")
    op.create_unique_constraint(op.f("uq_offer_code"), "offer", ["code"])
    op.drop_constraint(op.f("fk_offer_current_code"), "offer", type_="foreignkey")
    op.drop_table("offer_code")
