"""Add the emails to users and invited persons, and the token of an emailed invitation.

The downgrade loses emails that were not sent yet, and the links in emailed invitations no longer work.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019"
down_revision = "0018"

KINDS = (
    "kind in ('invitation', 'reset_link', 'new_device', 'api_key_created', 'admin_added', 'password_changed', "
    "'second_factor_changed', 'password_reset')"
)


def upgrade() -> None:
    op.add_column("invitation", sa.Column("emailed_token_hash", sa.LargeBinary(), nullable=True))
    op.create_unique_constraint(op.f("uq_invitation_emailed_token_hash"), "invitation", ["emailed_token_hash"])
    op.create_table(
        "account_email",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("staff_user_id", sa.BigInteger(), nullable=True),
        sa.Column("invitation_id", sa.BigInteger(), nullable=True),
        sa.Column("detail", postgresql.JSONB(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(KINDS, name=op.f("ck_account_email_kind")),
        sa.CheckConstraint(
            "(kind = 'invitation') = (invitation_id is not null)", name=op.f("ck_account_email_invitation")
        ),
        sa.ForeignKeyConstraint(
            ["staff_user_id"],
            ["staff_user.id"],
            name=op.f("fk_account_email_staff_user_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["invitation_id"],
            ["invitation.id"],
            name=op.f("fk_account_email_invitation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account_email")),
    )


def downgrade() -> None:
    op.drop_table("account_email")
    op.drop_constraint(op.f("uq_invitation_emailed_token_hash"), "invitation", type_="unique")
    op.drop_column("invitation", "emailed_token_hash")
