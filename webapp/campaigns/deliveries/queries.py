"""Who got it? What became of each recipient's mail, from the frozen ids and the rows of what did not simply go out.

Every door asks here: the page of a customer, that of a campaign, the lists, the file, the JSON. There is no row about a
mail that simply went out: what became of it follows from its place in the batch. A batch, its cursor and the rows of
its recipients are read in one statement, so the answer is exact also while a window is open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

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
# Those of which there is a row.
RECORDED_STATES = ("failed", "deferred", "uncertain", "left", "skipped", "sent_later")
# Those that follow from the place in the batch.
DERIVED_STATES = ("sent", "sending", "waiting", "cancelled")

# How many batches one page of a list looks through, and how many one step of an export reads.
BATCHES_PER_PAGE = 40
BATCHES_PER_EXPORT_STEP = 10


@dataclass(frozen=True)
class DeliveryStatus:
    """What became of one customer's mail of one campaign.

    `at` is when: of a mail that simply went out the moment in which its window of fifty was opened, None where that
    was not noted (an earlier version) or nothing has happened yet. `text` are the relay's words with their `code`, or
    why somebody was left out. `note` says in a sentence what comes next, or who decides. `attempts` counts the tries
    of a mail that was put off, `ahead` about how many come before one that waits. `is_open` means that staff decide.
    `source_id` is what the shop calls the customer, if it said so.
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
    """A campaign that had a customer among its recipients, and what became of the mail."""

    campaign: Campaign
    delivery: DeliveryStatus

    @property
    def state(self) -> DeliveryState:
        return self.delivery.state

    @property
    def text(self) -> str:
        return self.delivery.text

    @property
    def at(self) -> datetime | None:
        return self.delivery.at


@dataclass(frozen=True)
class RecipientPage:
    """Some recipients by id. `after` is where the next page begins, None after the last."""

    deliveries: Sequence[DeliveryStatus]
    next_after: int | None


# --- what is asked for ------------------------------------------------------------------------------

