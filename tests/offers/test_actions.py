from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from webapp.accounts.models import AuditEntry
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferValues

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SUMMER = OfferValues(
    name="Summer", discount=Discount("percent", percent=Decimal(25)), starts_at=NOW, code="Summer-25", ends_at=None
)


def key_of(error: pytest.ExceptionInfo[InvalidInput]) -> tuple[str, str]:
    return error.value.errors[0].field, error.value.errors[0].key


def test_an_offer_is_found_by_its_code_and_keeps_how_it_was_written(app: Flask) -> None:
    offer_actions.create_offer(SUMMER, by="ann")

    found = offer_queries.find_offer_by_code("SUMMER25")
    assert found is not None
    assert (found.code_as_written, found.name, found.percent) == ("Summer-25", "Summer", Decimal(25))


def test_making_an_offer_leaves_a_trail(app: Flask) -> None:
    offer_actions.create_offer(SUMMER, by="ann")

    entry = db.session.scalars(select(AuditEntry)).one()
    assert (entry.actor, entry.action, entry.subject) == ("ann", "offer.created", "Summer-25")


def test_an_offer_without_a_code_is_given_one(app: Flask) -> None:
    offer = offer_actions.create_offer(replace(SUMMER, code=None), by="ann")

    assert len(offer.code) == 8


def test_a_code_that_exists_is_refused_at_its_field_however_it_is_written(app: Flask) -> None:
    offer_actions.create_offer(SUMMER, by="ann")

    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, code="summer 25"), by="ann")
    assert key_of(error) == ("code", "code_taken")


def test_of_two_who_take_a_code_at_once_one_gets_it(app: Flask) -> None:
    ready = threading.Barrier(8)
    outcomes: list[str] = []

    def take() -> None:
        with app.app_context():
            ready.wait()
            try:
                offer_actions.create_offer(SUMMER, by="ann")
                outcomes.append("made")
            except InvalidInput as error:
                outcomes.append(error.errors[0].key)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["code_taken"] * 7 + ["made"]


@pytest.mark.parametrize(
    ("changes", "field", "key"),
    [
        ({"name": "  "}, "name", "name_missing"),
        ({"name": "a\0b"}, "name", "name_invalid"),
        ({"name": "x" * 201}, "name", "name_too_long"),
        ({"code": "AB"}, "code", "code_length"),
        ({"code": "A" * 41}, "code", "code_length"),
        ({"code": "SÜSS"}, "code", "code_invalid"),
        ({"discount": Discount("percent", percent=Decimal(500))}, "discount.percent", "discount_invalid"),
        ({"discount": Discount("percent", percent=Decimal(0))}, "discount.percent", "discount_invalid"),
        ({"discount": Discount("percent", percent=Decimal("12.345"))}, "discount.percent", "discount_invalid"),
        ({"discount": Discount("percent", percent=Decimal("NaN"))}, "discount.percent", "discount_invalid"),
        ({"discount": Discount("amount", amount=0, currency="EUR")}, "discount.amount", "discount_invalid"),
        ({"discount": Discount("amount", amount=5, currency="XYZ")}, "discount.currency", "currency_unknown"),
        ({"ends_at": NOW}, "ends_at", "window_invalid"),
        ({"ends_at": NOW - timedelta(days=1)}, "ends_at", "window_invalid"),
        ({"starts_at": datetime(1, 1, 1, tzinfo=UTC)}, "starts_at", "time_out_of_range"),
        ({"max_redemptions": -1}, "max_redemptions", "cap_invalid"),
        ({"max_redemptions": 0}, "max_redemptions", "cap_invalid"),
        ({"time_zone": "Mars/Base"}, "time_zone", "time_zone_unknown"),
        ({"audience_id": 12345}, "audience", "audience_unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_at_its_field(app: Flask, changes: dict[str, Any], field: str, key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, **changes), by="ann")

    assert key_of(error) == (field, key)


def test_all_errors_are_told_at_once(app: Flask) -> None:
    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, name="", max_redemptions=-1, ends_at=NOW), by="ann")

    assert {item.field for item in error.value.errors} == {"name", "max_redemptions", "ends_at"}


def test_a_full_discount_and_a_hundredth_of_a_percent_are_taken(app: Flask) -> None:
    for code, percent in (("ALL", "100"), ("LITTLE", "0.01")):
        offer = offer_actions.create_offer(
            replace(SUMMER, code=code, discount=Discount("percent", percent=Decimal(percent))), by="ann"
        )
        assert offer.percent == Decimal(percent)


def test_the_second_of_two_tabs_is_told_and_overwrites_nothing(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    offer_actions.update_offer(offer.id, {"name": "From the first tab"}, version=1, by="ann")

    with pytest.raises(DomainError) as error:
        offer_actions.update_offer(offer.id, {"name": "From the second tab"}, version=1, by="bob")
    db.session.rollback()

    assert (error.value.key, offer.name) == ("conflict", "From the first tab")


def test_a_change_raises_the_version_and_leaves_a_trail(make_offer: Callable[..., Offer]) -> None:
    changed = offer_actions.update_offer(make_offer().id, {"name": "Autumn"}, version=1, by="ann")

    entry = db.session.scalars(select(AuditEntry)).one()
    assert (changed.version, entry.action, entry.detail) == (2, "offer.changed", {"fields": ["name"]})


def test_saving_without_a_change_changes_nothing(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()

    assert offer_actions.update_offer(offer.id, {"name": offer.name}, version=1, by="ann").version == 1


def test_an_offer_that_nobody_has_seen_may_change_in_everything(make_offer: Callable[..., Offer]) -> None:
    discount = Discount("amount", amount=500, currency="EUR")

    changed = offer_actions.update_offer(
        make_offer().id, {"discount": discount, "code": "NEW-CODE", "max_redemptions": 5}, version=1, by="ann"
    )

    assert (changed.discount, changed.code, changed.max_redemptions) == (discount, "NEWCODE", 5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"discount": Discount("percent", percent=Decimal(30))}, "discount.percent"),
        ({"discount": Discount("amount", amount=500, currency="EUR")}, "discount.amount"),
        ({"code": "OTHER"}, "code"),
        ({"max_redemptions": 10}, "max_redemptions"),
    ],
)
def test_once_frozen_what_was_promised_stays(
    make_offer: Callable[..., Offer], changes: dict[str, Any], field: str
) -> None:
    offer = make_offer()
    offer_actions.freeze_offer(offer.id)
    db.session.commit()

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(offer.id, changes, version=1, by="ann")
    assert key_of(error) == (field, "frozen")


