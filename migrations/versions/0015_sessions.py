"""Add sessions and devices of staff as rows.

All sessions end: staff have to sign in again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.create_table(
        "staff_device",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("staff_user_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("length(token_hash) = 32", name=op.f("ck_staff_device_token_hash")),
        sa.ForeignKeyConstraint(
            ["staff_user_id"], ["staff_user.id"], name=op.f("fk_staff_device_staff_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_staff_device")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_staff_device_token_hash")),
    )
    op.create_index(op.f("ix_staff_device_staff_user_id"), "staff_device", ["staff_user_id"])
    op.create_table(
        "staff_session",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("staff_user_id", sa.BigInteger(), nullable=False),
        sa.Column("staff_device_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("authenticated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("client_address", sa.Text(), nullable=False),
        sa.Column("user_agent", sa.Text(), nullable=False),
        sa.CheckConstraint("length(token_hash) = 32", name=op.f("ck_staff_session_token_hash")),
        sa.CheckConstraint(
            "length(client_address) <= 64 and length(user_agent) <= 300", name=op.f("ck_staff_session_lengths")
        ),
        sa.ForeignKeyConstraint(
            ["staff_user_id"], ["staff_user.id"], name=op.f("fk_staff_session_staff_user_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["staff_device_id"], ["staff_device.id"], name=op.f("fk_staff_session_staff_device_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_staff_session")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_staff_session_token_hash")),
    )
    op.create_index(op.f("ix_staff_session_staff_user_id"), "staff_session", ["staff_user_id"])
    op.create_index(op.f("ix_staff_session_staff_device_id"), "staff_session", ["staff_device_id"])
    op.drop_column("staff_user", "session_version")


def downgrade() -> None:
    """All sessions end, also those from before the upgrade, whose cookies browsers may still have."""
    op.add_column("staff_user", sa.Column("session_version", sa.Integer(), server_default="1", nullable=False))
    op.execute("update staff_user set session_version = extract(epoch from now())::integer")
    op.drop_table("staff_session")
    op.drop_table("staff_device")
