"""Add the rate limit of sending, and the times of windows.

Windows that were sent before have no times.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("batch", sa.Column("windows", sa.ARRAY(sa.Integer()), server_default="{}", nullable=False))
    op.add_column("mail_issue", sa.Column("epoch", sa.Integer(), server_default="0", nullable=False))
    op.add_column("mail_issue", sa.Column("doubt", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.execute("update mail_issue set doubt = true where state = 'uncertain'")
    op.create_table(
        "mail_pace",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("free_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_mail_pace_one")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_mail_pace")),
        prefixes=["UNLOGGED"],
    )


def downgrade() -> None:
    op.drop_table("mail_pace")
    op.drop_column("mail_issue", "doubt")
    op.drop_column("mail_issue", "epoch")
    op.drop_column("batch", "windows")
