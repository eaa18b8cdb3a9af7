"""Count failed attempts per offer; store Idempotency-Keys of redemptions as short hashes."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "code_miss",
        sa.Column("offer_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("slot", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("offer_id", "slot", name=op.f("pk_code_miss")),
        prefixes=["UNLOGGED"],
    )
    # From now on, keys and request bodies are stored as short hashes.
    for table in ("redemption", "rollback"):
        op.execute(
            f"update {table} set"  # noqa: S608
            " idempotency_key = encode(substr(sha256(convert_to(idempotency_key, 'UTF8')), 1, 9), 'base64'),"
            " body_hash = case when idempotency_key is not null then substr(body_hash, 1, 8) end"
            " where idempotency_key is not null or body_hash is not null"
        )


def downgrade() -> None:
    """Idempotency-Keys used before no longer match: a retry with one gets `already_redeemed`.

    Another upgrade hashes the hashes, so these keys never match again.
    """
    op.drop_table("code_miss")
