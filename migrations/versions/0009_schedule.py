"""Add scheduled campaigns and reminders; store the number of sent emails of finished campaigns."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("campaign", sa.Column("mails_again", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("campaign", sa.Column("sent_in_batches", sa.BigInteger(), nullable=True))
    op.execute(
        """
        update campaign c set sent_in_batches = (
          select coalesce(sum(b.sent), 0) from batch b where b.campaign_id = c.id
        )
        where c.status in ('done', 'cancelled') and not exists (
          select from batch b where b.campaign_id = c.id and b.status in ('pending', 'sending')
        )
        """
    )
    op.create_check_constraint(
        op.f("ck_campaign_scheduled"), "campaign", "status <> 'scheduled' or scheduled_at is not null"
    )
    op.create_index(
        "uq_campaign_open_reminder",
        "campaign",
        ["offer_id"],
        unique=True,
        postgresql_where=sa.text("kind = 'reminder' and cancelled_at is null and sent_in_batches is null"),
    )


def downgrade() -> None:
    # The previous release can't start scheduled campaigns, so they become drafts again.
    op.execute("update campaign set status = 'draft' where status = 'scheduled'")
    op.drop_index("uq_campaign_open_reminder", "campaign")
    op.drop_constraint(op.f("ck_campaign_scheduled"), "campaign")
    op.drop_column("campaign", "sent_in_batches")
    op.drop_column("campaign", "mails_again")
