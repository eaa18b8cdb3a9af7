"""Queries for deliveries and their states.

An email that was sent at the first attempt has no row: its state follows from its position in the batch. All others
have a row in `mail_issue`. A batch, its cursor and the rows of its recipients are read in one statement, so the state
is exact even while a window is being sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import Row, select, text

from webapp.campaigns.deliveries.status import RECORDED_STATES, DeliveryState, DeliveryStatus, to_delivery_status
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import AudienceMember, Customer
from webapp.redemptions import queries as redemption_queries

# Batches that one page of a list scans at most, and batches that one step of an export reads.
BATCHES_PER_PAGE = 40
BATCHES_PER_EXPORT_STEP = 10


@dataclass(frozen=True)
class CampaignDelivery:
    """A campaign that a customer was a recipient of, and the state of the email."""

    campaign: Campaign
    delivery: DeliveryStatus

    @property
    def state(self) -> DeliveryState:
        """The state of the email."""
        return self.delivery.state

    @property
    def at(self) -> datetime | None:
        """The time of the state, see `DeliveryStatus`."""
        return self.delivery.at


@dataclass(frozen=True)
class RecipientPage:
    """A page of recipients, by customer id.

    :ivar next_after: the `after` of the next page, None for the last page.
    """

    deliveries: Sequence[DeliveryStatus]
    next_after: int | None


# Why a queued email will be skipped: by the reason of the suppression, or because the customer was erased.
_SKIP_NOTES = {
    "bounced": _l("Will be skipped: the address has bounced."),
    "unsubscribed": _l("Will be skipped: the customer has unsubscribed."),
    "complained": _l("Will be skipped: the customer has complained."),
    "erased": _l("Will be skipped: the customer was erased."),
}


# --- statements -------------------------------------------------------------------------------------

_COLUMNS = """
  c.id as campaign_id, c.status as campaign_status, c.launched_at, c.finished_at, c.uncertain_policy,
  a.customer_id, u.email_as_given as email, u.name, u.source_id, u.erased_at,
  b.id as batch_id, b.seq, b.status, b.window_start, b.window_end, b.windows, b.lease_until > now() as is_leased,
  k.cursor, a.batch_position, i.state, i.smtp_code, i.text, i.next_at, i.attempts, i.at, i.doubt, now() as read_at
"""
_JOINS = """
  left join batch_cursor k on k.batch_id = b.id and k.epoch = b.epoch
  left join mail_issue i on i.campaign_id = c.id and i.customer_id = a.customer_id
  left join customer u on u.id = a.customer_id
"""
# The batches of a campaign are ordered by customer id, so only one can contain the customer: the first whose last id is
# not smaller.
_BATCH_POSITION_JOINS = """
  left join lateral (
    select * from batch where campaign_id = c.id and last_id >= p.customer_id order by last_id limit 1
  ) b on b.first_id <= p.customer_id
  left join lateral (
    select member.position from (
      select g.position, sum(g.gap) over (order by g.position) as id
      from unnest(b.gaps) with ordinality as g(gap, position)
    ) member where member.id = p.customer_id
  ) m on true
  cross join lateral (select p.customer_id, m.position as batch_position) a
