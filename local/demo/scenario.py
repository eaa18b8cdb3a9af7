"""The scenario of the demo: the shop, its staff, its offers and their campaigns.

Days are counted from today; hours are local to the shop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal
from zoneinfo import ZoneInfo

from webapp.campaigns.content.placeholders import REMINDER_SUBJECT, REMINDER_TEXT
from webapp.core.money import Discount
from webapp.shop.models import ShopValues

TIME_ZONE = "Europe/Berlin"


@dataclass(frozen=True)
class StaffMember:
    """A staff account of the demo."""

    email: str
    name: str
    role: Literal["manager", "viewer"]


MANAGER = StaffMember("mara.lind@marigold.example", "Mara Lind", "manager")
VIEWER = StaffMember("tomas.okafor@marigold.example", "Tomás Okafor", "viewer")
# Their secrets are random and never shown: the keys only name the client of a redemption.
API_KEY_NAMES = ("Web shop", "Till, Harbour Lane")

SHOP = ShopValues(
    name="Marigold Tea House",
    sender_name="Marigold Tea House",
    address="Marigold Tea House\nHarbour Lane 12\n20459 Hamburg\nGermany",
    colour="#b45309",
)

# The days of the first import and of the newsletter sign-ups.
FIRST_DAY, SIGN_UP_DAY = -57, -5

CampaignOutcome = Literal["draft", "scheduled", "live", "done", "paused", "auto_paused", "cancelled"]
# Converts a local time of the shop to UTC: the day relative to today, the hour and the minute.
DayConverter = Callable[..., datetime]


@dataclass(frozen=True)
class CampaignPlan:
    """A campaign and its outcome.

    `outcome` is the status of the campaign, except `live` (launched at the end of seeding; the worker sends it) and
    `auto_paused` (paused because too many deliveries failed). `launch_at` is in the future for a scheduled campaign.
    `stopped_after` is the share of recipients after which staff paused or cancelled it, `worker_deaths` the number of
    times that a worker was killed while sending.
    """

    outcome: CampaignOutcome
    launch_at: datetime | None = None
    kind: str = "announcement"
    subject: str = ""
    text: str = ""
    uncertain_policy: str = "resend"
    stopped_after: float | None = None
    worker_deaths: int = 0


@dataclass(frozen=True)
class OfferPlan:
    """An offer and its history.

    `redemptions` is the number of redemptions without those rolled back, `rollbacks` the number of these,
    `walk_in_share` the share of customers who redeem without an email. `former_codes` are the codes that were replaced:
    as written, created, closed (None while the code still works). With `under_attack`, many addresses were tried with
    the code shortly before seeding.
    """

    code: str
    name: str
    discount: Discount
    created_at: datetime
    starts_at: datetime
    ends_at: datetime | None = None
    audience: str = ""
    max_redemptions: int | None = None
    personal_code_required: bool = False
    campaigns: tuple[CampaignPlan, ...] = ()
    redemptions: int = 0
    rollbacks: int = 0
    walk_in_share: float = 0.1
    paused_at: datetime | None = None
    code_renewed_at: datetime | None = None
    former_codes: tuple[tuple[str, datetime, datetime | None], ...] = ()
    under_attack: bool = False

    def all_codes(self) -> list[tuple[str, datetime, datetime | None]]:
        """Return the former codes and the current one: as written, created, closed."""
        return [*self.former_codes, (self.code, self.code_renewed_at or self.created_at, None)]


def create_day_converter(now: datetime) -> DayConverter:
    """Return a function that converts local times of the shop to UTC.

    :param now: the time whose local date is today.
    """
    today = now.astimezone(ZoneInfo(TIME_ZONE)).date()

    def day(n: int, hour: int = 0, minute: int = 0) -> datetime:
        date = today + timedelta(days=n)
        return datetime(date.year, date.month, date.day, hour, minute, tzinfo=ZoneInfo(TIME_ZONE)).astimezone(UTC)

    return day


def _percent(n: int) -> Discount:
    return Discount("percent", percent=Decimal(n))


def _euros(cents: int) -> Discount:
    return Discount("amount", amount=cents, currency="EUR")


def plan_offers(now: datetime) -> list[OfferPlan]:
    """Return the plans of all offers.

    :param now: the end of the history, with a time zone.
    """
    day = create_day_converter(now)
    return [
        *_plan_oldest_offers(day),
        *_plan_running_offers(day),
        *_plan_offers_with_stopped_campaigns(day),
        *_plan_future_offers(day),
    ]


def _plan_oldest_offers(day: DayConverter) -> list[OfferPlan]:
    return [
        OfferPlan(
            "BIRTHDAY-10",
            "Birthday blend",
            _percent(10),
            created_at=day(FIRST_DAY, 11, 20),
            starts_at=day(-56),
            redemptions=330,
            rollbacks=9,
            walk_in_share=1.0,
        ),
        OfferPlan(
            "A-POT-ON-US",
            "A pot on us",
            _euros(500),
            created_at=day(-56, 15, 5),
            starts_at=day(-55),
            ends_at=day(-27),
            audience="Lapsed",
            campaigns=(
                CampaignPlan(
                    "done", day(-55, 9, 30), subject="We have missed you: {{ offer.discount }} off your next pot"
                ),
                CampaignPlan(
                    "done",
                    day(-34, 17),
                    "reminder",
                    str(REMINDER_SUBJECT),
                    str(REMINDER_TEXT),
                    uncertain_policy="hold",
                    worker_deaths=1,
                ),
            ),
            redemptions=190,
            rollbacks=4,
        ),
        OfferPlan(
            "LEAF-20",
            "Loose-leaf weeks",
            _percent(20),
            created_at=day(-44, 10, 40),
            starts_at=day(-42),
            ends_at=day(-27),
            campaigns=(CampaignPlan("done", day(-42, 8, 15), worker_deaths=2),),
            redemptions=980,
            rollbacks=21,
        ),
    ]


def _plan_running_offers(day: DayConverter) -> list[OfferPlan]:
    return [
        OfferPlan(
            "TEA15",
            "First flush",
            _percent(15),
            created_at=day(-23, 9, 10),
            starts_at=day(-21),
            ends_at=day(22),
            campaigns=(
                CampaignPlan("done", day(-20, 10), subject="The first flush is here: {{ offer.discount }} off"),
                CampaignPlan(
                    "done", day(-7, 17, 30), "reminder", str(REMINDER_SUBJECT), str(REMINDER_TEXT), worker_deaths=1
                ),
            ),
            redemptions=1280,
            rollbacks=26,
            code_renewed_at=day(-9, 16),
            former_codes=(
                ("FIRST-FLUSH", day(-23, 9, 10), day(-9, 16, 5)),
                ("FLUSH-15", day(-15, 12), None),
            ),
        ),
        OfferPlan(
            "TASTING",
            "Tasting evening",
            _euros(2000),
            created_at=day(-15, 14, 30),
            starts_at=day(-14),
            ends_at=day(15),
            audience="VIP",
            max_redemptions=150,
            personal_code_required=True,
            campaigns=(
                CampaignPlan("done", day(-13, 12), subject="An evening among friends: {{ offer.discount }} off"),
            ),
            redemptions=150,
            walk_in_share=0,
            under_attack=True,
        ),
        OfferPlan(
            "LAST-TINS",
            "Last tins of the season",
            _percent(30),
            created_at=day(-11, 11),
            starts_at=day(-10),
            ends_at=day(6),
            audience="Newsletter",
            max_redemptions=500,
            campaigns=(
                CampaignPlan("done", day(-9, 18), uncertain_policy="hold", worker_deaths=3),
                CampaignPlan("draft", None, "reminder", str(REMINDER_SUBJECT), str(REMINDER_TEXT)),
            ),
            redemptions=478,
            rollbacks=11,
        ),
        OfferPlan(
            "ICED-25",
            "Iced tea season",
            _percent(25),
            created_at=day(-3, 10),
            starts_at=day(-1),
            ends_at=day(21),
            campaigns=(
                CampaignPlan("live", None, subject="Iced tea season: {{ offer.discount }} off everything cold"),
            ),
            redemptions=38,
            walk_in_share=1.0,
        ),
    ]


def _plan_offers_with_stopped_campaigns(day: DayConverter) -> list[OfferPlan]:
    return [
        OfferPlan(
            "POT-SWAP",
            "Teapot trade-in",
            _euros(1500),
            created_at=day(-32, 9),
            starts_at=day(-30),
            ends_at=day(30),
            campaigns=(CampaignPlan("cancelled", day(-30, 11), stopped_after=0.22),),
            redemptions=74,
            rollbacks=6,
            paused_at=day(-3, 15, 40),
        ),
        OfferPlan(
            "MATCHA-12",
            "Matcha month",
            _percent(12),
            created_at=day(-6, 16, 20),
            starts_at=day(-5),
            ends_at=day(25),
            audience="Newsletter",
            campaigns=(CampaignPlan("auto_paused", day(-4, 9)),),
            redemptions=130,
            rollbacks=2,
        ),
        OfferPlan(
            "FREE-DELIVERY",
            "Free delivery weekend",
            _euros(490),
            created_at=day(-2, 13),
            starts_at=day(-2),
            ends_at=day(3),
            audience="Newsletter",
            campaigns=(CampaignPlan("paused", day(-1, 9, 45), stopped_after=0.6),),
            redemptions=96,
            rollbacks=1,
        ),
    ]


def _plan_future_offers(day: DayConverter) -> list[OfferPlan]:
    return [
        OfferPlan(
            "PREVIEW-18",
            "Preview of the new season",
            _percent(18),
            created_at=day(-1, 12),
            starts_at=day(7),
            ends_at=day(38),
            campaigns=(CampaignPlan("scheduled", day(7, 9), subject="You see it first: {{ offer.discount }} off"),),
        ),
        OfferPlan(
            "OFFICE-GIFTS",
            "Gifts for the office",
            _euros(1000),
            created_at=day(-1, 14, 15),
            starts_at=day(14),
            ends_at=day(60),
            audience="VIP",
            max_redemptions=300,
            campaigns=(
                CampaignPlan("draft", None, subject="A thank-you that keeps: {{ offer.discount }} off gift boxes"),
            ),
        ),
        OfferPlan(
            "STAFF-PICKS",
            "Staff picks",
            _percent(5),
            created_at=day(-1, 17),
            starts_at=day(1),
            ends_at=None,
        ),
    ]
