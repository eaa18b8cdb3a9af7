"""Group failed deliveries by cause, and let staff leave an uncertain delivery as it is."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

BEFORE = "state in ('deferred', 'failed', 'uncertain', 'skipped', 'sent_later')"
STATES = "state in ('deferred', 'failed', 'uncertain', 'skipped', 'sent_later', 'left')"
# The enhanced status code of the SMTP reply (RFC 3463); without a reply, the beginning of the text.
CAUSE = r"case when smtp_code is null then left(text, 60) else coalesce(substring(text from '^[245]\.\d{1,3}\.\d{1,3}'), '') end"  # noqa: E501


def upgrade() -> None:
    op.add_column("mail_issue", sa.Column("cause", sa.Text(), sa.Computed(CAUSE, persisted=True), nullable=False))
    op.create_index(
        "ix_mail_issue_cause", "mail_issue", ["campaign_id", "state", "smtp_code", "cause", "customer_id"], unique=False
    )
    op.create_index(
        "ix_mail_issue_uncertain",
        "mail_issue",
        ["campaign_id"],
        unique=False,
        postgresql_where=sa.text("state = 'uncertain'"),
    )
    op.drop_constraint(op.f("ck_mail_issue_state"), "mail_issue")
    op.create_check_constraint(op.f("ck_mail_issue_state"), "mail_issue", STATES)


def downgrade() -> None:
    """Deliveries that staff left as they were become uncertain again."""
    op.drop_constraint(op.f("ck_mail_issue_state"), "mail_issue")
    op.execute("update mail_issue set state = 'uncertain' where state = 'left'")
    op.create_check_constraint(op.f("ck_mail_issue_state"), "mail_issue", BEFORE)
    op.drop_index("ix_mail_issue_uncertain", table_name="mail_issue")
    op.drop_index("ix_mail_issue_cause", table_name="mail_issue")
    op.drop_column("mail_issue", "cause")
