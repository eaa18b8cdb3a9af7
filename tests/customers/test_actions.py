"""Single customers and audiences: the rules, on the real database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import select, text

from webapp.accounts.models import AuditEntry
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Audience, AudienceMember, Customer
from webapp.customers.validation import CustomerValues, clean_locale, clean_name

Make = Callable[..., Customer]


def audience(name: str, *members: Customer) -> Audience:
    row = Audience(name=name)
    db.session.add(row)
    db.session.flush()
    for member in members:
        db.session.add(AudienceMember(audience_id=row.id, customer_id=member.id))
    db.session.commit()
    return row


# --- entering and changing -----------------------------------------------------------------------


def test_a_customer_is_entered_with_audiences(app: Flask) -> None:
    vip = audience("VIP")

    ada = customer_actions.create_customer(
        CustomerValues(" Ada@Example.com ", "Ada  Lovelace", "EN_gb", "C1"), [vip.id, 999], by="tests"
    )

    assert (ada.email, ada.email_as_given, ada.name) == ("ada@example.com", "Ada@Example.com", "Ada Lovelace")
    assert (ada.locale, ada.source_id) == ("en-GB", "C1")
    assert customer_queries.list_customer_audiences(ada.id) == [vip]


def test_every_field_that_is_wrong_is_told_at_once(app: Flask) -> None:
    with pytest.raises(InvalidInput) as refusal:
        customer_actions.create_customer(CustomerValues("nobody", "x" * 201, "german!", "a\x01"), [], by="tests")

    assert [error.field for error in refusal.value.errors] == ["email", "name", "locale", "source_id"]


@pytest.mark.parametrize(
    ("values", "field"),
    [(CustomerValues("ADA@example.com"), "email"), (CustomerValues("b@example.com", source_id="C1"), "source_id")],
)
def test_what_another_customer_has_is_refused_at_its_field(customer: Make, values: CustomerValues, field: str) -> None:
    customer("ada@example.com", source_id="C1")

    with pytest.raises(DomainError) as refusal:
        customer_actions.create_customer(values, [], by="tests")

    assert (refusal.value.key, refusal.value.errors[0].field) == ("conflict", field)


def test_another_e_mail_keeps_the_customer(customer: Make) -> None:
    ada = customer("ada@example.com")

    customer_actions.update_customer(ada.id, CustomerValues("countess@example.com", "Ada"), [], by="tests")

    assert customer_queries.find_customer_by_email("ada@example.com") is None
    found = customer_queries.find_customer_by_email("countess@example.com")
    assert found is not None
    assert found.id == ada.id


def test_a_change_sets_the_audiences_exactly(customer: Make) -> None:
    ada = customer("ada@example.com")
    audience("Old", ada)
    new = audience("New")

    customer_actions.update_customer(ada.id, CustomerValues("ada@example.com"), [new.id], by="tests")

    assert [found.name for found in customer_queries.list_customer_audiences(ada.id)] == ["New"]


def test_an_erased_customer_can_not_be_changed(customer: Make) -> None:
    ada = customer("ada@example.com")
    customer_actions.erase_customer(ada.id, by="tests")

    with pytest.raises(NotFound):
        customer_actions.update_customer(ada.id, CustomerValues("ada@example.com"), [], by="tests")


def test_a_change_is_in_the_trail_with_its_fields_and_without_the_person(customer: Make) -> None:
    ada = customer("ada@example.com")
    vip = audience("VIP")

    customer_actions.update_customer(
        ada.id, CustomerValues("Countess@example.com", "Ada Lovelace"), [vip.id], by="eve@example.com"
    )

    entry = db.session.scalars(select(AuditEntry)).one()
    assert (entry.actor, entry.action, entry.subject, entry.detail) == (
        "eve@example.com",
        "customer.changed",
        f"customer {ada.id}",
        {"fields": ["email", "audiences"]},
    )


def test_what_changes_nothing_is_not_in_the_trail(customer: Make) -> None:
    ada = customer("ada@example.com", source_id="C1")
    audience("VIP", ada)

    customer_actions.upsert_customer(CustomerValues("ada@example.com", None, None, "C1"), ["VIP"], by="tests")

    assert db.session.scalars(select(AuditEntry)).all() == []


# --- by source id --------------------------------------------------------------------------------


def test_put_makes_a_customer_once(app: Flask) -> None:
    values = CustomerValues("ada@example.com", "Ada", "en", "C1")

    first, is_new = customer_actions.upsert_customer(values, ["VIP"], by="tests")
    again, is_new_again = customer_actions.upsert_customer(values, ["VIP"], by="tests")

    assert (first.id, is_new, is_new_again) == (again.id, True, False)
    assert [found.name for found in customer_queries.list_customer_audiences(first.id)] == ["VIP"]


def test_put_with_another_e_mail_keeps_the_customer_and_what_is_left_out(customer: Make) -> None:
    ada = customer("ada@example.com", source_id="C1", name="Ada", locale="en")
    audience("VIP", ada)

    found, _ = customer_actions.upsert_customer(
        CustomerValues("countess@example.com", None, None, "C1"), None, by="tests"
    )

    assert (found.id, found.email, found.name, found.locale) == (ada.id, "countess@example.com", "Ada", "en")
    assert [a.name for a in customer_queries.list_customer_audiences(ada.id)] == ["VIP"]


def test_put_gives_a_known_e_mail_its_source_id(customer: Make) -> None:
    ada = customer("ada@example.com")

    found, is_new = customer_actions.upsert_customer(
        CustomerValues("ada@example.com", source_id="C1"), None, by="tests"
    )

    assert (found.id, found.source_id, is_new) == (ada.id, "C1", False)


def test_put_does_not_take_an_e_mail_from_another_customer(customer: Make) -> None:
    customer("ada@example.com", source_id="C1")
    customer("grace@example.com", source_id="C2")

    for source_id in ("C2", "C3"):
        with pytest.raises(DomainError, match="Another customer has this email address"):
            customer_actions.upsert_customer(CustomerValues("ada@example.com", source_id=source_id), None, by="tests")


def test_put_of_the_same_new_customer_at_the_same_time_makes_one(app: Flask) -> None:
    running: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    start = threading.Barrier(8)
    ids, failures = [], []

    def put() -> None:
        with running.app_context():
            start.wait()
            try:
                ids.append(
                    customer_actions.upsert_customer(
                        CustomerValues("ada@example.com", source_id="C1"), None, by="tests"
                    )[0].id
                )
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(set(ids)) == 1


# --- audiences -----------------------------------------------------------------------------------


def test_an_audience_is_made_and_renamed(app: Flask) -> None:
    made = customer_actions.create_audience("  Regulars  in Vienna ", by="tests")

    customer_actions.rename_audience(made.id, "Regulars", by="tests")

    assert [found.name for found in customer_queries.list_audiences()] == ["Regulars"]
    entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [(entry.action, entry.subject, entry.detail) for entry in entries] == [
        ("audience.created", "Regulars in Vienna", {"id": made.id}),
        ("audience.renamed", "Regulars", {"id": made.id, "was": "Regulars in Vienna"}),
    ]


@pytest.mark.parametrize("name", ["", "  ", "VIP", " VIP ", "x" * 101, "a\x00b"])
def test_an_audience_needs_a_free_name(app: Flask, name: str) -> None:
    audience("VIP")

    with pytest.raises(InvalidInput) as refusal:
        customer_actions.create_audience(name, by="tests")

    assert refusal.value.errors[0].field == "name"


def test_an_audience_may_keep_its_own_name(app: Flask) -> None:
    vip = audience("VIP")

    assert customer_actions.rename_audience(vip.id, "VIP", by="tests").name == "VIP"


# --- looking up ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("", ["grace@example.com", "ada@example.com"]),
        ("ada@", ["ada@example.com"]),
        ("ADA@EX", ["ada@example.com"]),
        ("lovel", ["ada@example.com"]),
        ("love ad", ["ada@example.com"]),
        ("Hopper-Brew", ["grace@example.com"]),
        ("C1", ["grace@example.com", "ada@example.com"]),
        ("C12", ["grace@example.com"]),
        ("example.com", []),
        ("%", []),
        ("_", []),
        ("' | ''", []),
        ("\\", []),
        ("\0", ["grace@example.com", "ada@example.com"]),
        ("ov", []),
    ],
)
def test_customers_are_found_by_the_beginning_of_what_one_knows(customer: Make, q: str, found: list[str]) -> None:
    customer("ada@example.com", name="Ada Lovelace", source_id="C11")
    customer("grace@example.com", name="Grace Hopper-Brewster", source_id="C12")

    assert [row.email for row in customer_queries.list_customers(q)] == found


def test_names_are_found_in_any_script(customer: Make) -> None:
    customer("a@example.com", name="Élodie Ñandú")
    customer("b@example.com", name="Жанна")

    assert [row.email for row in customer_queries.list_customers("élo")] == ["a@example.com"]
    assert [row.email for row in customer_queries.list_customers("жан")] == ["b@example.com"]


def test_pages_follow_each_other_both_ways(customer: Make) -> None:
    ids = [customer(f"c{n}@example.com").id for n in range(5)]

    first = [row.id for row in customer_queries.list_customers(limit=2)]
    second = [row.id for row in customer_queries.list_customers(before=first[1], limit=2)]
    back = [row.id for row in customer_queries.list_customers(after=second[0], limit=2)]

    assert first == ids[:1:-1]
    assert second == [ids[2], ids[1], ids[0]]
    assert back == [ids[4], ids[3]]


def test_the_list_of_an_audience_has_only_its_members(customer: Make) -> None:
    ada, _ = customer("ada@example.com"), customer("grace@example.com")
    vip = audience("VIP", ada)

    assert [row.id for row in customer_queries.list_customers("", vip.id)] == [ada.id]
    assert customer_queries.list_customers("grace", vip.id) == []


def test_erased_customers_are_nowhere(customer: Make) -> None:
    erased = customer("erased@example.com")
    customer_actions.erase_customer(erased.id, by="tests")
    vip = audience("VIP", erased)

    assert customer_queries.list_customers() == []
    assert (
        customer_queries.list_customer_ids_after(None, 0, 10)
        == customer_queries.list_customer_ids_after(vip.id, 0, 10)
        == []
    )
    assert customer_queries.list_customers_by_ids([erased.id]) == []
    assert customer_queries.count_audience_members(vip.id).total == 0
    assert customer_queries.count_customers() == customer_queries.CustomerCount(0, True)


def test_an_audience_is_walked_by_id(customer: Make) -> None:
    ids = [customer(f"c{n}@example.com").id for n in range(4)]
    vip = audience("VIP", *(customer_queries.list_customers_by_ids(ids[1:])))

    assert customer_queries.list_customer_ids_after(None, ids[0], 2) == ids[1:3]
    assert customer_queries.list_customer_ids_after(vip.id, 0, 2) == ids[1:3]
    assert customer_queries.list_customer_ids_after(vip.id, ids[2], 2) == ids[3:]


def test_reach_tells_who_must_not_be_mailed(customer: Make) -> None:
    _, grace = customer("ada@example.com"), customer("grace@example.com", suppressed="unsubscribed")
    vip = audience("VIP", grace)

    assert customer_queries.count_audience_members(None) == customer_queries.AudienceTotals(2, 1)
    assert customer_queries.count_audience_members(vip.id) == customer_queries.AudienceTotals(1, 1)


def test_few_customers_are_counted_exactly(customer: Make) -> None:
    customer("ada@example.com")

    assert customer_queries.count_customers() == customer_queries.CustomerCount(1, True)


def test_audiences_are_listed_with_their_sizes(customer: Make) -> None:
    audience("Empty")
    audience("VIP", customer("ada@example.com"))

    assert [(row.name, row.member_count) for row in customer_queries.list_audience_summaries()] == [
        ("Empty", 0),
        ("VIP", 1),
    ]


def test_a_large_audience_is_estimated_and_a_small_one_beside_it_counted(
    customer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(customer_queries, "EXACT_COUNT_LIMIT", 10)
    people = [customer(f"c{n}@example.com") for n in range(20)]
    audience("Everyone", *people)
    audience("Few", *people[:3])
    db.session.execute(text("analyze audience_member"))
    db.session.commit()

    sizes = [(row.name, row.member_count, row.is_exact) for row in customer_queries.list_audience_summaries()]

    assert sizes == [("Everyone", 20, False), ("Few", 3, True)]


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"), [("", ""), ("DE", "de"), ("en_gb", "en-GB"), ("zh-hant-tw", "zh-Hant-TW"), (" fr-CH ", "fr-CH")]
)
def test_languages_are_kept_in_their_usual_spelling(given: str, kept: str) -> None:
    assert clean_locale(given) == kept


def test_a_name_is_kept_on_one_line() -> None:
    assert clean_name("  Ada \r\n\t Lovelace ") == "Ada Lovelace"
