"""Addresses that must not be mailed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "suppression",
        sa.Column("email", sa.Text(collation="C"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("words", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("reason in ('unsubscribed', 'bounced', 'complained')", name=op.f("ck_suppression_reason")),
        sa.CheckConstraint("length(email) <= 320 and email <> ''", name=op.f("ck_suppression_email_length")),
        sa.PrimaryKeyConstraint("email", name=op.f("pk_suppression")),
    )
    op.execute(
        "insert into suppression (email, reason, at, source) "
        "select email, 'unsubscribed', unsubscribed_at, 'earlier' from customer "
        "where unsubscribed_at is not null and erased_at is null"
    )


def downgrade() -> None:
    op.drop_table("suppression")
