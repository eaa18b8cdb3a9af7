"""The demonstration's script: what the shop offers, whom it mailed when, and how that went.

Days are counted from today, hours are those of the shop's clocks.
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

ZONE = "Europe/Berlin"
MANAGER = ("mara.lind@marigold.example", "Mara Lind", "manager")
VIEWER = ("tomas.okafor@marigold.example", "Tomás Okafor", "viewer")
# Nobody knows their secrets: they only have names for the redemptions that came through them.
API_KEYS = ("Web shop", "Till, Harbour Lane")

SHOP = ShopValues(
    name="Marigold Tea House",
    sender_name="Marigold Tea House",
    address="Marigold Tea House\nHarbour Lane 12\n20459 Hamburg\nGermany",
    colour="#b45309",
    reason="You get this mail because you are a customer of Marigold Tea House.",
)

# When the shop took up its list of customers, and when the newsletter's sign-ups came.
FIRST_DAY, SIGN_UPS = -57, -5

Status = Literal["draft", "scheduled", "live", "done", "paused", "halted", "cancelled"]
Day = Callable[..., datetime]


@dataclass(frozen=True)
class Mailing:
    """A mail and how it went. `status` is `live` for the one that a worker really sends, `halted` for one that paused
    by itself. `stopped` is the share of people after which staff stopped it, `killed` how often a worker died."""

    status: Status
    at: datetime | None = None
    kind: str = "announcement"
    subject: str = ""
    text: str = ""
    policy: str = "resend"
    stopped: float | None = None
    killed: int = 0


@dataclass(frozen=True)
class Told:
    """An offer with its whole story. `uses` is how many have redeemed it and stay so, `walk_in` the share of those who
    came without a mail; `former` are the codes it had before: as written, given out, closed."""

    code: str
    name: str
    discount: Discount
    created_at: datetime
    starts_at: datetime
    ends_at: datetime | None = None
    audience: str = ""
    cap: int | None = None
    personal: bool = False
    mailings: tuple[Mailing, ...] = ()
    uses: int = 0
    undone: int = 0
    walk_in: float = 0.1
    paused_at: datetime | None = None
    renewed_at: datetime | None = None
    former: tuple[tuple[str, datetime, datetime | None], ...] = ()
    guessed: bool = False


def days(now: datetime) -> Day:
    """A moment by its day from today and its hour on the shop's clocks."""
    today = now.astimezone(ZoneInfo(ZONE)).date()

    def day(n: int, hour: int = 0, minute: int = 0) -> datetime:
        date = today + timedelta(days=n)
        return datetime(date.year, date.month, date.day, hour, minute, tzinfo=ZoneInfo(ZONE)).astimezone(UTC)

    return day


def percent(n: int) -> Discount:
    return Discount("percent", percent=Decimal(n))


def euros(cents: int) -> Discount:
    return Discount("amount", amount=cents, currency="EUR")


def offers(now: datetime) -> list[Told]:
    """All of them, the oldest first."""
    day = days(now)
    return [*_over(day), *_running(day), *_stopped(day), *_to_come(day)]


def _over(day: Day) -> list[Told]:
    return [
        Told(
            "BIRTHDAY-10",
            "Birthday blend",
            percent(10),
            created_at=day(FIRST_DAY, 11, 20),
            starts_at=day(-56),
            uses=330,
            undone=9,
            walk_in=1.0,
        ),
        Told(
            "A-POT-ON-US",
            "A pot on us",
            euros(500),
            created_at=day(-56, 15, 5),
            starts_at=day(-55),
            ends_at=day(-27),
            audience="Lapsed",
            mailings=(
                Mailing("done", day(-55, 9, 30), subject="We have missed you: {{ offer.discount }} off your next pot"),
                Mailing(
                    "done", day(-34, 17), "reminder", str(REMINDER_SUBJECT), str(REMINDER_TEXT), policy="hold", killed=1
                ),
            ),
            uses=190,
            undone=4,
        ),
        Told(
            "LEAF-20",
            "Loose-leaf weeks",
            percent(20),
            created_at=day(-44, 10, 40),
            starts_at=day(-42),
            ends_at=day(-27),
            mailings=(Mailing("done", day(-42, 8, 15), killed=2),),
            uses=980,
            undone=21,
        ),
    ]


