"""Misses of a code; redemptions keep less of an Idempotency-Key."""

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
    # Keys and bodies are kept as short hashes from now on.
    for table in ("redemption", "rollback"):
        op.execute(
            f"update {table} set"  # noqa: S608
            " idempotency_key = encode(substr(sha256(convert_to(idempotency_key, 'UTF8')), 1, 9), 'base64'),"
            " body_hash = case when idempotency_key is not null then substr(body_hash, 1, 8) end"
            " where idempotency_key is not null or body_hash is not null"
        )


def downgrade() -> None:
    """Keys that were given before are no longer known as such: a repeat by key is then told `already_redeemed`. Upgrading
    again hashes the hashes: keys from before are then forgotten for good."""
    op.drop_table("code_miss")
