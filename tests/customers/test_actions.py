"""Actions and queries for single customers and audiences, on the real database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import func, select, text

from tests.support.factories import MakeCustomer
from webapp.accounts.models import AuditEntry
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers import audience_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Audience, AudienceMember, Customer
from webapp.customers.validation import CustomerValues, clean_locale, clean_name


def make_audience(name: str, *members: Customer) -> Audience:
    row = Audience(name=name)
    db.session.add(row)
    db.session.flush()
    for member in members:
        db.session.add(AudienceMember(audience_id=row.id, customer_id=member.id))
    db.session.commit()
    return row


# --- create and update ---------------------------------------------------------------------------


def test_a_customer_is_created_with_audiences(app: Flask) -> None:
    vip = make_audience("VIP")

    ada = customer_actions.create_customer(
        CustomerValues(" Ada@Example.com ", "Ada  Lovelace", "EN_gb", "C1"), [vip.id, 999], by="tests"
    )

    assert (ada.email, ada.email_as_given, ada.name) == ("ada@example.com", "Ada@Example.com", "Ada Lovelace")
    assert (ada.locale, ada.source_id) == ("en-GB", "C1")
    assert customer_queries.list_customer_audiences(ada.id) == [vip]


def test_an_email_that_cannot_be_shown_is_kept_as_normalised(app: Flask) -> None:
    ada = customer_actions.create_customer(CustomerValues(" Ada@exam\u00adple.com "), [], by="tests")

    assert (ada.email, ada.email_as_given) == ("ada@example.com", "ada@example.com")


def test_every_invalid_field_has_an_error(app: Flask) -> None:
    with pytest.raises(InvalidInput) as raised:
        customer_actions.create_customer(CustomerValues("nobody", "x" * 201, "german!", "a\x01"), [], by="tests")

    assert [error.field for error in raised.value.errors] == ["email", "name", "locale", "source_id"]


@pytest.mark.parametrize(
    ("values", "field"),
    [(CustomerValues("ADA@example.com"), "email"), (CustomerValues("b@example.com", source_id="C1"), "source_id")],
)
def test_a_value_of_another_customer_is_a_conflict_at_its_field(
    make_customer: MakeCustomer, values: CustomerValues, field: str
) -> None:
    make_customer("ada@example.com", source_id="C1")

    with pytest.raises(DomainError, match="Another customer has this") as raised:
        customer_actions.create_customer(values, [], by="tests")

    assert (raised.value.key, raised.value.errors[0].field) == ("conflict", field)


def test_a_new_email_keeps_the_customer(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")

    customer_actions.update_customer(ada.id, CustomerValues("countess@example.com", "Ada"), [], by="tests")

    assert customer_queries.find_customer_by_email("ada@example.com") is None
    found = customer_queries.find_customer_by_email("countess@example.com")
    assert found is not None
    assert found.id == ada.id


def test_an_update_replaces_the_audiences(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    make_audience("Old", ada)
    new = make_audience("New")

    customer_actions.update_customer(ada.id, CustomerValues("ada@example.com"), [new.id], by="tests")

    assert [found.name for found in customer_queries.list_customer_audiences(ada.id)] == ["New"]


def test_an_erased_customer_cannot_be_updated(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    customer_actions.erase_customer(ada.id, by="tests")

    with pytest.raises(NotFound):
        customer_actions.update_customer(ada.id, CustomerValues("ada@example.com"), [], by="tests")


def test_the_audit_log_has_the_updated_fields_but_no_personal_data(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    vip = make_audience("VIP")

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


def test_an_update_without_changes_is_not_in_the_audit_log(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", source_id="C1")
    vip = make_audience("VIP", ada)

    customer_actions.upsert_customer(CustomerValues("ada@example.com", None, None, "C1"), ["VIP"], by="tests")
    customer_actions.update_customer(ada.id, CustomerValues("ada@example.com", None, None, "C1"), [vip.id], by="tests")

    assert db.session.scalars(select(AuditEntry)).all() == []


def test_leaving_an_audience_is_in_the_audit_log(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    vip, _ = make_audience("VIP", ada), make_audience("News", ada)

    customer_actions.update_customer(ada.id, CustomerValues("ada@example.com", None), [vip.id], by="tests")

    assert db.session.scalars(select(AuditEntry.detail)).all() == [{"fields": ["audiences"]}]


def test_an_update_keeps_the_time_of_an_activity_within_the_last_week(make_customer: MakeCustomer) -> None:
    now = db.session.execute(select(func.now())).scalar_one()
    recent, stale = (
        make_customer(f"{days}@example.com", source_id=str(days), active_at=now - timedelta(days=days)).id
        for days in (6, 8)
    )

    for source_id in ("6", "8"):
        values = CustomerValues(f"{source_id}@example.com", None, None, source_id)
        customer_actions.upsert_customer(values, None, by="tests")

    db.session.expire_all()
    assert db.session.get_one(Customer, recent).active_at == now - timedelta(days=6)
    assert db.session.get_one(Customer, stale).active_at >= now


# --- by source id --------------------------------------------------------------------------------


def test_upsert_creates_a_customer_once(app: Flask) -> None:
    values = CustomerValues("ada@example.com", "Ada", "en", "C1")

    first, is_new = customer_actions.upsert_customer(values, ["VIP"], by="tests")
    again, is_new_again = customer_actions.upsert_customer(values, ["VIP"], by="tests")

    assert (first.id, is_new, is_new_again) == (again.id, True, False)
    entries = db.session.execute(select(AuditEntry.action, AuditEntry.subject, AuditEntry.detail)).all()
    assert entries == [("customer.created", f"customer {first.id}", None)]
    assert [found.name for found in customer_queries.list_customer_audiences(first.id)] == ["VIP"]


def test_upsert_with_a_new_email_keeps_omitted_values(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", source_id="C1", name="Ada", locale="en")
    make_audience("VIP", ada)

    found, _ = customer_actions.upsert_customer(
        CustomerValues("countess@example.com", None, None, "C1"), None, by="tests"
    )

    assert (found.id, found.email, found.name, found.locale) == (ada.id, "countess@example.com", "Ada", "en")
    assert [a.name for a in customer_queries.list_customer_audiences(ada.id)] == ["VIP"]


def test_upsert_sets_the_source_id_of_a_known_email(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")

    found, is_new = customer_actions.upsert_customer(
        CustomerValues("ada@example.com", source_id="C1"), None, by="tests"
    )

    assert (found.id, found.source_id, is_new) == (ada.id, "C1", False)


def test_upsert_without_audiences_is_in_the_audit_log(app: Flask) -> None:
    customer_actions.upsert_customer(CustomerValues("ada@example.com", source_id="C1"), None, by="API key till")

    entries = db.session.execute(select(AuditEntry.actor, AuditEntry.action)).all()
    assert entries == [("API key till", "customer.created")]


def test_upsert_rejects_the_email_of_another_customer(make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com", source_id="C1")
    make_customer("grace@example.com", source_id="C2")

    for source_id in ("C2", "C3"):
        with pytest.raises(DomainError, match="Another customer has this email address"):
            customer_actions.upsert_customer(CustomerValues("ada@example.com", source_id=source_id), None, by="tests")


def test_concurrent_upserts_create_one_customer(app: Flask) -> None:
    app_object: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    start = threading.Barrier(8)
    ids, failures = [], []

    def upsert() -> None:
        with app_object.app_context():
            start.wait()
            try:
                ids.append(
                    customer_actions.upsert_customer(
                        CustomerValues("ada@example.com", source_id="C1"), None, by="tests"
                    )[0].id
                )
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=upsert) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(set(ids)) == 1


# --- audiences -----------------------------------------------------------------------------------


def test_an_audience_is_created_and_renamed(app: Flask) -> None:
    audience = audience_actions.create_audience("  Regulars  in Vienna ", by="tests")

    audience_actions.rename_audience(audience.id, "Regulars", by="tests")

    assert [found.name for found in customer_queries.list_audiences()] == ["Regulars"]
    entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [(entry.action, entry.subject, entry.detail) for entry in entries] == [
        ("audience.created", "Regulars in Vienna", {"id": audience.id}),
        ("audience.renamed", "Regulars", {"id": audience.id, "was": "Regulars in Vienna"}),
    ]


@pytest.mark.parametrize("name", ["", "  ", "VIP", " VIP ", "x" * 101, "a\x00b"])
def test_an_audience_needs_a_valid_unused_name(app: Flask, name: str) -> None:
    make_audience("VIP")

    with pytest.raises(InvalidInput) as raised:
        audience_actions.create_audience(name, by="tests")

    assert raised.value.errors[0].field == "name"


def test_an_audience_that_was_created_a_moment_ago_is_an_error(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    make_audience("VIP")
    monkeypatch.setattr(customer_queries, "find_audience_by_name", lambda _name: None)

    with pytest.raises(InvalidInput) as raised:
        audience_actions.create_audience("VIP", by="tests")

    assert [(error.field, error.key) for error in raised.value.errors] == [("name", "name_taken")]
    assert [found.name for found in customer_queries.list_audiences()] == ["VIP"]


@pytest.mark.parametrize(("source_id", "field"), [(None, "email"), ("C1", "source_id")])
def test_a_customer_who_was_created_a_moment_ago_is_a_conflict(
    make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch, source_id: str | None, field: str
) -> None:
    make_customer("ada@example.com", source_id="C1")
    monkeypatch.setattr(customer_actions, "_check_unique", lambda _customer: None)
    email = "bob@example.com" if source_id else "ada@example.com"

    values = CustomerValues(email, source_id=source_id)
    eve_id = make_customer("eve@example.com").id

    saves: list[Callable[[], Customer]] = [
        lambda: customer_actions.create_customer(values, [], by="tests"),
        lambda: customer_actions.update_customer(eve_id, values, [], by="tests"),
    ]
    for save in saves:
        with pytest.raises(DomainError, match="has just been created") as raised:
            save()
        assert (raised.value.key, raised.value.status, raised.value.errors[0].field) == ("conflict", 409, field)
    found = [customer.email for customer in customer_queries.list_customers()]
    assert found == ["eve@example.com", "ada@example.com"]


def test_an_audience_may_keep_its_own_name(app: Flask) -> None:
    vip = make_audience("VIP")

    assert audience_actions.rename_audience(vip.id, "VIP", by="tests").name == "VIP"


# --- queries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", ["grace@example.com", "ada@example.com"]),
        ("ada@", ["ada@example.com"]),
        ("ADA@EX", ["ada@example.com"]),
        ("lovel", ["ada@example.com"]),
        ("love ad", ["ada@example.com"]),
        ("Hopper-Brew", ["grace@example.com"]),
        ("C1", ["grace@example.com", "ada@example.com"]),
        ("C12", ["grace@example.com"]),
        ("hopper@", []),
        ("example.com", []),
        ("%", []),
        ("_", []),
        ("' | ''", []),
        ("\\", []),
        ("\0", ["grace@example.com", "ada@example.com"]),
        ("ov", []),
    ],
)
def test_customers_are_found_by_prefixes(make_customer: MakeCustomer, search: str, found: list[str]) -> None:
    make_customer("ada@example.com", name="Ada Lovelace", source_id="C11")
    make_customer("grace@example.com", name="Grace Hopper-Brewster", source_id="C12")

    assert [row.email for row in customer_queries.list_customers(search)] == found


def test_names_are_found_in_any_script(make_customer: MakeCustomer) -> None:
    make_customer("a@example.com", name="Élodie Ñandú")
    make_customer("b@example.com", name="Жанна")

    assert [row.email for row in customer_queries.list_customers("élo")] == ["a@example.com"]
    assert [row.email for row in customer_queries.list_customers("жан")] == ["b@example.com"]


def test_customers_are_paged_in_both_directions(make_customer: MakeCustomer) -> None:
    ids = [make_customer(f"c{n}@example.com").id for n in range(5)]

    first = [row.id for row in customer_queries.list_customers(limit=2)]
    second = [row.id for row in customer_queries.list_customers(before=first[1], limit=2)]
    back = [row.id for row in customer_queries.list_customers(after=second[0], limit=2)]

    # One more than the limit shows that there is a next page.
    assert first == [ids[4], ids[3], ids[2]]
    assert second == [ids[2], ids[1], ids[0]]
    assert back == [ids[4], ids[3]]


def test_the_list_of_an_audience_has_only_its_members(make_customer: MakeCustomer) -> None:
    ada, grace = make_customer("ada@example.com"), make_customer("grace@example.com")
    vip, _ = make_audience("VIP", ada), make_audience("News", grace)

    assert [row.id for row in customer_queries.list_customers("", vip.id)] == [ada.id]
    assert customer_queries.list_customers("grace", vip.id) == []


def test_queries_omit_erased_customers(make_customer: MakeCustomer) -> None:
    erased = make_customer("erased@example.com")
    customer_actions.erase_customer(erased.id, by="tests")
    vip = make_audience("VIP", erased)

    assert customer_queries.list_customers() == []
    assert (
        customer_queries.list_customer_ids_after(None, 0, 10)
        == customer_queries.list_customer_ids_after(vip.id, 0, 10)
        == []
    )
    assert customer_queries.list_customers_by_ids([erased.id]) == []
    assert customer_queries.count_audience_members(vip.id).total == 0
    assert customer_queries.count_customers() == customer_queries.CustomerCount(0, True)


def test_customer_ids_are_listed_in_pages(make_customer: MakeCustomer) -> None:
    ids = [make_customer(f"c{n}@example.com").id for n in range(4)]
    vip = make_audience("VIP", *(customer_queries.list_customers_by_ids(ids[1:])))

    assert customer_queries.list_customer_ids_after(None, ids[0], 2) == ids[1:3]
    assert customer_queries.list_customer_ids_after(vip.id, 0, 2) == ids[1:3]
    assert customer_queries.list_customer_ids_after(vip.id, ids[2], 2) == ids[3:]


def test_audience_totals_count_suppressed_customers(make_customer: MakeCustomer) -> None:
    ada, grace = make_customer("ada@example.com"), make_customer("grace@example.com", suppressed="unsubscribed")
    bob = make_customer("bob@example.com", suppressed="bounced")
    vip, _ = make_audience("VIP", grace), make_audience("News", ada, bob)

    assert customer_queries.count_audience_members(None) == customer_queries.AudienceTotals(3, 2)
    assert customer_queries.count_audience_members(vip.id) == customer_queries.AudienceTotals(1, 1)


def test_few_customers_are_counted_exactly(make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com")

    assert customer_queries.count_customers() == customer_queries.CustomerCount(1, True)


def test_audiences_are_listed_with_their_sizes(make_customer: MakeCustomer) -> None:
    make_audience("Empty")
    make_audience("VIP", make_customer("ada@example.com"))

    assert [(row.name, row.member_count) for row in customer_queries.list_audience_summaries()] == [
        ("Empty", 0),
        ("VIP", 1),
    ]


def test_only_the_size_of_a_large_audience_is_estimated(
    make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(customer_queries, "EXACT_COUNT_LIMIT", 10)
    customers = [make_customer(f"c{n}@example.com") for n in range(20)]
    make_audience("Everyone", *customers)
    make_audience("Few", *customers[:3])
    db.session.execute(text("analyze audience_member"))
    db.session.commit()

    sizes = [(row.name, row.member_count, row.is_exact) for row in customer_queries.list_audience_summaries()]

    assert sizes == [("Everyone", 20, False), ("Few", 3, True)]


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [("", ""), ("DE", "de"), ("en_gb", "en-GB"), ("zh-hant-tw", "zh-Hant-TW"), (" fr-CH ", "fr-CH")],
)
def test_locales_are_normalised(given: str, expected: str) -> None:
    assert clean_locale(given) == expected


def test_line_breaks_in_a_name_become_spaces() -> None:
    assert clean_name("  Ada \r\n\t Lovelace ") == "Ada Lovelace"
