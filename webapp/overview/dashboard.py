"""What the first page shows, from the rows of every room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import Row, exists, func, or_, select

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers.models import Customer, CustomerImport
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer
from webapp.redemptions import guessing
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.models import Redemption

DASHBOARD_DAYS = 30
ENDS_SOON = timedelta(days=3)
CAP_WARNING_RATIO = 0.9
ATTENTION_LIMIT = 10


@dataclass(frozen=True)
class DashboardFigures:
    """The figures on top. `mails` and `share` are of campaigns launched in the last DAYS days.

    `share` is how many redeemed of those who were sent an announcement; None where nobody was.
    """

    live_offers: int
    redemptions_today: int
    redemptions_yesterday: int
    emails_sent: int
    conversion_rate: float | None
    redemptions_per_day: list[tuple[date, int]]


@dataclass(frozen=True)
class OnboardingSteps:
    """How far somebody new has come."""

    has_customers: bool
    latest_offer: Offer | None
    has_launched: bool


@dataclass(frozen=True)
class AttentionList:
    """What somebody should look at. A campaign comes with its offer's name: the subject holds placeholders; one whose
    uncertain mails are to decide also with how many."""

    stalled_campaigns: Sequence[tuple[Campaign, str]]
    uncertain_campaigns: Sequence[tuple[Campaign, str, int]]
    nearly_exhausted_offers: Sequence[Offer]
    offers_ending_soon: Sequence[Offer]
    guessed_offers: Sequence[tuple[Offer, int]]
    failed_imports: Sequence[CustomerImport]

    def __bool__(self) -> bool:
        return any(
            (
                self.stalled_campaigns,
                self.uncertain_campaigns,
                self.nearly_exhausted_offers,
                self.offers_ending_soon,
                self.guessed_offers,
                self.failed_imports,
            )
        )


def get_dashboard_figures(zone: str) -> DashboardFigures:
    """How things are going, by the days of a zone."""
    today = datetime.now(ZoneInfo(zone)).date()
    first = today - timedelta(days=DASHBOARD_DAYS - 1)
    since = datetime.combine(first, time(), ZoneInfo(zone)).astimezone(UTC)
    found = dict(redemption_queries.count_redemptions_per_day(None, since, zone))
    per_day = [(day, found.get(day, 0)) for day in (first + timedelta(days=n) for n in range(DASHBOARD_DAYS))]
    mails, share = _calculate_email_figures(since)
    return DashboardFigures(_count_live_offers(), per_day[-1][1], per_day[-2][1], mails, share, per_day)


def get_onboarding_steps() -> OnboardingSteps | None:
    """How far somebody new has come; None once the first campaign is launched or the first code redeemed."""
    launched = bool(db.session.scalar(select(exists().where(Campaign.launched_at.is_not(None)))))
    if launched or db.session.scalar(select(exists().where(Redemption.offer_id.is_not(None)))):
        return None
    return OnboardingSteps(
        has_customers=bool(db.session.scalar(select(exists().where(Customer.id.is_not(None))))),
        latest_offer=db.session.scalar(select(Offer).order_by(Offer.id.desc()).limit(1)),
        has_launched=launched,
    )


def get_attention_list() -> AttentionList:
    """Campaigns that stand still or have something to decide, offers that are running out, ending or guessed at,
    imports that failed in the last week."""
    cap = func.coalesce(Offer.max_redemptions, 0)
    running_out = _OPEN_OFFERS.where(cap > 0, Offer.redeemed >= cap * CAP_WARNING_RATIO).order_by(
        Offer.ends_at, Offer.id
    )
    ending = _OPEN_OFFERS.where(Offer.ends_at <= func.now() + ENDS_SOON).order_by(Offer.ends_at, Offer.id)
    failed = select(CustomerImport).where(
        CustomerImport.status == "failed", CustomerImport.created_at > func.now() - timedelta(days=7)
    )
    return AttentionList(
        stalled_campaigns=_with_offer_names(campaign_queries.list_campaigns_needing_attention()),
        uncertain_campaigns=_list_uncertain_campaigns(),
        nearly_exhausted_offers=db.session.scalars(running_out.limit(ATTENTION_LIMIT)).all(),
        offers_ending_soon=db.session.scalars(ending.limit(ATTENTION_LIMIT)).all(),
        guessed_offers=_list_guessed_offers(),
        failed_imports=db.session.scalars(failed.order_by(CustomerImport.id.desc()).limit(ATTENTION_LIMIT)).all(),
    )


_OPEN_OFFERS = select(Offer).where(
    Offer.starts_at <= func.now(), or_(Offer.ends_at.is_(None), Offer.ends_at > func.now()), Offer.paused_at.is_(None)
)


def _list_guessed_offers() -> list[tuple[Offer, int]]:
    """Offers whose code is being guessed at, with the wrong tries of the last hour."""
    loudest = guessing.list_top_guessing_alerts(ATTENTION_LIMIT)
    found = offer_queries.find_offers(list(loudest))
    return [(found[offer_id], n) for offer_id, n in loudest.items()]


def _with_offer_names(found: Sequence[Campaign]) -> list[tuple[Campaign, str]]:
    wanted = select(Offer.id, Offer.name).where(Offer.id.in_([campaign.offer_id for campaign in found]))
    names = {row.id: row.name for row in db.session.execute(wanted)}
    return [(campaign, names[campaign.offer_id]) for campaign in found]


def _list_uncertain_campaigns() -> list[tuple[Campaign, str, int]]:
    found = campaign_queries.list_unresolved_by_campaign()
    names = _with_offer_names([campaign for campaign, _ in found])
    return [(campaign, name, n) for (campaign, name), (_, n) in zip(names, found, strict=True)]


def _count_live_offers() -> int:
    room = or_(Offer.max_redemptions.is_(None), Offer.redeemed < Offer.max_redemptions)
    return db.session.scalar(select(func.count()).select_from(_OPEN_OFFERS.where(room).subquery())) or 0


def _calculate_email_figures(since: datetime) -> tuple[int, float | None]:
    """Mails sent by the campaigns launched since a moment, and which share of the announced people redeemed."""
    launched = _list_launched_since(since)
    sent = {
        campaign_id: counts.sent
        for campaign_id, counts in campaign_queries.get_stats_by_campaign([c.id for c in launched]).items()
    }
    announced = [c for c in launched if c.kind == "announcement"]
    people = sum(sent.get(c.id, 0) for c in announced)
    redeemed = sum(redemption_queries.count_redemptions(sorted({c.offer_id for c in announced})).values())
    # Whoever read the code elsewhere redeems too, so this can be more than was mailed.
    return sum(sent.values()), min(1.0, redeemed / people) if people else None


def _list_launched_since(since: datetime) -> Sequence[Row[int, int, str]]:
    return db.session.execute(
        select(Campaign.id, Campaign.offer_id, Campaign.kind).where(Campaign.launched_at >= since)
    ).all()
