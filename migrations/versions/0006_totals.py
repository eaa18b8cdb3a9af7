"""Add totals to the hourly counts: of each offer, and of each hour over all offers.

Stop all processes first: those of the previous release would not subtract undone redemptions from the totals.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "redemption_total",
        sa.Column("offer_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("offer_id", name=op.f("pk_redemption_total")),
    )
    op.create_table(
        "hour_total",
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("n", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("hour", name=op.f("pk_hour_total")),
    )
    # Prevent changes of the counts between the SELECT and the INSERT.
    op.execute("lock table redemption_hour in share mode")
    op.execute("insert into redemption_total (offer_id, n) select offer_id, sum(n) from redemption_hour group by 1")
    op.execute("insert into hour_total (hour, n) select hour, sum(n) from redemption_hour group by 1")


def downgrade() -> None:
    """Loses no data: the totals are sums of the hourly counts."""
    op.drop_table("hour_total")
    op.drop_table("redemption_total")
