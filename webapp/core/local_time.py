"""Convert local dates and times in an offer's time zone to UTC and back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from flask_babel import gettext as _

from webapp.core.errors import FieldError, InvalidInput

MIDNIGHT = time(0)


@dataclass(frozen=True)
class LocalDateTime:
    """A date, optionally with a wall-clock time, in the time zone of an offer.

    `fold` selects one of two equal wall-clock times when clocks go back (0 the earlier, 1 the later; see PEP 495).
    """

    day: date
    time: time | None = None
    fold: int | None = None


@cache
def list_time_zones() -> tuple[str, ...]:
    """Return the time zones to choose from: UTC and those named after places, sorted."""
    region_names = (
        name for name in available_timezones() if "/" in name and not name.startswith(("Etc/", "SystemV/", "US/"))
    )
    return ("UTC", *sorted(region_names))


@cache
def _known_time_zones() -> frozenset[str]:
    # `localtime` is the zone of this machine; PostgreSQL does not know it.
    return frozenset(available_timezones() - {"localtime", "posixrules", "Factory"})


def parse_time_zone(name: str) -> ZoneInfo:
    """Return the time zone of this name.

    :raises InvalidInput: `time_zone_unknown`.
    """
    try:
        if name in _known_time_zones():
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        pass
    raise InvalidInput(FieldError("time_zone", "time_zone_unknown", _("Choose a time zone such as Europe/Berlin.")))


def window_start(local: LocalDateTime, time_zone: ZoneInfo) -> datetime:
    """Return the start of a window in UTC: its time, or the start of its day.

    :raises InvalidInput: see `local_to_utc`.
    """
    if local.time is None:
        return start_of_day(local.day, time_zone)
    return local_to_utc(local, time_zone, "starts_at")


def window_end(local: LocalDateTime, time_zone: ZoneInfo) -> datetime:
    """Return the end of a window in UTC: its time, or the midnight that ends the day.

    :raises InvalidInput: `time_out_of_range` for the last day of the calendar; see also `local_to_utc`.
    """
    if local.time is None:
        if local.day == date.max:
            raise InvalidInput(FieldError("ends_at", "time_out_of_range", _("Choose a day before the year 2200.")))
        return start_of_day(local.day + timedelta(days=1), time_zone)
    return local_to_utc(local, time_zone, "ends_at")


def start_of_day(day: date, time_zone: ZoneInfo) -> datetime:
    """Return the start of a day in UTC.

    Where clocks go forward at midnight, that is the moment of the change.
    """
    return _to_utc_with_fold(datetime.combine(day, MIDNIGHT), time_zone, 0)


def local_to_utc(local: LocalDateTime, time_zone: ZoneInfo, field: str) -> datetime:
    """Convert a local time to UTC.

    :param field: the input field that an error is about.
    :raises InvalidInput: `time_missing` when clocks skip this time, `time_ambiguous` when it occurs twice and `fold` is
        not set.
    """
    naive = datetime.combine(local.day, local.time or MIDNIGHT)
    first, second = _to_utc_with_fold(naive, time_zone, 0), _to_utc_with_fold(naive, time_zone, 1)
    if first == second:
        return first
    clock_time = f"{naive:%H:%M}"
    if first.astimezone(time_zone).replace(tzinfo=None) != naive:
        message = _(
            "%(time)s does not exist on that day in %(zone)s: clocks go forward then. Choose another time.",
            time=clock_time,
            zone=time_zone.key,
        )
        raise InvalidInput(FieldError(field, "time_missing", message))
    if local.fold is None:
        message = _(
            "Clocks go back on that day in %(zone)s, so %(time)s occurs twice. Choose which one you mean.",
            time=clock_time,
            zone=time_zone.key,
        )
        raise InvalidInput(FieldError(field, "time_ambiguous", message))
    return second if local.fold else first


def utc_to_local(at: datetime, time_zone: ZoneInfo, *, is_window_end: bool = False) -> LocalDateTime:
    """Convert a time to a local date and time.

    `window_start`, or `window_end` if `is_window_end`, converts it back to the same time.
    """
    local = at.astimezone(time_zone)
    if local.time() == MIDNIGHT and _to_utc_with_fold(local.replace(tzinfo=None), time_zone, 0) == at:
        return LocalDateTime(local.date() - timedelta(days=1) if is_window_end else local.date())
    naive = local.replace(tzinfo=None)
    is_ambiguous = _to_utc_with_fold(naive, time_zone, 0) != _to_utc_with_fold(naive, time_zone, 1)
    return LocalDateTime(local.date(), local.time(), local.fold if is_ambiguous else None)


def _to_utc_with_fold(naive: datetime, time_zone: ZoneInfo, fold: int) -> datetime:
    try:
        return naive.replace(tzinfo=time_zone, fold=fold).astimezone(UTC)
    except OverflowError:
        # The first and last day of the calendar cannot be converted; offers.actions rejects such years.
        return naive.replace(tzinfo=UTC)