_COLUMNS = """
  c.id as campaign_id, c.status as campaign_status, c.launched_at, c.finished_at, c.uncertain_policy,
  a.customer_id, u.email_as_given as email, u.name, u.source_id, u.erased_at,
  b.id as batch_id, b.seq, b.status, b.window_start, b.window_end, b.windows, b.lease_until > now() as is_leased,
  k.cursor, a.place, i.state, i.smtp_code, i.text, i.next_at, i.attempts, i.at, i.doubt, now() as asked_at
"""
_JOINS = """
  left join batch_cursor k on k.batch_id = b.id and k.epoch = b.epoch
  left join mail_issue i on i.campaign_id = c.id and i.customer_id = a.customer_id
  left join customer u on u.id = a.customer_id
"""
# The batches of a campaign follow each other by id, so one of each is looked at: the first that reaches so far.
_BATCH_POSITION_JOINS = """
  left join lateral (
    select * from batch where campaign_id = c.id and last_id >= p.customer_id order by last_id limit 1
  ) b on b.first_id <= p.customer_id
  left join lateral (
    select walked.place from (
      select g.place, sum(g.gap) over (order by g.place) as id from unnest(b.gaps) with ordinality as g(gap, place)
    ) walked where walked.id = p.customer_id
  ) w on true
  cross join lateral (select p.customer_id, w.place) a
"""
_LOOKUP_JOINS = _BATCH_POSITION_JOINS + _JOINS
_SELECT_ONE = text(
    f"select {_COLUMNS} from (select cast(:customer as bigint) as customer_id) p "  # noqa: S608
    f"join campaign c on c.id = :campaign {_LOOKUP_JOINS}"
)
_SELECT_BY_CUSTOMER = text(
    f"select {_COLUMNS} from campaign c "  # noqa: S608
    f"cross join (select cast(:customer as bigint) as customer_id) p {_LOOKUP_JOINS} "
    "where a.place is not null order by c.id desc limit :limit"
)
_SELECT_BY_STATE = (
    "select {columns} from (select campaign_id, customer_id from ({rows}) r order by customer_id limit :limit) p "
    "join campaign c on c.id = p.campaign_id {looked_up} order by a.customer_id"
)
_ISSUE_KEYS = (
    "(select campaign_id, customer_id from mail_issue where campaign_id = :campaign and state = {state} {narrowed} "
    "and customer_id > :after order by customer_id limit :limit)"
)
# Of an uncertain mail: it is being tried right now, so it is one that was put off until its outcome is known.
_RETRY_IN_PROGRESS = "next_at > now() and (select status from campaign where id = :campaign) <> 'cancelled'"
_SELECT_BY_BATCH = text(
    f"""
    select {_COLUMNS}, b.last_id
    from (
      select * from batch where campaign_id = :campaign and last_id > :after order by last_id limit :batches
    ) b
    join campaign c on c.id = b.campaign_id
    cross join lateral (
      select cast(sum(g.gap) over (order by g.place) as bigint) as customer_id, g.place
      from unnest(b.gaps) with ordinality as g(gap, place)
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
    """What became of one customer's mail, whether or not the customer is among the recipients."""
    row = db.session.execute(_SELECT_ONE, {"campaign": campaign.id, "customer": customer.id}).one()
    if row.place is None:
        return _to_non_recipient_status(campaign, customer, row)
    return _with_queue_position(row, _to_delivery_status(row))


def list_customer_deliveries(customer_id: int, limit: int = 50) -> list[CampaignDelivery]:
    """Which campaigns had this customer among their frozen recipients, newest first, and what became of each mail."""
    rows = db.session.execute(_SELECT_BY_CUSTOMER, {"customer": customer_id, "limit": limit}).all()
    wanted = select(Campaign).where(Campaign.id.in_([row.campaign_id for row in rows]))
    found = {campaign.id: campaign for campaign in db.session.scalars(wanted)}
    return [
        CampaignDelivery(found[row.campaign_id], _with_queue_position(row, _to_delivery_status(row))) for row in rows
    ]


def list_recipients(
    campaign_id: int,
    state: str = "",
    after: int = 0,
    limit: int = 50,
    code: int | None = None,
    cause: str | None = None,
) -> RecipientPage:
    """Recipients by id: all, those in one state, or of one cause. Nothing of the rest is kept in memory.

    A page of what has no rows looks through some ten thousand recipients, however few of them it shows; it says where
    the next one begins.

    :param cause: only those of this cause with this `code`, see `queries.Cause`.
    """
    if state in RECORDED_STATES:
        fates = _list_recipients_in_state(campaign_id, state, after, limit + 1, code, cause)
        return RecipientPage(fates[:limit], fates[limit - 1].customer_id if len(fates) > limit else None)
    found: list[DeliveryStatus] = []
    for fate, end in _scan_batches(campaign_id, after, 1, BATCHES_PER_PAGE):
        if fate is not None and state in ("", fate.state):
            found.append(fate)
            if len(found) > limit:
                return RecipientPage(found[:limit], found[limit - 1].customer_id)
        after = end
    return RecipientPage(found, after if _has_more(campaign_id, after) else None)


def iter_recipients(campaign_id: int, state: str = "") -> Iterator[DeliveryStatus]:
    """All recipients, or those in one state, by id: some thousand at a time, no transaction stays open in between."""
    for fate, _ in _scan_batches(campaign_id, 0, BATCHES_PER_EXPORT_STEP, None):
        if fate is not None and state in ("", fate.state):
            yield fate


def _list_recipients_in_state(
    campaign_id: int, state: str, after: int, limit: int, code: int | None, cause: str | None
) -> list[DeliveryStatus]:
    narrowed = ""
    if cause is not None:
        narrowed = f"and cause = :cause and smtp_code {'is null' if code is None else '= :code'}"
    if state == "uncertain":
        narrowed += f" and ({_RETRY_IN_PROGRESS}) is not true"
    rows = _ISSUE_KEYS.format(state=":state", narrowed=narrowed)
    if state == "deferred":
        rows += " union all " + _ISSUE_KEYS.format(state="'uncertain'", narrowed=f"{narrowed} and {_RETRY_IN_PROGRESS}")
    statement = _SELECT_BY_STATE.format(columns=_COLUMNS, looked_up=_LOOKUP_JOINS, rows=rows)
    values = {"campaign": campaign_id, "state": state, "after": after, "limit": limit, "code": code, "cause": cause}
    return [_to_delivery_status(row) for row in db.session.execute(text(statement), values)]


def _scan_batches(
    campaign_id: int, after: int, step: int, batches: int | None
) -> Iterator[tuple[DeliveryStatus | None, int]]:
    """The recipients behind one, each with the id up to which everybody has been seen by then."""
    while batches is None or batches > 0:
        rows = db.session.execute(_SELECT_BY_BATCH, {"campaign": campaign_id, "after": after, "batches": step}).all()
        db.session.rollback()
        if not rows:
            return
        for row in rows:
            yield _to_delivery_status(row), row.customer_id
        after = rows[-1].last_id
        yield None, after
        batches = None if batches is None else batches - step


def _has_more(campaign_id: int, after: int) -> bool:
    statement = text("select exists (select 1 from batch where campaign_id = :campaign and last_id > :after)")
    return bool(db.session.execute(statement, {"campaign": campaign_id, "after": after}).scalar())


# --- what follows from the rows -----------------------------------------------------------------------


def _to_delivery_status(row: Row[Any]) -> DeliveryStatus:
    """Of somebody who is among the recipients."""
    index = row.place - 1
    is_settled = index < row.window_start or (_is_window_open(row) and row.cursor is not None and index < row.cursor)
    is_at_work = not is_settled and _is_window_open(row) and index < row.window_end
    fate = DeliveryStatus(
        row.campaign_id, row.customer_id, row.email or "", row.name or "", "waiting", source_id=row.source_id or ""
    )
    if row.state is not None:
        fate = replace(
            fate,
            state=row.state,
            at=row.at,
            # What the relay says to a mail that it took has nothing to tell.
            code=None if row.state in ("skipped", "sent_later") else row.smtp_code,
            text=row.text,
            next_at=row.next_at if row.state in ("deferred", "uncertain") else None,
            attempts=row.attempts,
        )
        if row.state == "uncertain":
            return _to_uncertain_status(row, fate, is_settled, is_at_work)
        if row.state == "deferred" and row.campaign_status == "cancelled":
            return replace(fate, next_at=None, note="The mailing was cancelled, so it is not tried again.")
        if row.state == "sent_later" and row.doubt:
            return replace(fate, note="It may have arrived before, so they may have got it twice.")
        return fate
    if is_settled:
        at = _window_opened_at(row, index)
        before = row.finished_at or row.asked_at
        note = "" if at else f"When is not known, but before {before:%Y-%m-%d %H:%M} UTC."
        return replace(fate, state="sent", at=at, note=note)
    if is_at_work:
        if row.is_leased:
            return replace(fate, state="sending", at=_window_opened_at(row, index))
        note = "The worker that had it has not been heard of; another one finds out what became of it in a minute."
        return replace(fate, state="sending", at=_window_opened_at(row, index), note=note)
    if row.status == "cancelled" or row.campaign_status == "cancelled":
        return replace(fate, state="cancelled", note="The mailing was cancelled before its turn came.")
    return fate


def _is_window_open(row: Row[Any]) -> bool:
    return bool(row.status == "sending" and row.window_end > row.window_start)


def _to_uncertain_status(row: Row[Any], fate: DeliveryStatus, is_settled: bool, is_at_work: bool) -> DeliveryStatus:
    """Whether it is sent again by itself, or staff decide."""
    resends = row.uncertain_policy == "resend" and row.campaign_status in ("sending", "paused")
    if is_at_work:
        return replace(fate, note="It is being sent again at this moment.")
    is_tried = row.next_at is not None and row.next_at > row.asked_at
    if is_tried and row.campaign_status != "cancelled":
        note = "It is being tried now."
        return replace(fate, state="deferred", note=note, next_at=None, attempts=max(0, row.attempts - 1))
    if row.campaign_status != "cancelled" and not is_settled:
        return replace(fate, note="It is sent again by itself when its place in the line comes.")
    if is_tried:
        return replace(fate, note="It is being tried at this moment.")
    if row.next_at is not None and resends:
        return replace(fate, note="It is sent again by itself.")
    words = "Staff decide: send it again, or leave it."
    if row.campaign_status == "cancelled":
        words = "The mailing was cancelled, so it is not sent again."
    return replace(fate, needs_resolution=True, note=words)


def _window_opened_at(row: Row[Any], index: int) -> datetime | None:
    """When the window was opened in which a place of the batch had its turn: the last one that began at or before."""
    found: int | None = None
    for begin, seconds in zip(row.windows[::2], row.windows[1::2], strict=False):
        if begin <= index:
            found = seconds
    return None if found is None or row.launched_at is None else row.launched_at + timedelta(seconds=found)


def _with_queue_position(row: Row[Any], fate: DeliveryStatus) -> DeliveryStatus:
    """With about how many come before, and whether it would be left out if its turn came now."""
    if fate.state != "waiting":
        return fate
    before = db.session.execute(_COUNT_AHEAD, {"campaign": row.campaign_id, "seq": row.seq}).scalar_one()
    ahead = before + row.place - 1 - row.window_start
    reason = customer_queries.find_suppression_reasons([fate.customer_id]).get(fate.customer_id)
    if row.erased_at is not None:
        reason = "erased"
    note = f"Will be left out: {reason}." if reason else ""
    return replace(fate, ahead=max(0, ahead), note=note)


def _to_non_recipient_status(campaign: Campaign, customer: Customer, row: Row[Any]) -> DeliveryStatus:
    fate = DeliveryStatus(campaign.id, customer.id, row.email, row.name, "not_recipient")
    launched_at = campaign.launched_at
    if launched_at is None:
        if campaign.status == "cancelled":
            return replace(fate, note="The mailing was cancelled before it started: nobody got it.")
        return replace(fate, note="The mailing has not been launched: who gets it is settled then.")
    if customer.erased_at is not None:
        return replace(fate, note="Was erased before the recipients were collected.")
    joined_at = db.session.scalar(
        select(AudienceMember.joined_at).where(
            AudienceMember.audience_id == campaign.audience_id, AudienceMember.customer_id == customer.id
        )
    )
    if campaign.audience_id is not None and joined_at is None:
        return replace(fate, note="Is not in the audience that it went to.")
    if campaign.prepared_at is None and customer.id > campaign.prepared_to:
        if campaign.status == "cancelled":
            return replace(fate, state="cancelled", note="The mailing was cancelled before its turn came.")
        return replace(fate, state="waiting", note="The recipients are still being collected.")
    if customer.created_at > launched_at:
        return replace(fate, note="Became a customer after the launch.")
    if joined_at is not None and joined_at > launched_at:
        return replace(fate, note="Joined the audience after the launch.")
    if campaign.kind == "reminder" and redemption_queries.find_redeemed_customer_ids(campaign.offer_id, [customer.id]):
        return replace(fate, note="Has redeemed, so there was nothing to be reminded of.")
    return replace(fate, note="Was not among those to whom it went at the launch.")
