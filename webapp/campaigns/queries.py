"""Queries for campaigns. Those for their statistics are in `stats_queries`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flask_babel import gettext as _
from sqlalchemy import select, text

from webapp.campaigns.models import Campaign
from webapp.core.errors import NotFound
from webapp.core.extensions import db
from webapp.customers.models import AudienceMember, Customer, Suppression
from webapp.offers.models import Offer


def find_campaign(campaign_id: int) -> Campaign | None:
    """Return the campaign with this id, or None."""
    return db.session.get(Campaign, campaign_id)


def list_offer_campaigns(offer_id: int) -> Sequence[Campaign]:
    """Return the campaigns of an offer, newest first."""
    return db.session.scalars(select(Campaign).where(Campaign.offer_id == offer_id).order_by(Campaign.id.desc())).all()


def get_offer_names_by_campaign(campaign_ids: Iterable[int | None]) -> dict[int, str]:
    """Return the offer names of campaigns by campaign id; None as an id is ignored."""
    ids = {campaign_id for campaign_id in campaign_ids if campaign_id is not None}
    if not ids:
        return {}
    rows = db.session.execute(
        select(Campaign.id, Offer.name).join(Offer, Offer.id == Campaign.offer_id).where(Campaign.id.in_(ids))
    )
    return {row.id: row.name for row in rows}


def find_announcement(offer_id: int) -> Campaign | None:
    """Return the announcement of an offer that is not cancelled.

    Its values are read from the database again.
    """
    return db.session.scalar(
        select(Campaign)
        .where(Campaign.offer_id == offer_id, Campaign.kind == "announcement", Campaign.status != "cancelled")
        .execution_options(populate_existing=True)
    )


def list_campaigns(
    before: int | None = None, limit: int = 25, status: str | None = None, offer_id: int | None = None
) -> Sequence[Campaign]:
    """Return campaigns, newest first, optionally of one status or offer.

    One more than `limit` is returned when there are more.
    """
    statement = select(Campaign).order_by(Campaign.id.desc()).limit(limit + 1)
    for column, value in ((Campaign.status, status), (Campaign.offer_id, offer_id)):
        if value is not None:
            statement = statement.where(column == value)
    if before is not None:
        statement = statement.where(Campaign.id < before)
    return db.session.scalars(statement).all()


def list_campaigns_scheduled_by(email: str) -> Sequence[Campaign]:
    """Return the campaigns that a user has scheduled and that are not launched yet, next launch first."""
    scheduled = select(Campaign).where(Campaign.status == "scheduled", Campaign.launched_by == email)
    return db.session.scalars(scheduled.order_by(Campaign.scheduled_at, Campaign.id)).all()


def has_unsuppressed_customers(audience_id: int | None) -> bool:
    """Return whether an audience has a customer who is not suppressed.

    :param audience_id: None for all customers.
    """
    is_suppressed = select(Suppression.email).where(Suppression.email == Customer.email).exists()
    statement = select(Customer.id).where(~is_suppressed, Customer.erased_at.is_(None))
    if audience_id is not None:
        statement = statement.join(AudienceMember, AudienceMember.customer_id == Customer.id).where(
            AudienceMember.audience_id == audience_id
        )
    return db.session.scalar(statement.limit(1)) is not None


def list_preparing_campaign_ids() -> Sequence[int]:
    """Return the ids of campaigns that are being prepared."""
    return db.session.scalars(select(Campaign.id).where(Campaign.status == "preparing")).all()


def has_pending_sends() -> bool:
    """Return whether a sender would find emails to send now."""
    return bool(db.session.execute(_HAS_PENDING_SENDS_SQL).scalar())


_HAS_PENDING_SENDS_SQL = text(
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


def seconds_until_next_batch() -> float | None:
    """Return the seconds until the next lease expires or a delayed batch is due.

    :returns: None if that is more than a minute.
    """
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


# For an uncertain row i of `mail_issue`: no worker is processing it. A killed retry keeps the end of its lease in
# `next_at`; a delivery that its batch has yet to reach again is sent by the batch.
UNRESOLVED_CONDITION = """
  (i.next_at is null or i.next_at <= now()) and not exists (
    select 1 from batch b where b.campaign_id = i.campaign_id and b.status in ('pending', 'sending')
      and b.first_id <= i.customer_id and b.last_id >= i.customer_id
      and i.customer_id > (select coalesce(sum(gap), 0) from unnest(b.gaps[: b.window_start]) gap)
  )
"""
_UNRESOLVED_SQL = f"""
  from mail_issue i join campaign c on c.id = i.campaign_id
  where i.state = 'uncertain' and {UNRESOLVED_CONDITION}
    and not (i.next_at is not null and c.uncertain_policy = 'resend' and c.status in ('sending', 'paused'))
"""
_UNRESOLVED_BY_CAMPAIGN_SQL = text(
    f"select i.campaign_id, count(*) as n {_UNRESOLVED_SQL} group by i.campaign_id order by i.campaign_id desc limit 20"
)
_COUNT_UNRESOLVED_SQL = text(f"select count(*) {_UNRESOLVED_SQL} and i.campaign_id = :campaign")


def list_unresolved_by_campaign() -> list[tuple[Campaign, int]]:
    """Return campaigns with unresolved uncertain deliveries and their number.

    Staff have to resolve them. The newest campaign comes first.
    """
    counts = {row.campaign_id: int(row.n) for row in db.session.execute(_UNRESOLVED_BY_CAMPAIGN_SQL)}
    campaigns = db.session.scalars(select(Campaign).where(Campaign.id.in_(counts)).order_by(Campaign.id.desc()))
    return [(campaign, counts[campaign.id]) for campaign in campaigns]


def count_unresolved(campaign_id: int) -> int:
    """Count the uncertain deliveries of a campaign that only staff can resolve."""
    return int(db.session.execute(_COUNT_UNRESOLVED_SQL, {"campaign": campaign_id}).scalar_one())


def has_campaign_in_progress() -> bool:
    """Return whether a campaign is being prepared or sent, so that its figures change."""
    statement = select(Campaign.id).where(Campaign.status.in_(("preparing", "sending")))
    return db.session.scalar(statement.limit(1)) is not None


def list_campaigns_needing_attention() -> Sequence[Campaign]:
    """Return campaigns that are paused or have a delivery warning."""
    return db.session.scalars(
        select(Campaign)
        .where(
            (Campaign.status == "paused") | (Campaign.delivery_warning.is_not(None) & (Campaign.status == "sending"))
        )
        .order_by(Campaign.id.desc())
        .limit(20)
    ).all()


def get_campaign(campaign_id: int) -> Campaign:
    """Return a campaign, read from the database again.

    :raises NotFound: when there is none.
    """
    campaign = db.session.get(Campaign, campaign_id, populate_existing=True)
    if campaign is None:
        raise NotFound(_("This campaign does not exist."))
    return campaign


def find_current_campaign(offer_id: int, kind: str) -> Campaign | None:
    """Return the announcement of an offer, or its reminder that is not finished.

    A cancelled campaign is not returned.
    """
    statement = select(Campaign).where(
        Campaign.offer_id == offer_id, Campaign.kind == kind, Campaign.cancelled_at.is_(None)
    )
    if kind == "reminder":
        statement = statement.where(Campaign.sent_in_batches.is_(None))
    return db.session.scalar(statement.execution_options(populate_existing=True))
