"""Queries for the figures, first steps and attention list of the dashboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Row, exists, func, or_, select

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers.models import Customer, CustomerImport
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferCounter
from webapp.redemptions import address_limit, count_queries, guessing
from webapp.redemptions.models import Redemption
from webapp.shop import queries as shop_queries

DASHBOARD_DAYS = 30
ENDS_SOON = timedelta(days=3)
CAP_WARNING_RATIO = 0.9
ATTENTION_LIMIT = 10


@dataclass(frozen=True)
class DashboardFigures:
    """The figures at the top of the dashboard.

    :param emails_sent: by campaigns launched in the last `DASHBOARD_DAYS` days.
    :param conversion_rate: redemptions per email, from 0 to 1, of the announcements launched in these days; None if
        there are no such emails.
    :param redemptions_per_day: a day and its redemptions, for each of these days, oldest first.
    """

    live_offers: int
    redemptions_today: int
    redemptions_yesterday: int
    emails_sent: int
    conversion_rate: float | None
    redemptions_per_day: list[tuple[date, int]]


@dataclass(frozen=True)
class OnboardingSteps:
    """The first steps that are done.

    :param latest_offer: the latest offer that has not ended.
    """

    is_shop_named: bool
    has_customers: bool
    latest_offer: Offer | None


@dataclass(frozen=True)
class AttentionList:
    """The objects that need the attention of staff.

    Campaigns come with the name of their offer, as their subject may contain placeholders; those with uncertain
    deliveries also with their number. Offers with a guessing alert come with their failed attempts in the last hour;
    those over the limit of customers per client address with the number of addresses that exceeded it.
    """

    stalled_campaigns: Sequence[tuple[Campaign, str]]
    uncertain_campaigns: Sequence[tuple[Campaign, str, int]]
    nearly_used_up_offers: Sequence[Offer]
    offers_ending_soon: Sequence[Offer]
    offers_with_guessing_alert: Sequence[tuple[Offer, int]]
    offers_over_address_limit: Sequence[tuple[Offer, int]]
    failed_imports: Sequence[CustomerImport]

    def __bool__(self) -> bool:
        return any(
            (
                self.stalled_campaigns,
                self.uncertain_campaigns,
                self.nearly_used_up_offers,
                self.offers_ending_soon,
                self.offers_with_guessing_alert,
                self.offers_over_address_limit,
                self.failed_imports,
            )
        )


def get_dashboard_figures(zone: str) -> DashboardFigures:
    """Return the figures for today and the days before in a time zone."""
    today = datetime.now(ZoneInfo(zone)).date()
    first_day = today - timedelta(days=DASHBOARD_DAYS - 1)
    since = datetime.combine(first_day, time(), ZoneInfo(zone)).astimezone(UTC)
    counts = dict(count_queries.count_redemptions_per_day(None, since, zone))
    per_day = [
        (day, counts.get(day, 0)) for day in (first_day + timedelta(days=offset) for offset in range(DASHBOARD_DAYS))
    ]
    emails_sent, conversion_rate = _calculate_email_figures(since)
    return DashboardFigures(
        live_offers=_count_live_offers(),
        redemptions_today=per_day[-1][1],
        redemptions_yesterday=per_day[-2][1],
        emails_sent=emails_sent,
        conversion_rate=conversion_rate,
        redemptions_per_day=per_day,
    )


def get_onboarding_steps() -> OnboardingSteps | None:
    """Return the first steps that are done.

    :returns: None once a campaign was launched or a code redeemed.
    """
    has_launched = db.session.scalar(select(exists().where(Campaign.launched_at.is_not(None))))
    if has_launched or db.session.scalar(select(exists().where(Redemption.offer_id.is_not(None)))):
        return None
    return OnboardingSteps(
        is_shop_named=shop_queries.get_shop().is_named,
        has_customers=bool(db.session.scalar(select(exists().where(Customer.id.is_not(None))))),
        latest_offer=db.session.scalar(select(Offer).where(_HAS_NOT_ENDED).order_by(Offer.id.desc()).limit(1)),
    )


def get_attention_list() -> AttentionList:
    """Return the objects that need attention.

    These are campaigns that are stalled or have uncertain deliveries to resolve; offers that are nearly used up, end
    soon, have a guessing alert, or are over the limit of customers per client address; and imports that failed in the
    last week.
    """
    cap = func.coalesce(OfferCounter.max_redemptions, 0)
    nearly_used_up = _CURRENT_OFFERS.where(cap > 0, OfferCounter.redeemed >= cap * CAP_WARNING_RATIO).order_by(
        Offer.ends_at, Offer.id
    )
    ending_soon = _CURRENT_OFFERS.where(Offer.ends_at <= func.now() + ENDS_SOON).order_by(Offer.ends_at, Offer.id)
    failed = select(CustomerImport).where(
        CustomerImport.status == "failed", CustomerImport.created_at > func.now() - timedelta(days=7)
    )
    return AttentionList(
        stalled_campaigns=_add_offer_names(campaign_queries.list_campaigns_needing_attention()),
        uncertain_campaigns=_list_uncertain_campaigns(),
        nearly_used_up_offers=db.session.scalars(nearly_used_up.limit(ATTENTION_LIMIT)).all(),
        offers_ending_soon=db.session.scalars(ending_soon.limit(ATTENTION_LIMIT)).all(),
        offers_with_guessing_alert=_add_offers(guessing.list_top_guessing_alerts(ATTENTION_LIMIT)),
        offers_over_address_limit=_add_offers(address_limit.list_offers_over_address_limit(ATTENTION_LIMIT)),
        failed_imports=db.session.scalars(failed.order_by(CustomerImport.id.desc()).limit(ATTENTION_LIMIT)).all(),
    )


_HAS_NOT_ENDED = or_(Offer.ends_at.is_(None), Offer.ends_at > func.now())
_CURRENT_OFFERS = offer_queries.SELECT_OFFERS.where(
    Offer.starts_at <= func.now(), _HAS_NOT_ENDED, Offer.paused_at.is_(None)
)


def _add_offers(numbers_by_offer: Mapping[int, int]) -> list[tuple[Offer, int]]:
    """Return the offers with these ids and their numbers, in the same order."""
    offers = offer_queries.find_offers(list(numbers_by_offer))
    return [(offers[offer_id], number) for offer_id, number in numbers_by_offer.items()]


def _add_offer_names(campaigns: Sequence[Campaign]) -> list[tuple[Campaign, str]]:
    statement = select(Offer.id, Offer.name).where(Offer.id.in_([campaign.offer_id for campaign in campaigns]))
    names = {row.id: row.name for row in db.session.execute(statement)}
    return [(campaign, names[campaign.offer_id]) for campaign in campaigns]


def _list_uncertain_campaigns() -> list[tuple[Campaign, str, int]]:
    unresolved = campaign_queries.list_unresolved_by_campaign()
    campaigns_with_names = _add_offer_names([campaign for campaign, _ in unresolved])
    return [
        (campaign, name, count) for (campaign, name), (_, count) in zip(campaigns_with_names, unresolved, strict=True)
    ]


def _count_live_offers() -> int:
    live_offers = _CURRENT_OFFERS.where(offer_queries.IS_BELOW_CAP).subquery()
    return db.session.scalar(select(func.count()).select_from(live_offers)) or 0


def _calculate_email_figures(since: datetime) -> tuple[int, float | None]:
    """Return emails sent and conversion rate of campaigns launched since a time."""
    launched_campaigns = _list_launched_since(since)
    sent = {
        campaign_id: counts.sent
        for campaign_id, counts in stats_queries.get_stats_by_campaign([row.id for row in launched_campaigns]).items()
    }
    announcements = [campaign for campaign in launched_campaigns if campaign.kind == "announcement"]
    announcement_emails = sum(sent.get(campaign.id, 0) for campaign in announcements)
    redeemed = sum(count_queries.count_redemptions(sorted({campaign.offer_id for campaign in announcements})).values())
    # Customers who learned the code elsewhere redeem too, so there can be more redemptions than emails.
    return sum(sent.values()), min(1.0, redeemed / announcement_emails) if announcement_emails else None


def _list_launched_since(since: datetime) -> Sequence[Row[int, int, str]]:
    return db.session.execute(
        select(Campaign.id, Campaign.offer_id, Campaign.kind).where(Campaign.launched_at >= since)
    ).all()