"""
_LOOKUP_JOINS = _BATCH_POSITION_JOINS + _JOINS
_SELECT_ONE = text(
    f"select {_COLUMNS} from (select cast(:customer as bigint) as customer_id) p "  # noqa: S608
    f"join campaign c on c.id = :campaign {_LOOKUP_JOINS}"
)
_SELECT_BY_CUSTOMER = text(
    f"select {_COLUMNS} from campaign c "  # noqa: S608
    f"cross join (select cast(:customer as bigint) as customer_id) p {_LOOKUP_JOINS} "
    "where a.batch_position is not null order by c.id desc limit :limit"
)
_SELECT_BY_STATE = (
    "select {columns} from (select campaign_id, customer_id from ({rows}) r order by customer_id limit :limit) p "
    "join campaign c on c.id = p.campaign_id {joins} order by a.customer_id"
)
_ISSUE_KEYS = (
    "(select campaign_id, customer_id from mail_issue where campaign_id = :campaign and state = {state} {condition} "
    "and customer_id > :after order by customer_id limit :limit)"
)
# An uncertain email with this condition is being retried, so it counts as deferred until its outcome is
# known.
_RETRY_IN_PROGRESS = "next_at > now() and (select status from campaign where id = :campaign) <> 'cancelled'"
_SELECT_BY_BATCH = text(
    f"""
    select {_COLUMNS}, b.last_id
    from (
      select * from batch where campaign_id = :campaign and last_id > :after order by last_id limit :batches
    ) b
    join campaign c on c.id = b.campaign_id
    cross join lateral (
      select cast(sum(g.gap) over (order by g.position) as bigint) as customer_id, g.position as batch_position
      from unnest(b.gaps) with ordinality as g(gap, position)
    ) a
    {_JOINS}
    where a.customer_id > :after
    order by a.customer_id
    """  # noqa: S608
)
_COUNT_AHEAD = text(
    "select coalesce(sum(cardinality(gaps) - window_start), 0) from batch "
    "where campaign_id = :campaign and seq < :seq and status in ('pending', 'sending')"
)


def find_delivery(campaign: Campaign, customer: Customer) -> DeliveryStatus:
    """Return the state of one customer's email; also of customers who get none."""
    row = db.session.execute(_SELECT_ONE, {"campaign": campaign.id, "customer": customer.id}).one()
    if row.batch_position is None:
        return _to_non_recipient_status(campaign, customer, row)
    return _with_queue_position(row, to_delivery_status(row))


def list_customer_deliveries(customer_id: int, limit: int = 50) -> list[CampaignDelivery]:
    """List the campaigns of which a customer is a recipient, newest first."""
    rows = db.session.execute(_SELECT_BY_CUSTOMER, {"customer": customer_id, "limit": limit}).all()
    statement = select(Campaign).where(Campaign.id.in_([row.campaign_id for row in rows]))
    campaigns = {campaign.id: campaign for campaign in db.session.scalars(statement)}
    return [
        CampaignDelivery(campaigns[row.campaign_id], _with_queue_position(row, to_delivery_status(row))) for row in rows
    ]


def iter_customer_deliveries(customer_id: int) -> Iterator[DeliveryStatus]:
    """Yield the states of all campaign emails of a customer, newest campaign first, without queue positions.

    A hundred are fetched at a time. The transaction must stay open until the last one.
    """
    values = {"customer": customer_id, "limit": None}
    for row in db.session.execute(_SELECT_BY_CUSTOMER, values, execution_options={"yield_per": 100}):
        yield to_delivery_status(row)


def list_recipients(
    campaign_id: int,
    state: str = "",
    after: int = 0,
    limit: int = 50,
    code: int | None = None,
    cause: str | None = None,
) -> RecipientPage:
    """List recipients by customer id: all, those in one state, or those of one cause.

    A page of a derived state scans at most `BATCHES_PER_PAGE` batches (some ten thousand recipients) and may therefore
    have fewer than `limit` entries; the next page begins after `next_after`.

    :param after: only customers with a larger id.
    :param cause: only those of this cause with this `code`, see `webapp.campaigns.stats_queries.IssueCause`.
    """
    if state in RECORDED_STATES:
        recorded = _list_recipients_in_state(campaign_id, state, after, limit + 1, code, cause)
        return RecipientPage(recorded[:limit], recorded[limit - 1].customer_id if len(recorded) > limit else None)
    matching: list[DeliveryStatus] = []
    for delivery, scanned_to in _scan_batches(campaign_id, after, 1, BATCHES_PER_PAGE):
        if delivery is not None and state in ("", delivery.state):
            matching.append(delivery)
            if len(matching) > limit:
                return RecipientPage(matching[:limit], matching[limit - 1].customer_id)
        after = scanned_to
    return RecipientPage(matching, after if _has_more(campaign_id, after) else None)


def iter_recipients(campaign_id: int, state: str = "") -> Iterator[DeliveryStatus]:
    """Yield all recipients, or those in one state, by customer id.

    Some thousand are read at a time; no transaction stays open in between.
    """
    for delivery, _scanned_to in _scan_batches(campaign_id, 0, BATCHES_PER_EXPORT_STEP, None):
        if delivery is not None and state in ("", delivery.state):
            yield delivery


