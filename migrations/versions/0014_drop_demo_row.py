"""Drop the table that recorded the rows of the demo: the demo now has its own database."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

PARTS = (
    "part in ('customer', 'audience', 'import', 'offer', 'campaign', 'staff_user', 'api_key', 'audit', 'shop', 'filled')"
)
HAS_DEMO = (
    "onecode: this database contains the demo of the release you upgrade from; "
    "run `make demo-remove` with that release, then upgrade again (nothing was changed)"
)


def upgrade() -> None:
    # Later releases can't tell the rows of the demo from others.
    if not op.get_context().as_sql and op.get_bind().scalar(sa.text("select exists (select from demo_row)")):
        # Flask-Migrate would print any other error as a log entry or a traceback.
        raise SystemExit(HAS_DEMO)
    op.drop_table("demo_row")


def downgrade() -> None:
    op.create_table(
        "demo_row",
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("row_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.CheckConstraint(PARTS, name=op.f("ck_demo_row_part")),
        sa.PrimaryKeyConstraint("part", "row_id", name=op.f("pk_demo_row")),
    )
