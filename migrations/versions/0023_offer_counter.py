"""Move the counter of an offer to a table of its own, with a copy of the cap, one row per offer.

The counter can then be distributed together with the redemptions of the offer. Stop all processes first: those of the
previous release count in `offer`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

CHECK = "redeemed >= 0 and (max_redemptions is null or redeemed <= max_redemptions)"


def upgrade() -> None:
    op.create_table(
        "offer_counter",
        sa.Column("offer_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("max_redemptions", sa.BigInteger(), nullable=True),
        sa.Column("redeemed", sa.BigInteger(), server_default="0", nullable=False),
        sa.CheckConstraint(CHECK, name=op.f("ck_offer_counter_redeemed")),
        sa.ForeignKeyConstraint(["offer_id"], ["offer.id"], name=op.f("fk_offer_counter_offer_id")),
        sa.PrimaryKeyConstraint("offer_id", name=op.f("pk_offer_counter")),
        postgresql_with={"fillfactor": 50},
    )
    op.execute(
        "insert into offer_counter (offer_id, max_redemptions, redeemed) select id, max_redemptions, redeemed from offer"
    )
    op.drop_constraint(op.f("ck_offer_redeemed"), "offer", type_="check")
    op.drop_column("offer", "redeemed")
    op.execute("alter table offer reset (fillfactor)")


def downgrade() -> None:
    """Loses no data."""
    op.execute("alter table offer set (fillfactor = 50)")
    op.add_column("offer", sa.Column("redeemed", sa.BigInteger(), server_default="0", nullable=False))
    op.execute("update offer set redeemed = c.redeemed from offer_counter c where c.offer_id = offer.id")
    op.create_check_constraint(op.f("ck_offer_redeemed"), "offer", CHECK)
    op.drop_table("offer_counter")
