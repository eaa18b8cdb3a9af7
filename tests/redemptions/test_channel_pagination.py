"""Lists of a rarely used channel are scanned in limited steps and are complete."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.core.extensions import db
from webapp.redemptions import hourly_counts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter

# The number of rows that one step scans here.
SCAN_LIMIT = 10


@pytest.fixture(autouse=True)
def low_scan_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redemption_queries, "SCAN_LIMIT", SCAN_LIMIT)


@pytest.fixture
def offers(make_offer: MakeOffer, make_customer: MakeCustomer) -> list[int]:
    """Two offers with sixty redemptions each, one every half hour.

    The first and the last redemption of each are by staff.
    """
    ids = [make_offer("SUMMER25").id, make_offer("WINTER10").id]
    for n in range(60):
        make_customer(f"c{n}@example.com")
    db.session.execute(
        text(
            "insert into redemption (customer_id, offer_id, redeemed_at, channel)"
            " select c.n, o.id, now() - (c.n - 1) * interval '30 minutes',"
            " case when c.n in (1, 60) then 'staff' else 'form' end"
            " from (select id, row_number() over (order by id) as n from customer) c, offer o"
        )
    )
    db.session.commit()
    hourly_counts.update_hourly_counts()
    return ids


def fetch_pages(api: Any, query: str) -> list[list[str]]:
    """Return the ids on each page of a list."""
    pages: list[list[str]] = []
    response = api.get(f"/api/v1/redemptions?{query}").json
    while len(pages) < 200:
        pages.append([item["id"] for item in response["redemptions"]])
        if response["next_cursor"] is None:
            return pages
        response = api.get(f"/api/v1/redemptions?{query}&cursor={response['next_cursor']}").json
    raise AssertionError("too many pages")


@pytest.mark.parametrize("query", ["", "&offer=SUMMER25", "&limit=1", "&since=2020-01-01T00:00:00Z"])
@pytest.mark.parametrize(("channel", "per_offer"), [("staff", 2), ("form", 58), ("api", 0)])
@pytest.mark.usefixtures("offers")
def test_pages_contain_every_redemption_once_newest_first(api: Any, query: str, channel: str, per_offer: int) -> None:
    pages = fetch_pages(api, f"channel={channel}{query}")

    found = [public_id for page in pages for public_id in page]
    expected = [
        redemption.public_id
        for redemption in redemption_queries.list_latest_redemptions(1 if "offer" in query else None, 200)
        if redemption.row.channel == channel
    ]
    assert found == expected
    assert len(found) == per_offer * (1 if "offer" in query else 2)


@pytest.mark.usefixtures("offers")
def test_pages_between_two_redemptions_may_be_empty(api: Any) -> None:
    pages = fetch_pages(api, "channel=staff")

    assert len(pages[0]) == 2
    assert [len(page) for page in pages if page] == [2, 2]
    assert len(pages) > 5


def test_a_page_scans_at_most_the_limit(offers: list[int]) -> None:
    first = redemption_queries.scan_redemptions(RedemptionFilter(channel="api"), 50)
    assert first.next_cursor is not None
    scanned = [
        redemption
        for redemption in redemption_queries.list_latest_redemptions(None, 200)
        if redemption.row.redeemed_at >= first.next_cursor.redeemed_at
    ]
    # Two redemptions each half hour, rounded to a full hour, and those that the sweep has not counted yet.
    assert SCAN_LIMIT <= len(scanned) <= SCAN_LIMIT + 12


def test_the_scan_ends_at_the_lower_limit(offers: list[int]) -> None:
    since = datetime.now(UTC) - timedelta(hours=1)
    assert redemption_queries.scan_redemptions(
        RedemptionFilter(channel="api", since=since), 50
    ) == redemption_queries.ScanPage([], None)


def test_the_scan_starts_at_the_upper_limit(offers: list[int]) -> None:
    until = datetime.now(UTC) - timedelta(hours=20)
    first = redemption_queries.scan_redemptions(RedemptionFilter(channel="api", until=until), 50)
    assert first.next_cursor is not None
    assert until - timedelta(hours=5) < first.next_cursor.redeemed_at < until


def add_hours(offer_id: int, numbers: tuple[int, ...]) -> list[datetime]:
    """Add hours with these numbers of redemptions, newest first; return the hours."""
    hours = [datetime(2026, 3, 1, 12 - n, tzinfo=UTC) for n in range(len(numbers))]
    for hour, n in zip(hours, numbers, strict=True):
        values = {"offer_id": offer_id, "hour": hour, "n": n}
        db.session.execute(
            text("insert into redemption_hour (offer_id, hour, n) values (:offer_id, :hour, :n)"), values
        )
        db.session.execute(text("insert into hour_total (hour, n) values (:hour, :n)"), values)
    db.session.commit()
    return hours


def test_the_next_page_continues_before_the_hour_at_which_the_scan_stopped(make_offer: MakeOffer) -> None:
    hours = add_hours(make_offer().id, (SCAN_LIMIT, SCAN_LIMIT, SCAN_LIMIT))

    def list_stops(**period: Any) -> list[datetime]:
        page = redemption_queries.scan_redemptions(RedemptionFilter(channel="api", **period), 50)
        stops: list[datetime] = []
        while page.next_cursor is not None and len(stops) < 5:
            stops.append(page.next_cursor.redeemed_at)
            page = redemption_queries.scan_redemptions(RedemptionFilter(channel="api", **period), 50, page.next_cursor)
        return stops

    assert list_stops() == hours
    assert list_stops(until=hours[0]) == hours[1:]
    assert list_stops(since=hours[1]) == hours[:1]


@pytest.mark.parametrize(("numbers", "stops_at"), [((4, 6, 9), 1), ((4, 5, 9), 2), ((10, 1, 1), 0), ((3, 3, 3), None)])
def test_the_look_stops_at_the_hour_with_which_it_has_passed_enough(
    make_offer: MakeOffer, numbers: tuple[int, ...], stops_at: int | None
) -> None:
    offer_id = make_offer().id
    hours = add_hours(offer_id, numbers)

    for criteria in (RedemptionFilter(channel="api"), RedemptionFilter(channel="api", offer_id=offer_id)):
        page = redemption_queries.scan_redemptions(criteria, 50)
        assert page.next_cursor == (None if stops_at is None else KeysetCursor(hours[stops_at], 0, 0))


@pytest.mark.usefixtures("offers")
def test_the_list_of_one_customer_is_scanned_completely(api: Any) -> None:
    assert [len(page) for page in fetch_pages(api, "channel=staff&email=c59@example.com")] == [2]


@pytest.mark.usefixtures("offers")
def test_without_a_channel_every_page_is_full(api: Any) -> None:
    assert [len(page) for page in fetch_pages(api, "limit=50")] == [50, 50, 20]
