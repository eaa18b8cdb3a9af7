"""Local days and times of an offer's zone as moments, and back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from webapp.core.errors import FieldError, InvalidInput

MIDNIGHT = time(0)


@dataclass(frozen=True)
class LocalDateTime:
    """A day, perhaps with a time, as a clock on the wall of the offer's zone shows it.

    `fold` says which one is meant of a time that the clock shows twice (0 the earlier, 1 the later).
    """

    day: date
    time: time | None = None
    fold: int | None = None


@cache
def list_time_zones() -> tuple[str, ...]:
    """The zones that people choose from: UTC and those named after places."""
    named = (name for name in available_timezones() if "/" in name and not name.startswith(("Etc/", "SystemV/", "US/")))
    return ("UTC", *sorted(named))


def parse_time_zone(name: str) -> ZoneInfo:
    """The zone of this name.

    :raises Invalid: `time_zone_unknown`.
    """
    try:
        # `localtime` is whatever this machine's is; no database knows it.
        if name in available_timezones() - {"localtime", "posixrules", "Factory"}:
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        pass
    raise InvalidInput(FieldError("time_zone", "time_zone_unknown", "Choose a time zone such as Europe/Berlin."))


def window_start(local: LocalDateTime, place: ZoneInfo) -> datetime:
    """The moment a window opens: at the time given, or when the day begins.

    :raises Invalid: see `moment`.
    """
    if local.time is None:
        return start_of_day(local.day, place)
    return local_to_utc(local, place, "starts_at")


def window_end(local: LocalDateTime, place: ZoneInfo) -> datetime:
    """The moment a window closes: at the time given, or at the midnight that ends the day.

    :raises Invalid: see `moment`.
    """
    if local.time is None:
        if local.day == date.max:
            raise InvalidInput(FieldError("ends_at", "time_out_of_range", "Choose a day before the year 2200."))
        return start_of_day(local.day + timedelta(days=1), place)
    return local_to_utc(local, place, "ends_at")


def start_of_day(day: date, place: ZoneInfo) -> datetime:
    """The first moment of a day. Where clocks go forward at midnight, that is the moment they do."""
    return _to_utc_with_fold(datetime.combine(day, MIDNIGHT), place, 0)


def local_to_utc(local: LocalDateTime, place: ZoneInfo, field: str) -> datetime:
    """The moment (UTC) at which the clock shows this.

    :raises Invalid: `time_missing` when the clock jumps over it, `time_ambiguous` when it shows it twice and
        nobody said which one is meant.
    """
    naive = datetime.combine(local.day, local.time or MIDNIGHT)
    first, second = _to_utc_with_fold(naive, place, 0), _to_utc_with_fold(naive, place, 1)
    if first == second:
        return first
    if first.astimezone(place).replace(tzinfo=None) != naive:
        raise InvalidInput(
            FieldError(
                field,
                "time_missing",
                f"{naive:%H:%M} does not exist on that day in {place.key}: clocks go forward then. "
                "Choose another time.",
            )
        )
    if local.fold is None:
        raise InvalidInput(
            FieldError(
                field,
                "time_ambiguous",
                f"Clocks go back on that day in {place.key}, so {naive:%H:%M} comes twice. Say which one you mean.",
            )
        )
    return second if local.fold else first


def utc_to_local(at: datetime, place: ZoneInfo, *, closes: bool = False) -> LocalDateTime:
    """What the clock shows at a moment, the way `start` (or, when it `closes` a window, `end`) reads it."""
    local = at.astimezone(place)
    if local.time() == MIDNIGHT and _to_utc_with_fold(local.replace(tzinfo=None), place, 0) == at:
        return LocalDateTime(local.date() - timedelta(days=1) if closes else local.date())
    naive = local.replace(tzinfo=None)
    twice = _to_utc_with_fold(naive, place, 0) != _to_utc_with_fold(naive, place, 1)
    return LocalDateTime(local.date(), local.time(), local.fold if twice else None)


def _to_utc_with_fold(naive: datetime, place: ZoneInfo, fold: int) -> datetime:
    try:
        return naive.replace(tzinfo=place, fold=fold).astimezone(UTC)
    except OverflowError:
        # The first and last days of the calendar have no neighbours; offers.actions refuses such years by name.
        return naive.replace(tzinfo=UTC)