def test_once_frozen_the_name_and_the_window_may_still_change(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer(frozen_at=NOW, max_redemptions=5, redeemed=3)
    end = offer.ends_at + timedelta(days=9) if offer.ends_at else None

    changed = offer_actions.update_offer(
        offer.id, {"name": "Longer", "ends_at": end, "max_redemptions": 3}, version=1, by="ann"
    )

    assert (changed.name, changed.ends_at, changed.max_redemptions) == ("Longer", end, 3)


@pytest.mark.parametrize(("cap", "key"), [(2, "cap_below_redeemed"), (None, "frozen")])
def test_once_frozen_a_cap_falls_not_below_what_is_used_and_is_not_removed(
    make_offer: Callable[..., Offer], cap: int | None, key: str
) -> None:
    offer = make_offer(frozen_at=NOW, max_redemptions=5, redeemed=3)

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(offer.id, {"max_redemptions": cap}, version=1, by="ann")
    assert key_of(error) == ("max_redemptions", key)


def test_freezing_happens_once(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()

    assert [offer_actions.freeze_offer(offer.id), offer_actions.freeze_offer(offer.id)] == [True, False]


def test_a_code_taken_by_a_change_is_refused(make_offer: Callable[..., Offer]) -> None:
    make_offer("FIRST")
    second = make_offer("SECOND")

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(second.id, {"code": "first"}, version=1, by="ann")
    assert key_of(error) == ("code", "code_taken")


def test_pausing_twice_and_resuming_twice_is_as_good_as_once(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()

    versions = [
        act(offer.id, by="ann").version
        for act in (
            offer_actions.pause_offer,
            offer_actions.pause_offer,
            offer_actions.resume_offer,
            offer_actions.resume_offer,
        )
    ]

    assert (versions, offer.paused_at) == ([2, 2, 3, 3], None)


def test_an_offer_that_is_not_there_can_not_be_changed(app: Flask) -> None:
    with pytest.raises(NotFound):
        offer_actions.update_offer(99, {"name": "x"}, version=None, by="ann")


STATES: dict[str, dict[str, Any]] = {
    "live": {},
    "scheduled": {"starts_at": datetime(2099, 1, 1, tzinfo=UTC), "ends_at": None},
    "paused": {"paused_at": NOW},
    "ended": {"starts_at": datetime(2020, 1, 1, tzinfo=UTC), "ends_at": datetime(2020, 2, 1, tzinfo=UTC)},
    "used_up": {"max_redemptions": 2, "redeemed": 2},
}


@pytest.mark.parametrize("state", STATES)
def test_the_database_and_python_agree_about_states(make_offer: Callable[..., Offer], state: Any) -> None:
    rows = {name: make_offer(name.replace("_", ""), **values) for name, values in STATES.items()}

    assert [row.id for row in offer_queries.list_offers(state=state)] == [rows[state].id]
    assert rows[state].state(offer_queries.database_now()) == state


def test_pages_follow_one_another_in_both_directions(make_offer: Callable[..., Offer]) -> None:
    made = [make_offer(f"CODE{n}").id for n in range(5)]

    first = offer_queries.list_offers(limit=2)
    second = offer_queries.list_offers(limit=2, before_id=first[1].id)
    back = offer_queries.list_offers(limit=2, after_id=second[0].id)

    assert [o.id for o in first] == made[:1:-1]
    assert [o.id for o in second] == made[2::-1]
    assert [o.id for o in back] == made[:2:-1]


@pytest.mark.parametrize(("typed", "found"), [("summ", 2), ("SUMMER-2", 1), ("%", 0), ("ä", 0), ("a\0", 1), ("", 2)])
def test_offers_are_searched_by_name_and_code(make_offer: Callable[..., Offer], typed: str, found: int) -> None:
    make_offer("SUMMER25", name="Hot days")
    make_offer("WINTER", name="Summit")

    assert len(offer_queries.list_offers(typed)) == found
