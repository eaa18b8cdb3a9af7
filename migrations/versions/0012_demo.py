"""Record the rows of the demo, so that it can be removed again."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

PARTS = (
    "part in ('customer', 'audience', 'import', 'offer', 'campaign', 'staff_user', 'api_key', 'audit', 'shop', 'filled')"
)


def upgrade() -> None:
    op.create_table(
        "demo_row",
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.CheckConstraint(PARTS, name=op.f("ck_demo_row_part")),
        sa.PrimaryKeyConstraint("part", "row_id", name=op.f("pk_demo_row")),
    )


def downgrade() -> None:
    op.drop_table("demo_row")
