"""What comes of a mail that came back: its address goes on the list of those not to be mailed, and who asks whether a
customer got a mail hears why not. Doing the same twice changes nothing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import text

from webapp.accounts.actions import record_audit_entry
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.bounces import reports as bounce_reports
from webapp.campaigns.bounces.reports import BounceReport
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions

BounceOutcome = Literal[
    "suppressed", "known", "soft", "ignored", "broken", "unproven", "unknown_customer", "own_address", "email_invalid"
]


@dataclass(frozen=True)
class BounceNotice:
    """What a relay says by JSON: which mail or whose address, what happened, and the server's words."""

    email: str = ""
    return_path: str = ""
    message_id: str = ""
    kind: Literal["bounce", "complaint"] = "bounce"
    status: str = ""
    detail: str = ""


def process_bounce_messages(mails: Iterable[bytes], by: str) -> Counter[str]:
    """Act on mails that came back, one after the other; how many were what. Commits each of them."""
    seen: Counter[str] = Counter()
    for raw in mails:
        seen[process_bounce_report(bounce_reports.parse_report(raw))] += 1
    _audit_counts(seen, by)
    return seen


def process_bounce_notices(all_said: Iterable[BounceNotice], by: str) -> list[BounceOutcome]:
    """Act on what a relay says of mails that came back; what came of each. Commits each of them."""
    outcomes = [_process_notice(said) for said in all_said]
    audit_bounces(outcomes, by)
    return outcomes


def audit_bounces(outcomes: Iterable[BounceOutcome], by: str) -> None:
    """Write down in the trail who told of mails that came back, if that changed anything. Commits."""
    _audit_counts(Counter(outcomes), by)


def _audit_counts(seen: Counter[str], by: str) -> None:
    if seen["suppressed"]:
        record_audit_entry(by, "bounces.taken", "do not mail", mails=seen.total(), suppressed=seen["suppressed"])
        db.session.commit()


def process_bounce_report(found: BounceReport) -> BounceOutcome:
    """Act on one report, if a mark of ours proves whose mail it is about. Commits.

    Without such a mark anybody could keep anybody else from being mailed, so what a report names counts for nothing.
    """
    if found.kind not in ("bounce", "complaint", "unsubscribe"):
        return {"soft": "soft", "broken": "broken"}.get(found.kind, "ignored")  # type: ignore[return-value]
    pair = _identify_recipient(found.tokens)
    if pair is None:
        return "unproven"
    campaign_id, customer_id = pair
    customer = customer_queries.lock_customer(customer_id)
    if customer is None or customer.erased_at is not None:
        db.session.rollback()
        return "unknown_customer"
    if found.kind == "bounce" and _is_former_address(customer, campaign_id, found.addresses):
        db.session.rollback()
        return "ignored"
    return _suppress_address(customer.email, customer, campaign_id, found)


def _process_notice(said: BounceNotice) -> BounceOutcome:
    """A relay's key is trusted, so an address alone is enough."""
    if said.kind == "bounce" and said.status and not bounce_reports.is_hard_bounce(said.status, said.detail):
        return "soft"
    kind: bounce_reports.BounceReportKind = "bounce" if said.kind == "bounce" else "complaint"
    named = (said.email,) if said.email else ()
    found = BounceReport(
        kind, said.status, said.detail, named, tuple(filter(None, (said.return_path, said.message_id)))
    )
    pair = _identify_recipient(found.tokens)
    if pair is not None:
        return process_bounce_report(found)
    if not said.email:
        return "unproven"
    try:
        address = normalise_email(said.email)
    except InvalidInput:
        return "email_invalid"
    return _suppress_address(address, None, None, found)


def _suppress_address(
    address: str, customer: Customer | None, campaign_id: int | None, found: BounceReport
) -> BounceOutcome:
    if suppression_actions.is_own_address(address):
        db.session.rollback()
        return "own_address"
    reason = {"bounce": "bounced", "complaint": "complained"}.get(found.kind, "unsubscribed")
    words = found.diagnostic if found.status in found.diagnostic else f"{found.status} {found.diagnostic}".strip()
    is_new = suppression_actions.add_suppression(address, reason, campaign_id if campaign_id else "relay", words)
    if customer is not None and campaign_id and found.kind == "bounce":
        _record_bounce(campaign_id, customer.id, f"bounced: {words}".strip())
    db.session.commit()
    return "suppressed" if is_new else "known"


def _identify_recipient(marks: Iterable[str]) -> tuple[int, int] | None:
    """(campaign, customer) of the first mark that is ours."""
    for mark in marks:
        if mark.startswith("/u/"):
            customer_and_campaign = campaign_tokens.parse_unsubscribe_token(mark.removeprefix("/u/"))
            pair = customer_and_campaign[::-1] if customer_and_campaign else None
        else:
            pair = campaign_tokens.parse_return_path(mark) or campaign_tokens.parse_message_id(mark)
        if pair is not None:
            return pair[0], pair[1]
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


def _is_former_address(customer: Customer, campaign_id: int, named: tuple[str, ...]) -> bool:
    """Whether it was an address that the customer no longer has which bounced. Another address than theirs alone does
    not say so: it may be where theirs is forwarded to."""
    if not named or customer.email in {_normalise_or_empty(address) for address in named}:
        return False
    values = {"campaign": campaign_id, "subject": f"customer {customer.id}"}
    return bool(db.session.execute(_EMAIL_CHANGED_SINCE_LAUNCH, values).scalar_one())


def _normalise_or_empty(address: str) -> str:
    try:
        return normalise_email(re.sub(r"^<|>$", "", address))
    except InvalidInput:
        return ""


# Whoever keeps the sum of a campaign locks it first. This waits in a statement of its own: the next one sees the sum.
_LOCK_CAMPAIGN = text("select id from campaign where id = :campaign for no key update")
# A mail that went out and came back was not sent after all, so it is taken off those that were. While its batch is
# being sent the worker counts; then the list alone tells.
_RECORD_BOUNCE = text(
    """
    with mail as (
      select b.id from batch b
      where b.campaign_id = :campaign and b.first_id <= :customer and b.last_id >= :customer and b.status <> 'sending'
        and exists (
          select from (
            select place, sum(gap) over (order by place) as id from unnest(b.gaps) with ordinality g (gap, place)
          ) p
          left join mail_issue i on i.campaign_id = b.campaign_id and i.customer_id = p.id
          where p.id = :customer and (b.status = 'done' or p.place <= b.window_start or i.state = 'uncertain')
        )
      for no key update of b
    ),
    noted as (
      insert into mail_issue as known (campaign_id, customer_id, state, text)
      select :campaign, :customer, 'failed', :words from mail
      on conflict (campaign_id, customer_id) do update set state = 'failed', text = excluded.text, next_at = null,
        at = now(), smtp_code = null
      where known.state in ('uncertain', 'sent_later', 'left')
      returning (xmax = 0) as is_new
    ),
    less as (
      update batch set sent = sent - 1 where id in (select id from mail) and (select is_new from noted) and sent > 0
      returning campaign_id
    )
    update campaign set sent_in_batches = sent_in_batches - 1
    where id in (select campaign_id from less) and sent_in_batches > 0
    """
)


def _record_bounce(campaign_id: int, customer_id: int, words: str) -> None:
    """Say to whoever asks that this mail came back, unless a row says more."""
    db.session.execute(_LOCK_CAMPAIGN, {"campaign": campaign_id})
    db.session.execute(_RECORD_BOUNCE, {"campaign": campaign_id, "customer": customer_id, "words": words})
