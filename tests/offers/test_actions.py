"""Creating, updating, pausing and searching offers."""

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
from webapp.core import database_clock
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


def first_error(error: pytest.ExceptionInfo[InvalidInput]) -> tuple[str, str]:
    return error.value.errors[0].field, error.value.errors[0].key


def test_an_offer_is_found_by_its_code_and_keeps_the_spelling(app: Flask) -> None:
    offer_actions.create_offer(SUMMER, by="ann")

    found = offer_queries.find_offer_by_code("SUMMER25")
    assert found is not None
    assert (found.code_as_written, found.name, found.percent) == ("Summer-25", "Summer", Decimal(25))


def test_creating_an_offer_is_in_the_audit_log(app: Flask) -> None:
    offer_actions.create_offer(SUMMER, by="ann")

    entry = db.session.scalars(select(AuditEntry)).one()
    assert (entry.actor, entry.action, entry.subject) == ("ann", "offer.created", "Summer-25")


def test_an_offer_without_a_code_gets_a_generated_one(app: Flask) -> None:
    offer = offer_actions.create_offer(replace(SUMMER, code=None), by="ann")

    assert len(offer.code) == 8


def test_any_spelling_of_a_taken_code_is_refused_at_its_field(app: Flask) -> None:
    offer_actions.create_offer(SUMMER, by="ann")

    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, code="summer 25"), by="ann")
    assert first_error(error) == ("code", "code_taken")


def test_concurrent_creations_with_one_code_create_one_offer(app: Flask) -> None:
    ready = threading.Barrier(8)
    outcomes: list[str] = []

    def create() -> None:
        with app.app_context():
            ready.wait()
            try:
                offer_actions.create_offer(SUMMER, by="ann")
                outcomes.append("created")
            except InvalidInput as error:
                outcomes.append(error.errors[0].key)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["code_taken"] * 7 + ["created"]


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
def test_an_invalid_value_is_refused_at_its_field(app: Flask, changes: dict[str, Any], field: str, key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, **changes), by="ann")

    assert first_error(error) == (field, key)


def test_all_errors_are_reported_at_once(app: Flask) -> None:
    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, name="", max_redemptions=-1, ends_at=NOW), by="ann")

    assert {item.field for item in error.value.errors} == {"name", "max_redemptions", "ends_at"}


def test_the_smallest_and_the_largest_percentage_are_accepted(app: Flask) -> None:
    for code, percent in (("ALL", "100"), ("LITTLE", "0.01")):
        offer = offer_actions.create_offer(
            replace(SUMMER, code=code, discount=Discount("percent", percent=Decimal(percent))), by="ann"
        )
        assert offer.percent == Decimal(percent)


def test_an_update_of_an_older_version_is_a_conflict(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    offer_actions.update_offer(offer.id, {"name": "From the first tab"}, version=1, by="ann")

    with pytest.raises(DomainError) as error:
        offer_actions.update_offer(offer.id, {"name": "From the second tab"}, version=1, by="bob")
    db.session.rollback()

    assert (error.value.key, offer.name) == ("conflict", "From the first tab")


def test_an_update_raises_the_version_and_is_in_the_audit_log(make_offer: Callable[..., Offer]) -> None:
    changed = offer_actions.update_offer(make_offer().id, {"name": "Autumn"}, version=1, by="ann")

    entry = db.session.scalars(select(AuditEntry)).one()
    assert (changed.version, entry.action, entry.detail) == (2, "offer.changed", {"fields": ["name"]})


def test_saving_without_changes_keeps_the_version(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()

    assert offer_actions.update_offer(offer.id, {"name": offer.name}, version=1, by="ann").version == 1


def test_an_offer_that_is_not_frozen_may_change_in_every_field(make_offer: Callable[..., Offer]) -> None:
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
def test_a_frozen_offer_keeps_its_discount_code_and_cap(
    make_offer: Callable[..., Offer], changes: dict[str, Any], field: str
) -> None:
    offer = make_offer()
    offer_actions.freeze_offer(offer.id)
    db.session.commit()

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(offer.id, changes, version=1, by="ann")
    assert first_error(error) == (field, "frozen")


def test_a_frozen_offer_may_change_its_name_and_validity_period(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer(frozen_at=NOW, max_redemptions=5, redeemed=3)
    end = offer.ends_at + timedelta(days=9) if offer.ends_at else None

    changed = offer_actions.update_offer(
        offer.id, {"name": "Longer", "ends_at": end, "max_redemptions": 3}, version=1, by="ann"
    )

    assert (changed.name, changed.ends_at, changed.max_redemptions) == ("Longer", end, 3)


@pytest.mark.parametrize(("cap", "key"), [(2, "cap_below_redeemed"), (None, "frozen")])
def test_the_cap_of_a_frozen_offer_cannot_fall_below_its_redemptions_or_be_removed(
    make_offer: Callable[..., Offer], cap: int | None, key: str
) -> None:
    offer = make_offer(frozen_at=NOW, max_redemptions=5, redeemed=3)

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(offer.id, {"max_redemptions": cap}, version=1, by="ann")
    assert first_error(error) == ("max_redemptions", key)


def test_an_offer_is_frozen_once(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()

    assert [offer_actions.freeze_offer(offer.id), offer_actions.freeze_offer(offer.id)] == [True, False]


def test_an_update_to_a_taken_code_is_refused(make_offer: Callable[..., Offer]) -> None:
    make_offer("FIRST")
    second = make_offer("SECOND")

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(second.id, {"code": "first"}, version=1, by="ann")
    assert first_error(error) == ("code", "code_taken")


def test_pausing_and_resuming_are_idempotent(make_offer: Callable[..., Offer]) -> None:
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


def test_an_unknown_offer_cannot_be_updated(app: Flask) -> None:
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
def test_states_in_sql_and_python_are_the_same(make_offer: Callable[..., Offer], state: Any) -> None:
    offers = {name: make_offer(name.replace("_", ""), **values) for name, values in STATES.items()}

    assert [offer.id for offer in offer_queries.list_offers(state=state)] == [offers[state].id]
    assert offers[state].state(database_clock.database_now()) == state


def test_pages_are_linked_in_both_directions(make_offer: Callable[..., Offer]) -> None:
    offer_ids = [make_offer(f"CODE{n}").id for n in range(5)]

    first = offer_queries.list_offers(limit=2)
    second = offer_queries.list_offers(limit=2, before_id=first[1].id)
    back = offer_queries.list_offers(limit=2, after_id=second[0].id)

    assert [o.id for o in first] == offer_ids[:1:-1]
    assert [o.id for o in second] == offer_ids[2::-1]
    assert [o.id for o in back] == offer_ids[:2:-1]


@pytest.mark.parametrize(("typed", "found"), [("summ", 2), ("SUMMER-2", 1), ("%", 0), ("ä", 0), ("a\0", 1), ("", 2)])
def test_offers_are_searched_by_name_and_code(make_offer: Callable[..., Offer], typed: str, found: int) -> None:
    make_offer("SUMMER25", name="Hot days")
    make_offer("WINTER", name="Summit")

    assert len(offer_queries.list_offers(typed)) == found
