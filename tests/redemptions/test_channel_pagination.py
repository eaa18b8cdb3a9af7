"""A channel that is hardly ever used: its list is looked through stretch by stretch, and nothing is left out."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.redemptions import MakeCustomer, MakeOffer
from webapp.core.extensions import db
from webapp.redemptions import hourly_counts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter

# So few are looked at in one stretch here.
FEW = 10


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redemption_queries, "SCAN_LIMIT", FEW)


@pytest.fixture
def offers(offer: MakeOffer, customer: MakeCustomer) -> list[int]:
    """Two offers, redeemed by sixty customers each, one every half hour; the last one and the first by staff."""
    ids = [offer("SUMMER25").id, offer("WINTER10").id]
    for n in range(60):
        customer(f"c{n}@example.com")
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


def walked(api: Any, query: str) -> list[list[str]]:
    """The ids on every page of a list, page by page."""
    pages: list[list[str]] = []
    answer = api.get(f"/api/v1/redemptions?{query}").json
    while len(pages) < 200:
        pages.append([item["id"] for item in answer["redemptions"]])
        if answer["next_cursor"] is None:
            return pages
        answer = api.get(f"/api/v1/redemptions?{query}&cursor={answer['next_cursor']}").json
    raise AssertionError("the list has no end")


@pytest.mark.parametrize("query", ["", "&offer=SUMMER25", "&limit=1", "&since=2020-01-01T00:00:00Z"])
@pytest.mark.parametrize(("channel", "of_each"), [("staff", 2), ("form", 58), ("api", 0)])
@pytest.mark.usefixtures("offers")
def test_all_are_found_once_newest_first(api: Any, query: str, channel: str, of_each: int) -> None:
    pages = walked(api, f"channel={channel}{query}")

    found = [public_id for page in pages for public_id in page]
    all_of_them = [
        done.public_id
        for done in redemption_queries.list_latest_redemptions(1 if "offer" in query else None, 200)
        if done.row.channel == channel
    ]
    assert found == all_of_them
    assert len(found) == of_each * (1 if "offer" in query else 2)


@pytest.mark.usefixtures("offers")
def test_between_the_first_and_the_last_there_are_empty_pages(api: Any) -> None:
    pages = walked(api, "channel=staff")

    assert len(pages[0]) == 2
    assert [len(page) for page in pages if page] == [2, 2]
    assert len(pages) > 5


def test_a_page_looks_no_further_than_it_says(offers: list[int]) -> None:
    first = redemption_queries.scan_redemptions(RedemptionFilter(channel="api"), 50)
    assert first.next_cursor is not None
    passed = [
        done
        for done in redemption_queries.list_latest_redemptions(None, 200)
        if done.row.redeemed_at >= first.next_cursor.redeemed_at
    ]
    # Two in each half hour, to the beginning of an hour, and what the sweep has not counted yet.
    assert FEW <= len(passed) <= FEW + 12


def test_the_look_ends_where_it_was_told_to(offers: list[int]) -> None:
    since = datetime.now(UTC) - timedelta(hours=1)
    assert redemption_queries.scan_redemptions(
        RedemptionFilter(channel="api", since=since), 50
    ) == redemption_queries.ScanPage([], None)


def test_the_look_begins_where_it_was_told_to(offers: list[int]) -> None:
    until = datetime.now(UTC) - timedelta(hours=20)
    first = redemption_queries.scan_redemptions(RedemptionFilter(channel="api", until=until), 50)
    assert first.next_cursor is not None
    assert until - timedelta(hours=5) < first.next_cursor.redeemed_at < until


@pytest.mark.parametrize(("numbers", "stops_at"), [((4, 6, 9), 1), ((4, 5, 9), 2), ((10, 1, 1), 0), ((3, 3, 3), None)])
def test_the_look_stops_at_the_hour_with_which_it_has_passed_enough(
    offer: MakeOffer, numbers: tuple[int, ...], stops_at: int | None
) -> None:
    offer_id = offer().id
    hours = [datetime(2026, 3, 1, 12 - n, tzinfo=UTC) for n in range(3)]
    for hour, n in zip(hours, numbers, strict=True):
        values = {"offer_id": offer_id, "hour": hour, "n": n}
        db.session.execute(
            text("insert into redemption_hour (offer_id, hour, n) values (:offer_id, :hour, :n)"), values
        )
        db.session.execute(text("insert into hour_total (hour, n) values (:hour, :n)"), values)
    db.session.commit()

    for criteria in (RedemptionFilter(channel="api"), RedemptionFilter(channel="api", offer_id=offer_id)):
        page = redemption_queries.scan_redemptions(criteria, 50)
        assert page.next_cursor == (None if stops_at is None else KeysetCursor(hours[stops_at], 0, 0))


@pytest.mark.usefixtures("offers")
def test_of_one_customer_all_are_looked_at(api: Any) -> None:
    assert [len(page) for page in walked(api, "channel=staff&email=c59@example.com")] == [2]


@pytest.mark.usefixtures("offers")
def test_without_a_channel_every_page_is_full(api: Any) -> None:
    assert [len(page) for page in walked(api, "limit=50")] == [50, 50, 20]
