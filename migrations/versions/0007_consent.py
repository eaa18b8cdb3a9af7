"""Replace the customers' unsubscribe date by a suppression list.

Stop all processes first: those of the previous release would only check the customer.
"""

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
    op.drop_column("customer", "unsubscribed_at")
    op.add_column("customer_import", sa.Column("kind", sa.Text(), server_default="customers", nullable=False))
    op.create_check_constraint(
        op.f("ck_customer_import_kind"), "customer_import", "kind in ('customers', 'suppressions')"
    )


def downgrade() -> None:
    """Customers suppressed for any reason become unsubscribed. Loses suppressions of other addresses."""
    op.add_column("customer", sa.Column("unsubscribed_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "update customer c set unsubscribed_at = s.at from suppression s "
        "where s.email in (c.email, 'sha256:' || encode(sha256(convert_to(c.email, 'UTF8')), 'hex')) "
        "and c.erased_at is null"
    )
    op.drop_table("suppression")
    # The previous release would import every file as customers.
    op.execute(
        "delete from import_rejection where import_id in (select id from customer_import where kind = 'suppressions')"
    )
    op.execute(
        "delete from import_chunk where import_id in (select id from customer_import where kind = 'suppressions')"
    )
    op.execute("delete from customer_import where kind = 'suppressions'")
    op.drop_column("customer_import", "kind")
