"""Every SELECT about campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import exists, func, select, text

from webapp.campaigns.models import Batch, Campaign, MailIssue
from webapp.customers.models import AudienceMember, Customer, Suppression
from webapp.extensions import db

UNSENT = ("failed", "deferred", "uncertain", "skipped")
STATES = (*UNSENT, "sent_later")


@dataclass(frozen=True)
class Counts:
    """Where a campaign stands. `rate` is mails per second since it last started, `seconds_left` what follows of it."""

    total: int = 0
    sent: int = 0
    failed: int = 0
    deferred: int = 0
    uncertain: int = 0
    skipped: int = 0
    rate: float | None = None
    seconds_left: int | None = None

    @property
    def settled(self) -> int:
        """Of how many it is known what became."""
        return self.sent + self.failed + self.uncertain + self.skipped

    @property
    def waiting(self) -> int:
        """Who has not been tried yet."""
        return max(0, self.total - self.settled - self.deferred)


@dataclass(frozen=True)
class Issue:
    """What became of one recipient's mail, with the relay's words."""

    customer_id: int
    email: str
    name: str
    state: str
    smtp_code: int | None
    text: str
    next_at: datetime | None
    attempts: int
    at: datetime


@dataclass(frozen=True)
class Mailed:
    """A campaign that had a customer among its recipients, and what became of the mail."""

    campaign: Campaign
    state: str
    text: str
    at: datetime | None


def by_id(campaign_id: int) -> Campaign | None:
    return db.session.get(Campaign, campaign_id)


def of_offer(offer_id: int) -> Sequence[Campaign]:
    """The campaigns of an offer, newest first."""
    return db.session.scalars(select(Campaign).where(Campaign.offer_id == offer_id).order_by(Campaign.id.desc())).all()


def announcement(offer_id: int) -> Campaign | None:
    """The one announcement of an offer that is not cancelled, as it stands on disk."""
    return db.session.scalar(
        select(Campaign)
        .where(Campaign.offer_id == offer_id, Campaign.kind == "announcement", Campaign.status != "cancelled")
        .execution_options(populate_existing=True)
    )


def page(before: int | None = None, limit: int = 25) -> Sequence[Campaign]:
    """Campaigns, newest first; one more than `limit` if there are more."""
    statement = select(Campaign).order_by(Campaign.id.desc()).limit(limit + 1)
    if before is not None:
        statement = statement.where(Campaign.id < before)
    return db.session.scalars(statement).all()


def anyone_to_mail(audience_id: int | None) -> bool:
    """Whether at least one customer of an audience (None: everyone) may be mailed. Stops at the first."""
    listed = select(Suppression.email).where(Suppression.email == Customer.email).exists()
    someone = select(Customer.id).where(~listed, Customer.erased_at.is_(None))
    if audience_id is not None:
        someone = someone.join(AudienceMember, AudienceMember.customer_id == Customer.id).where(
            AudienceMember.audience_id == audience_id
        )
    return db.session.scalar(someone.limit(1)) is not None


_COUNTS = text(
    """
    select c.id, c.total, c.sending_since, c.sent_before, c.status, c.finished_at, now() as at,
      (
        select coalesce(sum(b.sent + case when b.window_end > b.window_start and k.cursor is not null then
          k.cursor - b.window_start - (
            select count(*) from mail_issue i where i.campaign_id = b.campaign_id
              and i.customer_id > (select coalesce(sum(gap), 0) from unnest(b.gaps[: b.window_start]) gap)
              and i.customer_id <= (select sum(gap) from unnest(b.gaps[: k.cursor]) gap)
          ) else 0 end), 0)
        from batch b left join batch_cursor k on k.batch_id = b.id and k.epoch = b.epoch where b.campaign_id = c.id
      ) as sent,
      (
        select jsonb_object_agg(x.state, x.n) from (
          select state, count(*) as n from mail_issue where campaign_id = c.id group by state
        ) x
      ) as issues
    from campaign c where c.id = any(:ids)
    """
)


def counts(campaign_id: int) -> Counts:
    """Where a campaign stands, from its rows alone: sums over batches, and the mails that did not simply go out."""
    return counts_of([campaign_id]).get(campaign_id, Counts())


def counts_of(campaign_ids: Sequence[int]) -> dict[int, Counts]:
    """`counts` of several campaigns at once."""
    found = {}
    for row in db.session.execute(_COUNTS, {"ids": list(campaign_ids)}):
        issues = row.issues or {}
        sent = int(row.sent) + issues.get("sent_later", 0)
        so_far = Counts(row.total, sent, **{state: issues.get(state, 0) for state in UNSENT})
        rate = _rate(sent - row.sent_before, row.sending_since, row.finished_at or row.at)
        left = so_far.waiting if row.status == "sending" else 0
        found[row.id] = replace(
            so_far,
            rate=rate if row.status in ("sending", "done") else None,
            seconds_left=round(left / rate) if rate and left else None,
        )
    return found


def _rate(sent: int, since: datetime | None, until: datetime) -> float | None:
    if since is None or sent <= 0:
        return None
    return sent / max(1.0, (until - since).total_seconds())


def issues(campaign_id: int, states: Sequence[str] = STATES, after: int = 0, limit: int = 50) -> Sequence[Issue]:
    """What did not simply go out, by customer; one more than `limit` if there are more."""
    rows = db.session.execute(
        select(
            MailIssue.customer_id,
            Customer.email_as_given,
            Customer.name,
            MailIssue.state,
            MailIssue.smtp_code,
            MailIssue.text,
            MailIssue.next_at,
            MailIssue.attempts,
            MailIssue.at,
        )
        .join(Customer, Customer.id == MailIssue.customer_id)
        .where(MailIssue.campaign_id == campaign_id, MailIssue.state.in_(states), MailIssue.customer_id > after)
        .order_by(MailIssue.customer_id)
        .limit(limit + 1)
    )
    return [Issue(*row) for row in rows]


def causes(campaign_id: int, limit: int = 8) -> Sequence[tuple[str, int | None, str, int]]:
    """Why mails failed or wait: (state, SMTP code, an example of the words, how many), the commonest first."""
    n = func.count().label("n")
    rows = db.session.execute(
        select(MailIssue.state, MailIssue.smtp_code, func.min(MailIssue.text), n)
        .where(MailIssue.campaign_id == campaign_id, MailIssue.state.in_(UNSENT))
        .group_by(MailIssue.state, MailIssue.smtp_code, func.left(MailIssue.text, 20))
        .order_by(n.desc())
        .limit(limit)
    )
    return [(state, code, words, count) for state, code, words, count in rows]


def of_customer(customer_id: int, limit: int = 50) -> list[Mailed]:
    """Which campaigns had this customer among their frozen recipients, newest first, and what became of each mail."""
    # The batches of a campaign follow each other by id, so one of each is looked at: the first that reaches so far.
    batch = (
        select(Batch.status, Batch.window_start, Batch.first_id, Batch.gaps)
        .where(Batch.campaign_id == Campaign.id, Batch.last_id >= customer_id)
        .order_by(Batch.last_id)
        .limit(1)
        .lateral("batch")
    )
    walk = func.unnest(batch.c.gaps).table_valued("gap", with_ordinality="place").render_derived().lateral("walk")
    walked = select(walk.c.place, func.sum(walk.c.gap).over(order_by=walk.c.place).label("id")).lateral("walked")
    rows = db.session.execute(
        select(
            Campaign,
            batch.c.status,
            batch.c.window_start,
            walked.c.place,
            MailIssue.state,
            MailIssue.text,
            MailIssue.at,
        )
        .select_from(Campaign)
        .join(batch, batch.c.first_id <= customer_id)
        .join(walked, walked.c.id == customer_id)
        .outerjoin(MailIssue, (MailIssue.campaign_id == Campaign.id) & (MailIssue.customer_id == customer_id))
        .order_by(Campaign.id.desc())
        .limit(limit)
    )
    return [
        Mailed(campaign, state or _unremarkable(status, place <= settled), words or "", at)
        for campaign, status, settled, place, state, words, at in rows
    ]


def _unremarkable(batch_status: str, settled: bool) -> str:
    """What no row about a recipient means: it went out, it will, or it never will."""
    if settled:
        return "sent"
    return "cancelled" if batch_status == "cancelled" else "waiting"


def preparing() -> Sequence[int]:
    """Campaigns whose audience is not all cut into batches yet."""
    return db.session.scalars(select(Campaign.id).where(Campaign.status == "preparing")).all()


def is_work() -> bool:
    """Whether a pump would find something to send now."""
    return bool(db.session.execute(_WORK).scalar())


_WORK = text(
    """
    select exists (
      select 1 from batch b join campaign c on c.id = b.campaign_id
      where c.status = 'sending' and b.status in ('pending', 'sending')
        and case b.status when 'pending' then coalesce(b.not_before <= now(), true) else b.lease_until < now() end
    ) or exists (
      select 1 from mail_issue d join campaign c on c.id = d.campaign_id
      where d.next_at <= now() and c.status = 'sending'
        and (d.state = 'deferred' or d.state = 'uncertain' and c.uncertain_policy = 'resend')
    )
    """
)


def is_being_sent(campaign_id: int) -> bool:
    """Whether a worker is at one of its batches: so it is for a moment after a pause, until its window is through."""
    wanted = exists().where(Batch.campaign_id == campaign_id, Batch.status == "sending", Batch.lease_until > func.now())
    return bool(db.session.scalar(select(wanted)))


def next_wake() -> float | None:
    """In how many seconds the next lease ends or the next resting batch may be taken, if within a minute."""
    seconds = db.session.execute(
        text(
            """
            select extract(epoch from
              min(case b.status when 'pending' then b.not_before else b.lease_until end) - now())
            from batch b join campaign c on c.id = b.campaign_id
            where c.status = 'sending' and b.status in ('pending', 'sending')
            """
        )
    ).scalar()
    return float(seconds) if seconds is not None and 0 < seconds <= 60 else None


def attention() -> Sequence[Campaign]:
    """Campaigns that wait for somebody: paused, or unable to reach the relay."""
    return db.session.scalars(
        select(Campaign)
        .where((Campaign.status == "paused") | (Campaign.trouble.is_not(None) & (Campaign.status == "sending")))
        .order_by(Campaign.id.desc())
        .limit(20)
    ).all()
