"""Time zones to choose from, and the ends of the calendar."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from zoneinfo import ZoneInfo

import pytest
from flask import Flask

from webapp.core import local_time
from webapp.core.errors import InvalidInput
from webapp.core.local_time import LocalDateTime


def test_the_zones_to_choose_from_are_utc_and_places() -> None:
    local_time.list_time_zones.cache_clear()

    names = local_time.list_time_zones()

    assert (names[0], list(names[1:])) == ("UTC", sorted(names[1:]))
    assert {"Europe/Berlin", "America/Argentina/Buenos_Aires"} <= set(names)
    assert not {"EST", "GMT", "Etc/GMT+1", "US/Eastern", "SystemV/EST5", "localtime"} & set(names)


@pytest.mark.parametrize("name", ["localtime", "posixrules", "Factory", "", "Europe/Nowhere"])
def test_a_zone_that_postgresql_does_not_know_is_rejected(app: Flask, name: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        local_time.parse_time_zone(name)

    assert [(error.field, error.key) for error in raised.value.errors] == [("time_zone", "time_zone_unknown")]


@pytest.mark.parametrize(("day", "zone"), [(date.min, "Asia/Tokyo"), (date.max, "America/Lima")])
def test_the_first_and_the_last_day_of_the_calendar_have_a_start_in_utc(day: date, zone: str) -> None:
    at = LocalDateTime(day, time(23, 59) if day == date.max else time(0))

    found = local_time.window_start(at, ZoneInfo(zone))

    assert found == datetime.combine(at.day, at.time or time(0), tzinfo=UTC)


def test_the_last_day_of_the_calendar_has_no_end(app: Flask) -> None:
    with pytest.raises(InvalidInput) as raised:
        local_time.window_end(LocalDateTime(date.max), ZoneInfo("UTC"))

    assert [(error.field, error.key) for error in raised.value.errors] == [("ends_at", "time_out_of_range")]


@pytest.mark.parametrize(("hour", "fold"), [(0, 0), (1, 1)])
def test_a_time_that_occurs_twice_keeps_its_fold(hour: int, fold: int) -> None:
    berlin = ZoneInfo("Europe/Berlin")

    twice = local_time.utc_to_local(datetime(2026, 10, 25, hour, 30, tzinfo=UTC), berlin)
    once = local_time.utc_to_local(datetime(2026, 10, 25, 2, 30, tzinfo=UTC), berlin)

    assert (twice, once.fold) == (LocalDateTime(date(2026, 10, 25), time(2, 30), fold), None)


def test_the_second_midnight_of_a_day_is_shown_with_its_time() -> None:
    havana, first = ZoneInfo("America/Havana"), datetime(2026, 11, 1, 4, tzinfo=UTC)
    second = datetime(2026, 11, 1, 5, tzinfo=UTC)
    day = date(2026, 11, 1)

    assert local_time.window_start(LocalDateTime(day), havana) == first
    assert local_time.utc_to_local(first, havana, is_window_end=True) == LocalDateTime(date(2026, 10, 31))
    for is_window_end in (False, True):
        assert local_time.utc_to_local(second, havana, is_window_end=is_window_end) == LocalDateTime(day, time(0), 1)
    assert local_time.window_end(LocalDateTime(day, time(0), 1), havana) == second


def test_an_error_is_about_the_field_and_names_the_time(app: Flask) -> None:
    texts = []
    for day, clock in ((date(2026, 3, 29), time(2, 30)), (date(2026, 10, 25), time(2, 0))):
        with pytest.raises(InvalidInput) as raised:
            local_time.local_to_utc(LocalDateTime(day, clock), ZoneInfo("Europe/Berlin"), "launches_at")
        assert raised.value.errors[0].field == "launches_at"
        texts.append(raised.value.message)

    assert texts[0].startswith("02:30 does not exist on that day in Europe/Berlin")
    assert "in Europe/Berlin, so 02:00 occurs twice" in texts[1]
