"""Creating, updating, pausing and searching offers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import pytest
from flask import Flask
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from webapp.accounts.models import AuditEntry
from webapp.core import database_clock
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferCounter, OfferState, OfferValues

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
    assert entry.detail == {"name": "Summer"}


def test_an_offer_without_a_code_gets_a_generated_one(app: Flask) -> None:
    offer = offer_actions.create_offer(replace(SUMMER, code=None), by="ann")

    assert len(offer.code) == 8


def test_any_spelling_of_a_taken_code_is_rejected_at_its_field(app: Flask) -> None:
    offer_actions.create_offer(SUMMER, by="ann")

    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, code="summer 25"), by="ann")
    assert first_error(error) == ("code", "code_taken")


@pytest.mark.parametrize("taken", [0, 1, 4, 5])
def test_a_generated_code_that_is_taken_is_replaced_by_another(
    make_offer: Callable[..., Offer], monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    candidates = [f"CODE{n}" for n in range(5)]
    for code in candidates[:taken]:
        make_offer(code)
    monkeypatch.setattr(code_actions, "generate_code", iter(candidates).__next__)

    if taken < 5:
        assert offer_actions.create_offer(replace(SUMMER, code=None), by="ann").code == candidates[taken]
    else:
        with pytest.raises(InvalidInput) as error:
            offer_actions.create_offer(replace(SUMMER, code=None), by="ann")
        assert first_error(error) == ("code", "code_taken")
    assert len(offer_queries.list_offers()) == min(taken + 1, 5)


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
def test_an_invalid_value_is_rejected_at_its_field(app: Flask, changes: dict[str, Any], field: str, key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, **changes), by="ann")

    assert first_error(error) == (field, key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discount": Discount("amount", amount=0, currency="EUR")}, "Enter an amount above 0."),
        ({"discount": Discount("amount", amount=10**12 + 1, currency="EUR")}, "The amount is too large."),
        ({"starts_at": datetime(1999, 12, 31, tzinfo=UTC)}, "Choose a year from 2000 to 2199."),
        ({"name": "x" * 201}, "The name can have at most 200 characters."),
        ({"code": "AB"}, "A code must have 3 to 40 letters and digits."),
        (
            {"max_redemptions": 10**12 + 1},
            "The redemption limit can be at most 1,000,000,000,000. Leave it empty for no limit.",
        ),
    ],
)
def test_the_message_says_which_bound_a_number_exceeds(app: Flask, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, **changes), by="ann")

    assert error.value.errors[0].message == message


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


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "x" * 200},
        {"code": "ABC"},
        {"code": "A" * 40},
        {"discount": Discount("amount", amount=1, currency="EUR")},
        {"discount": Discount("amount", amount=10**12, currency="EUR")},
        {"ends_at": NOW + timedelta(microseconds=1)},
        {"starts_at": datetime(2000, 1, 1, tzinfo=UTC), "ends_at": datetime(2199, 12, 31, tzinfo=UTC)},
        {"max_redemptions": 1},
        {"max_redemptions": 10**12},
    ],
)
def test_the_smallest_and_the_largest_valid_values_are_accepted(app: Flask, changes: dict[str, Any]) -> None:
    values = replace(SUMMER, **changes)

    created = offer_actions.create_offer(values, by="ann")

    db.session.refresh(created)
    assert created.values() == values


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"discount": Discount("percent", percent=Decimal("100.01"))}, "discount.percent"),
        ({"discount": Discount("amount", amount=10**12 + 1, currency="EUR")}, "discount.amount"),
        ({"starts_at": datetime(1999, 12, 31, tzinfo=UTC)}, "starts_at"),
        ({"ends_at": datetime(2200, 1, 1, tzinfo=UTC)}, "ends_at"),
        ({"max_redemptions": 10**12 + 1}, "max_redemptions"),
    ],
)
def test_a_value_beyond_its_range_is_rejected(app: Flask, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as error:
        offer_actions.create_offer(replace(SUMMER, **changes), by="ann")

    assert [item.field for item in error.value.errors] == [field]


def test_a_locked_offer_is_reloaded_and_stays_locked_until_the_transaction_ends(
    make_offer: Callable[..., Offer],
) -> None:
    row = make_offer()
    assert row.name == "Summer"
    with db.engine.begin() as other:
        other.execute(update(Offer).values(name="Autumn"))

    locked = offer_queries.lock_offer(row.id)

    assert locked is not None
    assert locked.name == "Autumn"
    with db.engine.connect() as other:
        unlocked = select(Offer.id).with_for_update(skip_locked=True)
        assert other.scalars(unlocked).all() == []
        db.session.rollback()
        assert other.scalars(unlocked).all() == [row.id]


def test_the_counter_has_a_copy_of_the_cap(app: Flask) -> None:
    """The copy is enforced, and the column of the offer is shown."""
    caps = text("select o.max_redemptions, c.max_redemptions from offer o left join offer_counter c on offer_id = id")
    offer_id = offer_actions.create_offer(replace(SUMMER, max_redemptions=5), by="ann").id
    assert db.session.execute(caps).all() == [(5, 5)]

    for cap in (9, None, 3):
        offer_actions.update_offer(offer_id, {"max_redemptions": cap}, version=None, by="ann")
        assert db.session.execute(caps).all() == [(cap, cap)]


@pytest.mark.parametrize(
    ("change", "waits"),
    [
        (lambda id_: code_actions.renew_code(id_, "AUTUMN25", by="ann"), False),
        (lambda id_: offer_actions.pause_offer(id_, by="ann"), False),
        (lambda id_: offer_actions.update_offer(id_, {"name": "Autumn", "max_redemptions": 5}, None, by="ann"), False),
        (lambda id_: offer_actions.update_offer(id_, {"max_redemptions": 6}, None, by="ann"), True),
    ],
)
def test_only_a_change_of_the_cap_waits_for_redemptions(
    make_offer: Callable[..., Offer], change: Callable[[int], Offer], waits: bool
) -> None:
    """Redemptions of an offer with a cap lock its counter, and would wait for a change in turn."""
    offer_id = make_offer(max_redemptions=5).id
    with db.engine.connect() as redeeming:
        redeeming.execute(select(OfferCounter).with_for_update())
        db.session.execute(text("set local lock_timeout = '100ms'"))
        if waits:
            with pytest.raises(OperationalError, match="lock timeout"):
                change(offer_id)
        else:
            assert change(offer_id).version == 2
        db.session.rollback()


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


def test_the_message_has_the_number_of_redemptions(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer(frozen_at=NOW, max_redemptions=5000, redeemed=1234)

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(offer.id, {"max_redemptions": 1233}, version=1, by="ann")

    assert error.value.errors[0].message.startswith("There are already 1,234 redemptions.")


def test_an_offer_is_frozen_once(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()

    assert [offer_actions.freeze_offer(offer.id), offer_actions.freeze_offer(offer.id)] == [True, False]


def test_freezing_an_offer_leaves_the_others_alone(make_offer: Callable[..., Offer]) -> None:
    offer, other = make_offer(), make_offer("OTHER")

    offer_actions.freeze_offer(offer.id)
    db.session.commit()

    assert [row.frozen_at is not None for row in (offer, other)] == [True, False]


def test_the_name_is_saved_without_surrounding_spaces(app: Flask) -> None:
    offer = offer_actions.create_offer(replace(SUMMER, name="  Summer "), by="ann")
    created = offer.name

    changed = offer_actions.update_offer(offer.id, {"name": " Hot  summer "}, version=None, by="ann")

    assert (created, changed.name) == ("Summer", "Hot  summer")


def test_an_update_to_a_taken_code_is_rejected(make_offer: Callable[..., Offer]) -> None:
    make_offer("FIRST")
    second = make_offer("SECOND")

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(second.id, {"code": "first"}, version=1, by="ann")
    assert first_error(error) == ("code", "code_taken")


def test_an_update_to_an_unknown_audience_is_rejected_and_changes_nothing(make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(offer.id, {"name": "Autumn", "audience_id": 12345}, version=1, by="ann")
    db.session.rollback()

    assert first_error(error) == ("audience", "audience_unknown")
    assert (offer.name, offer.audience_id, offer.version) == ("Summer", None, 1)


def test_an_update_to_a_code_that_was_taken_a_moment_ago_is_rejected(
    make_offer: Callable[..., Offer], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_offer("FIRST")
    second = make_offer("SECOND")
    monkeypatch.setattr(offer_queries, "is_code_of_other_offer", lambda _code, _offer: False)

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(second.id, {"code": "first"}, version=1, by="ann")
    db.session.rollback()

    assert first_error(error) == ("code", "code_taken")
    assert (second.code, second.version) == ("SECOND", 1)


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
    entries = db.session.execute(select(AuditEntry.action, AuditEntry.actor, AuditEntry.subject)).all()
    assert entries == [("offer.paused", "ann", "SUMMER25"), ("offer.resumed", "ann", "SUMMER25")]


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
    assert offers[state].state(database_clock.get_database_time()) == state


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"starts_at": timedelta()}, "live"),
        ({"starts_at": timedelta(microseconds=1)}, "scheduled"),
        ({"ends_at": timedelta()}, "ended"),
        ({"ends_at": timedelta(microseconds=1)}, "live"),
        ({"max_redemptions": 3, "redeemed": 2}, "live"),
        ({"max_redemptions": 3, "redeemed": 3}, "used_up"),
        ({"ends_at": timedelta(), "paused_at": timedelta()}, "ended"),
        ({"starts_at": timedelta(1), "paused_at": timedelta()}, "paused"),
        ({"max_redemptions": 3, "redeemed": 3, "paused_at": timedelta()}, "paused"),
        ({"starts_at": timedelta(1), "max_redemptions": 3, "redeemed": 3}, "used_up"),
    ],
)
def test_a_state_begins_exactly_at_its_time(
    make_offer: Callable[..., Offer], changes: dict[str, Any], state: OfferState
) -> None:
    row, changes = make_offer(), dict(changes)
    # now() is constant within a transaction.
    now = database_clock.get_database_time()
    row.counter.redeemed = changes.pop("redeemed", 0)
    row.counter.max_redemptions = changes.get("max_redemptions")
    for name, value in changes.items():
        setattr(row, name, now + value if isinstance(value, timedelta) else value)
    db.session.flush()

    assert row.state(now) == state
    assert [name for name in STATES if offer_queries.list_offers(state=cast("OfferState", name))] == [state]
    is_open = row.starts_at <= now and state in ("live", "used_up")
    assert offer_queries.list_current_offer_ids() == ([row.id] if is_open else [])


def test_the_open_offer_that_ends_soonest_is_listed_first(make_offer: Callable[..., Offer]) -> None:
    ends = datetime.now(UTC) + timedelta(days=8)
    endless, later, sooner, also_sooner = (
        make_offer(f"CODE{n}", ends_at=ends_at).id
        for n, ends_at in enumerate((None, ends + timedelta(days=1), ends, ends))
    )

    assert offer_queries.list_current_offer_ids() == [sooner, also_sooner, later, endless]


def test_the_codes_of_an_offer_are_listed_newest_first(make_offer: Callable[..., Offer]) -> None:
    row = make_offer("FIRST", frozen_at=NOW)
    for code in ("ZEBRA", "ANT"):
        code_actions.renew_code(row.id, code, by="ann")

    assert [one.code for one in offer_queries.list_codes_by_offer([row.id])[row.id]] == ["ANT", "ZEBRA", "FIRST"]


def test_the_longest_closed_code_is_found(make_offer: Callable[..., Offer]) -> None:
    for code in ("ABC", "ABCDEFGHIJK", "ABCD"):
        row = make_offer(code, frozen_at=NOW)
        code_actions.renew_code(row.id, None, by="ann")
        code_actions.close_code(row.id, code, by="ann")

    found = offer_queries.find_closed_code(["ABC", "ABCDEFGHIJK", "ABCD"])

    assert found is not None
    assert found.code == "ABCDEFGHIJK"


def test_pages_are_linked_in_both_directions(make_offer: Callable[..., Offer]) -> None:
    offer_ids = [make_offer(f"CODE{n}").id for n in range(5)]

    first = offer_queries.list_offers(limit=2)
    second = offer_queries.list_offers(limit=2, before_id=first[1].id)
    back = offer_queries.list_offers(limit=2, after_id=second[0].id)

    assert [o.id for o in first] == offer_ids[:1:-1]
    assert [o.id for o in second] == offer_ids[2::-1]
    assert [o.id for o in back] == offer_ids[:2:-1]


@pytest.mark.parametrize(
    ("typed", "found"),
    [("summ", 2), ("SUMMER-2", 1), ("UMMER2", 0), ("%", 0), ("_", 0), ("ä", 0), ("a\0", 1), ("", 2)],
)
def test_offers_are_searched_by_name_and_code(make_offer: Callable[..., Offer], typed: str, found: int) -> None:
    make_offer("SUMMER25", name="Hot days")
    make_offer("WINTER", name="Summit")

    assert len(offer_queries.list_offers(typed)) == found
