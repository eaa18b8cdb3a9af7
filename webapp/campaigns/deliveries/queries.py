"""Delivery states of recipients, for all interfaces.

An email that was sent at the first attempt has no row: its state follows from its position in the batch. All others
have a row in `mail_issue`. A batch, its cursor and the rows of its recipients are read in one statement, so the state
is exact even while a window is being sent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

from flask_babel import gettext as _
from sqlalchemy import Row, select, text

from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.models import AudienceMember, Customer
from webapp.redemptions import queries as redemption_queries

DeliveryState = Literal[
    "sent",
    "sent_later",
    "failed",
    "deferred",
    "uncertain",
    "left",
    "skipped",
    "sending",
    "waiting",
    "cancelled",
    "not_recipient",
]
# States that are recorded in `mail_issue`.
RECORDED_STATES = ("failed", "deferred", "uncertain", "left", "skipped", "sent_later")
# States that follow from the position in the batch.
DERIVED_STATES = ("sent", "sending", "waiting", "cancelled")

# Batches that one page of a list scans at most, and batches that one step of an export reads.
BATCHES_PER_PAGE = 40
BATCHES_PER_EXPORT_STEP = 10


@dataclass(frozen=True)
class DeliveryStatus:
    """The state of one customer's email of one campaign.

    :ivar at: time of the state (UTC); of an email sent at the first attempt, when its window of fifty began. None if
        nothing has happened yet or an earlier version sent it without recording the time.
    :ivar code: the relay's reply code (RFC 5321).
    :ivar text: the relay's reply, or why the recipient was skipped.
    :ivar note: a sentence about what happens next, or who has to resolve it.
    :ivar next_at: when a deferred email is retried.
    :ivar attempts: attempts made to send a deferred email.
    :ivar ahead: approximate number of emails before a waiting one.
    :ivar needs_resolution: whether staff must resend or dismiss it.
    :ivar source_id: the customer's id in the shop, empty if unknown.
    """

    campaign_id: int
    customer_id: int
    email: str
    name: str
    state: DeliveryState
    at: datetime | None = None
    code: int | None = None
    text: str = ""
    note: str = ""
    next_at: datetime | None = None
    attempts: int = 0
    ahead: int | None = None
    needs_resolution: bool = False
    source_id: str = ""


@dataclass(frozen=True)
class CampaignDelivery:
    """A campaign that a customer was a recipient of, and the state of the email."""

    campaign: Campaign
    delivery: DeliveryStatus

    @property
    def state(self) -> DeliveryState:
        return self.delivery.state

    @property
    def at(self) -> datetime | None:
        return self.delivery.at


@dataclass(frozen=True)
class RecipientPage:
    """A page of recipients, by customer id.

    :ivar next_after: the `after` of the next page, None for the last page.
    """

    deliveries: Sequence[DeliveryStatus]
    next_after: int | None


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
# An uncertain email with this condition is being retried at this moment, so it counts as deferred until its outcome is
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
    return _with_queue_position(row, _to_delivery_status(row))


def list_customer_deliveries(customer_id: int, limit: int = 50) -> list[CampaignDelivery]:
    """List the campaigns of which a customer is a recipient, newest first."""
    rows = db.session.execute(_SELECT_BY_CUSTOMER, {"customer": customer_id, "limit": limit}).all()
    statement = select(Campaign).where(Campaign.id.in_([row.campaign_id for row in rows]))
    campaigns = {campaign.id: campaign for campaign in db.session.scalars(statement)}
    return [
        CampaignDelivery(campaigns[row.campaign_id], _with_queue_position(row, _to_delivery_status(row)))
        for row in rows
    ]


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
    have fewer than `limit` entries; `next_after` says where the next page begins.

    :param after: only customers with a larger id.
    :param cause: only those of this cause with this `code`, see `webapp.campaigns.queries.IssueCause`.
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
    return [_to_delivery_status(row) for row in db.session.execute(text(statement), values)]


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
            yield _to_delivery_status(row), row.customer_id
        after = rows[-1].last_id
        yield None, after
        max_batches = None if max_batches is None else max_batches - step


def _has_more(campaign_id: int, after: int) -> bool:
    statement = text("select exists (select 1 from batch where campaign_id = :campaign and last_id > :after)")
    return bool(db.session.execute(statement, {"campaign": campaign_id, "after": after}).scalar())


# --- states from rows -------------------------------------------------------------------------------


def _to_delivery_status(row: Row[Any]) -> DeliveryStatus:
    """Derive the state of a recipient from its row."""
    index = row.batch_position - 1
    is_settled = index < row.window_start or (_is_window_open(row) and row.cursor is not None and index < row.cursor)
    is_in_window = not is_settled and _is_window_open(row) and index < row.window_end
    delivery = DeliveryStatus(
        row.campaign_id, row.customer_id, row.email or "", row.name or "", "waiting", source_id=row.source_id or ""
    )
    if row.state is not None:
        return _to_recorded_status(row, delivery, is_settled, is_in_window)
    if is_settled:
        at = _window_opened_at(row, index)
        sent_before = row.finished_at or row.read_at
        note = (
            ""
            if at
            else _("The exact time is unknown; it was before %(time)s UTC.", time=f"{sent_before:%Y-%m-%d %H:%M}")
        )
        return replace(delivery, state="sent", at=at, note=note)
    if is_in_window:
        note = ""
        if not row.is_leased:
            note = _("Sending was interrupted. It resumes automatically within a minute.")
        return replace(delivery, state="sending", at=_window_opened_at(row, index), note=note)
    if row.status == "cancelled" or row.campaign_status == "cancelled":
        return replace(delivery, state="cancelled", note=_("The campaign was cancelled before this email was sent."))
    return delivery


def _to_recorded_status(
    row: Row[Any], delivery: DeliveryStatus, is_settled: bool, is_in_window: bool
) -> DeliveryStatus:
    """Derive the state of a recipient that has a row in `mail_issue`."""
    delivery = replace(
        delivery,
        state=row.state,
        at=row.at,
        # The reply to an accepted email is of no interest.
        code=None if row.state in ("skipped", "sent_later") else row.smtp_code,
        text=row.text,
        next_at=row.next_at if row.state in ("deferred", "uncertain") else None,
        attempts=row.attempts,
    )
    if row.state == "uncertain":
        return _to_uncertain_status(row, delivery, is_settled, is_in_window)
    if row.state == "deferred" and row.campaign_status == "cancelled":
        return replace(delivery, next_at=None, note=_("The campaign was cancelled, so this email is not retried."))
    if row.state == "sent_later" and row.doubt:
        return replace(
            delivery, note=_("An earlier attempt may have succeeded, so the customer may have got it twice.")
        )
    return delivery


def _is_window_open(row: Row[Any]) -> bool:
    return bool(row.status == "sending" and row.window_end > row.window_start)


def _to_uncertain_status(
    row: Row[Any], delivery: DeliveryStatus, is_settled: bool, is_in_window: bool
) -> DeliveryStatus:
    """Distinguish automatic resends from emails that staff have to resolve."""
    is_cancelled = row.campaign_status == "cancelled"
    resends = row.uncertain_policy == "resend" and row.campaign_status in ("sending", "paused")
    if is_in_window:
        return replace(delivery, note=_("It is being resent now."))
    is_retried = row.next_at is not None and row.next_at > row.read_at
    if is_retried and not is_cancelled:
        note = _("It is being retried now.")
        return replace(delivery, state="deferred", note=note, next_at=None, attempts=max(0, row.attempts - 1))
    if not is_cancelled and not is_settled:
        return replace(delivery, note=_("It is resent automatically when its turn in the queue comes."))
    if is_retried:
        return replace(delivery, note=_("It is being retried now."))
    if row.next_at is not None and resends:
        return replace(delivery, note=_("It is resent automatically."))
    if is_cancelled:
        note = _("The campaign was cancelled, so this email is not resent.")
    else:
        note = _("It has to be resolved: resend it or dismiss it.")
    return replace(delivery, needs_resolution=True, note=note)


def _window_opened_at(row: Row[Any], index: int) -> datetime | None:
    """Return when the window that contains a batch index was opened.

    This is the last window that starts at or before the index; None if it is unknown.
    """
    opened_after: int | None = None
    for start, seconds in zip(row.windows[::2], row.windows[1::2], strict=False):
        if start <= index:
            opened_after = seconds
    if opened_after is None or row.launched_at is None:
        return None
    launched_at: datetime = row.launched_at
    return launched_at + timedelta(seconds=opened_after)


def _with_queue_position(row: Row[Any], delivery: DeliveryStatus) -> DeliveryStatus:
    """Add the queue position of a waiting email, and whether it would be skipped."""
    if delivery.state != "waiting":
        return delivery
    before = db.session.execute(_COUNT_AHEAD, {"campaign": row.campaign_id, "seq": row.seq}).scalar_one()
    ahead = before + row.batch_position - 1 - row.window_start
    reason = customer_queries.find_suppression_reasons([delivery.customer_id]).get(delivery.customer_id)
    if row.erased_at is not None:
        reason = "erased"
    note = _("Will be skipped: %(reason)s.", reason=reason) if reason else ""
    return replace(delivery, ahead=max(0, ahead), note=note)


def _to_non_recipient_status(campaign: Campaign, customer: Customer, row: Row[Any]) -> DeliveryStatus:
    """Explain why a customer is no recipient (yet)."""
    delivery = DeliveryStatus(campaign.id, customer.id, row.email, row.name, "not_recipient")
    launched_at = campaign.launched_at
    if launched_at is None:
        if campaign.status == "cancelled":
            note = _("The campaign was cancelled before it started, so no emails were sent.")
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
