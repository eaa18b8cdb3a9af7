"""Process bounces, complaints and unsubscriptions by email.

The address is suppressed, and a bounce is recorded for the recipient of the campaign.

All actions are idempotent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text

from webapp.accounts.audit import record_audit_entry
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.bounces import reports as bounce_reports
from webapp.campaigns.bounces.reports import BounceReport
from webapp.campaigns.tokens import DeliveryIds
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions

# These values are part of the API; docs/api.md explains them.
BounceOutcome = Literal[
    "suppressed", "known", "soft", "ignored", "broken", "unproven", "unknown_customer", "own_address", "email_invalid"
]


@dataclass(frozen=True)
class BounceNotice:
    """A bounce or complaint as a relay reports it by JSON."""

    email: str = ""
    return_path: str = ""
    message_id: str = ""
    kind: Literal["bounce", "complaint"] = "bounce"
    status: str = ""
    detail: str = ""


def process_bounce_messages(messages: Iterable[bytes], by: str) -> Counter[str]:
    """Process bounce messages; return the count of each outcome.

    Commits after each message.
    """
    counts: Counter[str] = Counter()
    for message in messages:
        counts[process_bounce_report(bounce_reports.parse_report(message))] += 1
    _audit_counts(counts, by)
    return counts


def process_bounce_notices(notices: Iterable[BounceNotice], by: str) -> list[BounceOutcome]:
    """Process the notices of a relay; return their outcomes in the same order.

    Commits after each notice.
    """
    outcomes = [_process_notice(notice) for notice in notices]
    audit_bounces(outcomes, by)
    return outcomes


def audit_bounces(outcomes: Iterable[BounceOutcome], by: str) -> None:
    """Record in the audit log who reported bounces.

    Nothing is recorded unless an address was suppressed. Commits.
    """
    _audit_counts(Counter(outcomes), by)


def _audit_counts(counts: Counter[str], by: str) -> None:
    if counts["suppressed"]:
        record_audit_entry(
            by, "bounces.taken", "suppression list", mails=counts.total(), suppressed=counts["suppressed"]
        )
        db.session.commit()


def process_bounce_report(report: BounceReport) -> BounceOutcome:
    """Process one report if a valid token identifies its recipient. Commits.

    The addresses in a report prove nothing: without a token, any sender could suppress any address.
    """
    if report.kind not in ("bounce", "complaint", "unsubscribe"):
        return {"soft": "soft", "broken": "broken"}.get(report.kind, "ignored")  # type: ignore[return-value]
    ids = _identify_recipient(report.tokens)
    if ids is None:
        return "unproven"
    campaign_id, customer_id = ids
    customer = customer_queries.lock_customer(customer_id)
    if customer is None or customer.erased_at is not None:
        db.session.rollback()
        return "unknown_customer"
    if report.kind == "bounce" and _is_former_address(customer, campaign_id, report.addresses):
        db.session.rollback()
        return "ignored"
    return _suppress_address(customer.email, customer, campaign_id, report)


def _process_notice(notice: BounceNotice) -> BounceOutcome:
    """Process one notice.

    Its sender is authenticated by an API key, so an address without a token is enough.
    """
    if notice.kind == "bounce" and notice.status and not bounce_reports.is_hard_bounce(notice.status, notice.detail):
        return "soft"
    addresses = (notice.email,) if notice.email else ()
    tokens = tuple(filter(None, (notice.return_path, notice.message_id)))
    report = BounceReport(notice.kind, notice.status, notice.detail, addresses, tokens)
    if _identify_recipient(report.tokens) is not None:
        return process_bounce_report(report)
    if not notice.email:
        return "unproven"
    try:
        address = normalise_email(notice.email)
    except InvalidInput:
        return "email_invalid"
    return _suppress_address(address, None, None, report)


def _suppress_address(
    address: str, customer: Customer | None, campaign_id: int | None, report: BounceReport
) -> BounceOutcome:
    if suppression_actions.is_own_address(address):
        db.session.rollback()
        return "own_address"
    reason = {"bounce": "bounced", "complaint": "complained"}.get(report.kind, "unsubscribed")
    diagnostic = report.diagnostic
    if report.status not in diagnostic:
        diagnostic = " ".join((report.status, diagnostic)).strip()
    is_new = suppression_actions.add_suppression(address, reason, campaign_id or "relay", diagnostic)
    if customer is not None and campaign_id and report.kind == "bounce":
        _record_bounce(campaign_id, customer.id, f"bounced: {diagnostic}".strip())
    db.session.commit()
    return "suppressed" if is_new else "known"


def _identify_recipient(tokens: Iterable[str]) -> DeliveryIds | None:
    """Return the ids of the first valid token."""
    for token in tokens:
        if token.startswith("/u/"):
            ids = campaign_tokens.parse_unsubscribe_token(token.removeprefix("/u/"))
        else:
            ids = campaign_tokens.parse_return_path(token) or campaign_tokens.parse_message_id(token)
        if ids is not None:
            return ids
    return None


_EMAIL_CHANGED_SINCE_LAUNCH = text(
    """
    select exists (
      select from audit_entry a join campaign c on c.id = :campaign
      where a.subject = :subject and a.action = 'customer.changed' and a.at > c.launched_at
        and a.detail -> 'fields' @> '["email"]'
    )
    """
)


def _is_former_address(customer: Customer, campaign_id: int, addresses: tuple[str, ...]) -> bool:
    """Return whether the bounced address is a former one of the customer.

    A different address alone does not show this: the customer's address may forward to it. That address must also
    have changed since the launch.
    """
    if not addresses or customer.email in {_normalise_or_empty(address) for address in addresses}:
        return False
    values = {"campaign": campaign_id, "subject": f"customer {customer.id}"}
    return bool(db.session.execute(_EMAIL_CHANGED_SINCE_LAUNCH, values).scalar_one())


def _normalise_or_empty(address: str) -> str:
    try:
        return normalise_email(re.sub(r"^<|>$", "", address))
    except InvalidInput:
        return ""


# Every writer of a campaign's totals locks its row first. The lock is a separate statement, so that the next
# statement has a snapshot with the current totals.
_LOCK_CAMPAIGN = text("select id from campaign where id = :campaign for no key update")
# A bounced email is no longer counted as sent. While its batch is being sent, the worker keeps the count, so the
# bounce is only in the suppression list then.
_RECORD_BOUNCE = text(
    """
    with settled_batch as (
      select b.id from batch b
      where b.campaign_id = :campaign and b.first_id <= :customer and b.last_id >= :customer and b.status <> 'sending'
        and exists (
          select from (
            select position, sum(gap) over (order by position) as id
            from unnest(b.gaps) with ordinality g (gap, position)
          ) p
          left join mail_issue i on i.campaign_id = b.campaign_id and i.customer_id = p.id
          where p.id = :customer and (b.status = 'done' or p.position <= b.window_start or i.state = 'uncertain')
        )
      for no key update of b
    ),
    recorded as (
      insert into mail_issue as known (campaign_id, customer_id, state, text)
      select :campaign, :customer, 'failed', :text from settled_batch
      on conflict (campaign_id, customer_id) do update set state = 'failed', text = excluded.text, next_at = null,
        at = now(), smtp_code = null
      where known.state in ('uncertain', 'sent_later', 'left')
      returning (xmax = 0) as is_new
    ),
    corrected as (
      update batch set sent = sent - 1
      where id in (select id from settled_batch) and (select is_new from recorded) and sent > 0
      returning campaign_id
    )
    update campaign set sent_in_batches = sent_in_batches - 1
    where id in (select campaign_id from corrected) and sent_in_batches > 0
    """
)


def _record_bounce(campaign_id: int, customer_id: int, reason: str) -> None:
    """Record that an email bounced, unless it is already recorded as not sent."""
    db.session.execute(_LOCK_CAMPAIGN, {"campaign": campaign_id})
    db.session.execute(_RECORD_BOUNCE, {"campaign": campaign_id, "customer": customer_id, "text": reason})
