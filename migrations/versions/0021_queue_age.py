"""Record when a task was enqueued, for a metric of the age of the queue.

Huey names the columns that it inserts, so older versions work with the column. Tasks that wait during the upgrade count
from then.
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.add_column(
        "huey_task",
        sa.Column("enqueued_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("huey_task", "enqueued_at")
