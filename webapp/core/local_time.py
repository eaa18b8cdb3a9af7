"""Local days and times of an offer's zone as moments, and back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from webapp.core.errors import FieldError, Invalid

MIDNIGHT = time(0)


@dataclass(frozen=True)
class Local:
    """A day, perhaps with a time, as a clock on the wall of the offer's zone shows it.

    `fold` says which one is meant of a time that the clock shows twice (0 the earlier, 1 the later).
    """

    day: date
    time: time | None = None
    fold: int | None = None


@cache
def zone_names() -> tuple[str, ...]:
    """The zones that people choose from: UTC and those named after places."""
    named = (name for name in available_timezones() if "/" in name and not name.startswith(("Etc/", "SystemV/", "US/")))
    return ("UTC", *sorted(named))


def zone(name: str) -> ZoneInfo:
    """The zone of this name.

    :raises Invalid: `time_zone_unknown`.
    """
    try:
        # `localtime` is whatever this machine's is; no database knows it.
        if name in available_timezones() - {"localtime", "posixrules", "Factory"}:
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        pass
    raise Invalid(FieldError("time_zone", "time_zone_unknown", "Choose a time zone such as Europe/Berlin."))


def start(local: Local, place: ZoneInfo) -> datetime:
    """The moment a window opens: at the time given, or when the day begins.

    :raises Invalid: see `moment`.
    """
    if local.time is None:
        return day_begins(local.day, place)
    return moment(local, place, "starts_at")


def end(local: Local, place: ZoneInfo) -> datetime:
    """The moment a window closes: at the time given, or at the midnight that ends the day.

    :raises Invalid: see `moment`.
    """
    if local.time is None:
        if local.day == date.max:
            raise Invalid(FieldError("ends_at", "time_out_of_range", "Choose a day before the year 2200."))
        return day_begins(local.day + timedelta(days=1), place)
    return moment(local, place, "ends_at")


def day_begins(day: date, place: ZoneInfo) -> datetime:
    """The first moment of a day. Where clocks go forward at midnight, that is the moment they do."""
    return _utc(datetime.combine(day, MIDNIGHT), place, 0)


def moment(local: Local, place: ZoneInfo, field: str) -> datetime:
    """The moment (UTC) at which the clock shows this.

    :raises Invalid: `time_missing` when the clock jumps over it, `time_ambiguous` when it shows it twice and
        nobody said which one is meant.
    """
    naive = datetime.combine(local.day, local.time or MIDNIGHT)
    first, second = _utc(naive, place, 0), _utc(naive, place, 1)
    if first == second:
        return first
    if first.astimezone(place).replace(tzinfo=None) != naive:
        raise Invalid(
            FieldError(
                field,
                "time_missing",
                f"{naive:%H:%M} does not exist on that day in {place.key}: clocks go forward then. "
                "Choose another time.",
            )
        )
    if local.fold is None:
        raise Invalid(
            FieldError(
                field,
                "time_ambiguous",
                f"Clocks go back on that day in {place.key}, so {naive:%H:%M} comes twice. Say which one you mean.",
            )
        )
    return second if local.fold else first


def shown(at: datetime, place: ZoneInfo, *, closes: bool = False) -> Local:
    """What the clock shows at a moment, the way `start` (or, when it `closes` a window, `end`) reads it."""
    local = at.astimezone(place)
    if local.time() == MIDNIGHT and _utc(local.replace(tzinfo=None), place, 0) == at:
        return Local(local.date() - timedelta(days=1) if closes else local.date())
    naive = local.replace(tzinfo=None)
    twice = _utc(naive, place, 0) != _utc(naive, place, 1)
    return Local(local.date(), local.time(), local.fold if twice else None)


def _utc(naive: datetime, place: ZoneInfo, fold: int) -> datetime:
    try:
        return naive.replace(tzinfo=place, fold=fold).astimezone(UTC)
    except OverflowError:
        # The first and last days of the calendar have no neighbours; offers.actions refuses such years by name.
        return naive.replace(tzinfo=UTC)