def _running(day: Day) -> list[Told]:
    return [
        Told(
            "TEA15",
            "First flush",
            percent(15),
            created_at=day(-23, 9, 10),
            starts_at=day(-21),
            ends_at=day(22),
            mailings=(
                Mailing("done", day(-20, 10), subject="The first flush is here: {{ offer.discount }} off"),
                Mailing("done", day(-7, 17, 30), "reminder", str(REMINDER_SUBJECT), str(REMINDER_TEXT), killed=1),
            ),
            uses=1280,
            undone=26,
            renewed_at=day(-9, 16),
            former=(
                ("FIRST-FLUSH", day(-23, 9, 10), day(-9, 16, 5)),
                ("FLUSH-15", day(-15, 12), None),
            ),
        ),
        Told(
            "TASTING",
            "Tasting evening",
            euros(2000),
            created_at=day(-15, 14, 30),
            starts_at=day(-14),
            ends_at=day(15),
            audience="VIP",
            cap=150,
            personal=True,
            mailings=(Mailing("done", day(-13, 12), subject="An evening among friends: {{ offer.discount }} off"),),
            uses=150,
            walk_in=0,
            guessed=True,
        ),
        Told(
            "LAST-TINS",
            "Last tins of the season",
            percent(30),
            created_at=day(-11, 11),
            starts_at=day(-10),
            ends_at=day(6),
            audience="Newsletter",
            cap=500,
            mailings=(
                Mailing("done", day(-9, 18), policy="hold", killed=3),
                Mailing("draft", None, "reminder", str(REMINDER_SUBJECT), str(REMINDER_TEXT)),
            ),
            uses=478,
            undone=11,
        ),
        Told(
            "ICED-25",
            "Iced tea season",
            percent(25),
            created_at=day(-3, 10),
            starts_at=day(-1),
            ends_at=day(21),
            mailings=(Mailing("live", None, subject="Iced tea season: {{ offer.discount }} off everything cold"),),
            uses=38,
            walk_in=1.0,
        ),
    ]


def _stopped(day: Day) -> list[Told]:
    return [
        Told(
            "POT-SWAP",
            "Teapot trade-in",
            euros(1500),
            created_at=day(-32, 9),
            starts_at=day(-30),
            ends_at=day(30),
            mailings=(Mailing("cancelled", day(-30, 11), stopped=0.22),),
            uses=74,
            undone=6,
            paused_at=day(-3, 15, 40),
        ),
        Told(
            "MATCHA-12",
            "Matcha month",
            percent(12),
            created_at=day(-6, 16, 20),
            starts_at=day(-5),
            ends_at=day(25),
            audience="Newsletter",
            mailings=(Mailing("halted", day(-4, 9)),),
            uses=130,
            undone=2,
        ),
        Told(
            "FREE-DELIVERY",
            "Free delivery weekend",
            euros(490),
            created_at=day(-2, 13),
            starts_at=day(-2),
            ends_at=day(3),
            audience="Newsletter",
            mailings=(Mailing("paused", day(-1, 9, 45), stopped=0.6),),
            uses=96,
            undone=1,
        ),
    ]


def _to_come(day: Day) -> list[Told]:
    return [
        Told(
            "PREVIEW-18",
            "Preview of the new season",
            percent(18),
            created_at=day(-1, 12),
            starts_at=day(7),
            ends_at=day(38),
            mailings=(Mailing("scheduled", day(7, 9), subject="You see it first: {{ offer.discount }} off"),),
        ),
        Told(
            "OFFICE-GIFTS",
            "Gifts for the office",
            euros(1000),
            created_at=day(-1, 14, 15),
            starts_at=day(14),
            ends_at=day(60),
            audience="VIP",
            cap=300,
            mailings=(Mailing("draft", None, subject="A thank-you that keeps: {{ offer.discount }} off gift boxes"),),
        ),
        Told(
            "STAFF-PICKS",
            "Staff picks",
            percent(5),
            created_at=day(-1, 17),
            starts_at=day(1),
            ends_at=None,
        ),
    ]
