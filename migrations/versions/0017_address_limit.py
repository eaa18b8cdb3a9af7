"""Count the customers of each client address on the public form."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_table(
        "address_customers",
        sa.Column("address", sa.Text(collation="C"), nullable=False),
        sa.Column("customers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("jsonb_typeof(customers) = 'object'", name=op.f("ck_address_customers_customers")),
        sa.PrimaryKeyConstraint("address", name=op.f("pk_address_customers")),
        prefixes=["UNLOGGED"],
    )
    op.create_index(op.f("ix_address_customers_expires_at"), "address_customers", ["expires_at"])
    op.create_table(
        "address_excess",
        sa.Column("offer_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("address", sa.Text(collation="C"), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("offer_id", "address", name=op.f("pk_address_excess")),
        prefixes=["UNLOGGED"],
    )


def downgrade() -> None:
    op.drop_table("address_excess")
    op.drop_table("address_customers")