def _list_recipients_in_state(
    campaign_id: int, state: str, after: int, limit: int, code: int | None, cause: str | None
) -> list[DeliveryStatus]:
    condition = ""
    if cause is not None:
        condition = f"and cause = :cause and smtp_code {'is null' if code is None else '= :code'}"
    if state == "uncertain":
        condition += f" and ({_RETRY_IN_PROGRESS}) is not true"
    rows = _ISSUE_KEYS.format(state=":state", condition=condition)
    if state == "deferred":
        condition += f" and {_RETRY_IN_PROGRESS}"
        retried = _ISSUE_KEYS.format(state="'uncertain'", condition=condition)
        rows += f" union all {retried}"
    statement = _SELECT_BY_STATE.format(columns=_COLUMNS, joins=_LOOKUP_JOINS, rows=rows)
    values = {"campaign": campaign_id, "state": state, "after": after, "limit": limit, "code": code, "cause": cause}
    return [to_delivery_status(row) for row in db.session.execute(text(statement), values)]


def _scan_batches(
    campaign_id: int, after: int, step: int, max_batches: int | None
) -> Iterator[tuple[DeliveryStatus | None, int]]:
    """Yield the recipients after a customer id, each with the last scanned id.

    The end of each batch is yielded as (None, its last id).

    :param step: batches to read at a time.
    :param max_batches: batches to read in all, None for no limit.
    """
    while max_batches is None or max_batches > 0:
        rows = db.session.execute(_SELECT_BY_BATCH, {"campaign": campaign_id, "after": after, "batches": step}).all()
        db.session.rollback()
        if not rows:
            return
        for row in rows:
            yield to_delivery_status(row), row.customer_id
        after = rows[-1].last_id
        yield None, after
        max_batches = None if max_batches is None else max_batches - step


def _has_more(campaign_id: int, after: int) -> bool:
    statement = text("select exists (select 1 from batch where campaign_id = :campaign and last_id > :after)")
    return bool(db.session.execute(statement, {"campaign": campaign_id, "after": after}).scalar())


def _with_queue_position(row: Row[Any], delivery: DeliveryStatus) -> DeliveryStatus:
    """Add the queue position of a waiting email, and whether it would be skipped."""
    if delivery.state != "waiting":
        return delivery
    before = db.session.execute(_COUNT_AHEAD, {"campaign": row.campaign_id, "seq": row.seq}).scalar_one()
    ahead = before + row.batch_position - 1 - row.window_start
    reason = customer_queries.find_suppression_reasons([delivery.customer_id]).get(delivery.customer_id)
    if row.erased_at is not None:
        reason = "erased"
    note = str(_SKIP_NOTES[reason]) if reason else ""
    return replace(delivery, ahead=max(0, ahead), note=note)


def _to_non_recipient_status(campaign: Campaign, customer: Customer, row: Row[Any]) -> DeliveryStatus:
    """Explain why a customer is no recipient (yet)."""
    delivery = DeliveryStatus(campaign.id, customer.id, row.email, row.name, "not_recipient")
    launched_at = campaign.launched_at
    if launched_at is None:
        if campaign.status == "cancelled":
            note = _("The campaign was cancelled before its launch, so no emails were sent.")
            return replace(delivery, note=note)
        return replace(
            delivery, note=_("The campaign has not been launched yet. Its recipients are selected at the launch.")
        )
    if customer.erased_at is not None:
        return replace(delivery, note=_("The customer was erased before the recipients were selected."))
    joined_at = db.session.scalar(
        select(AudienceMember.joined_at).where(
            AudienceMember.audience_id == campaign.audience_id, AudienceMember.customer_id == customer.id
        )
    )
    if campaign.audience_id is not None and joined_at is None:
        return replace(delivery, note=_("The customer is not in the audience of the campaign."))
    if campaign.prepared_at is None and customer.id > campaign.prepared_to:
        if campaign.status == "cancelled":
            note = _("The campaign was cancelled before this email was sent.")
            return replace(delivery, state="cancelled", note=note)
        return replace(delivery, state="waiting", note=_("The recipients are still being selected."))
    if customer.created_at > launched_at:
        return replace(delivery, note=_("The customer was created after the launch."))
    if joined_at is not None and joined_at > launched_at:
        return replace(delivery, note=_("The customer joined the audience after the launch."))
    if campaign.kind == "reminder" and redemption_queries.find_redeemed_customer_ids(campaign.offer_id, [customer.id]):
        return replace(delivery, note=_("The customer has already redeemed, so no reminder was sent."))
    return replace(delivery, note=_("The customer was not among the recipients at the launch."))
