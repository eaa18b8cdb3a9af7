"""Record the outcomes of deliveries, and suppress invalid addresses."""

from __future__ import annotations

import random
import re
from datetime import timedelta

from sqlalchemy import text

from webapp.campaigns import timing
from webapp.campaigns.sending import progress as send_progress
from webapp.campaigns.sending.batches import BatchClaim, retry_while_database_unavailable
from webapp.campaigns.sending.windows import Recipient
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.mail.smtp import SmtpOutcome

# Permanent errors of the recipient address (RFC 3463, 3.2). 5.1.7 and 5.1.8 are about the sender address.
_INVALID_RECIPIENT_STATUS = re.compile(r"5\.1\.(?:0|1|2|3|4|6|9|10)\b")

# State and text of a rejected email when an earlier copy may have arrived.
MERGED_STATE_SQL = "case when mail_issue.doubt and excluded.state = 'failed' then 'uncertain' else excluded.state end"
DUPLICATE_REJECTED_PREFIX = "an earlier copy may have arrived; the second copy was rejected: "
MERGED_TEXT_SQL = (
    f"case when mail_issue.doubt and excluded.state = 'failed' then '{DUPLICATE_REJECTED_PREFIX}' || excluded.text "
    "else excluded.text end"
)


@retry_while_database_unavailable
def record_outcome(claim: BatchClaim, recipient: Recipient, outcome: SmtpOutcome) -> bool:
    """Record the outcome of one delivery and move the cursor, in one transaction.

    An accepted email is recorded only if the delivery was uncertain before, as `sent_later`. If a second copy is
    rejected, the delivery stays uncertain, because the first copy may have arrived.

    :returns: False when another worker owns the batch; then nothing is recorded.
    """
    if not send_progress.move_cursor(db.session.connection(), claim, recipient.index + 1):
        db.session.rollback()
        return False
    state = {"accepted": "sent_later", "connection_lost": "deferred"}.get(outcome.kind, outcome.kind)
    db.session.execute(
        text(
            "insert into mail_issue (campaign_id, customer_id, state, smtp_code, text, next_at, attempts, doubt) "  # noqa: S608
            "values (:campaign, :id, :state, :code, :text, now() + cast(:next as interval), 1, :state = 'uncertain') "
            "on conflict (campaign_id, customer_id) do update set "
            f"state = {MERGED_STATE_SQL}, text = {MERGED_TEXT_SQL}, doubt = mail_issue.doubt or excluded.doubt, "
            "smtp_code = excluded.smtp_code, next_at = excluded.next_at, at = now(), "
            "attempts = mail_issue.attempts + 1"
        ),
        {
            "campaign": claim.campaign_id,
            "id": recipient.customer.id,
            "state": state,
            "code": outcome.code,
            "text": "" if state == "sent_later" else outcome.text,
            "next": compute_retry_delay(0) if state == "deferred" else None,
        },
    )
    suppress_bounced_address(recipient.customer, claim.campaign_id, outcome)
    db.session.commit()
    return True


def suppress_bounced_address(customer: Customer, campaign_id: int, outcome: SmtpOutcome) -> None:
    """Suppress a recipient address that the relay reports as invalid.

    The caller commits.
    """
    if outcome.kind == "failed" and outcome.stage == "RCPT" and _INVALID_RECIPIENT_STATUS.match(outcome.text):
        reply = f"{outcome.code} {outcome.text}"  # no translation
        suppression_actions.add_suppression(customer.email, "bounced", campaign_id, reply)


def compute_retry_delay(attempts: int) -> timedelta:
    """Return the delay until the next attempt, with a jitter of ±10 %.

    The jitter prevents retries from coinciding.
    """
    seconds = timing.RETRY_BACKOFF[min(attempts, len(timing.RETRY_BACKOFF) - 1)]
    return timedelta(seconds=seconds * random.uniform(0.9, 1.1))  # noqa: S311
