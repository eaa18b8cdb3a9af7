"""The suppression list."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask import Flask
from sqlalchemy import select, text

from tests.support.factories import MakeCustomer
from tests.support.imports import ImportFileFixture
from tests.support.redemptions import count_lock_waiters
from tests.support.suppressions import add_suppression, suppression_reasons
from webapp.accounts.models import AuditEntry
from webapp.core.email_addresses import hash_email
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import ERASED_EMAIL_PLACEHOLDER, Suppression
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.suppressions import queries as suppression_queries
from webapp.customers.validation import CustomerValues

PAST = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ("bounced", "unsubscribed", "unsubscribed"),
        ("bounced", "complained", "complained"),
        ("unsubscribed", "complained", "complained"),
        ("unsubscribed", "bounced", "unsubscribed"),
        ("complained", "unsubscribed", "complained"),
        ("complained", "bounced", "complained"),
        ("bounced", "bounced", "bounced"),
    ],
)
def test_only_a_stronger_reason_replaces_the_first(app: Flask, first: str, then: str, expected: str) -> None:
    assert add_suppression(reason=first, words="first")
    assert add_suppression(reason=then, words="then") is (expected != first)
    row = db.session.get_one(Suppression, "ada@example.com")
    assert (row.reason, row.detail) == (expected, "first" if expected == first else "then")


@pytest.mark.parametrize("interface", ["action", "import"])
@pytest.mark.parametrize(("reason", "is_newer"), [("complained", True), ("bounced", False)])
def test_time_source_and_detail_are_those_of_the_strongest_reason(
    import_file: ImportFileFixture, interface: str, reason: str, is_newer: bool
) -> None:
    add_suppression(reason="unsubscribed", source="api", words="by phone")
    db.session.execute(text("update suppression set at = :at"), {"at": PAST})
    db.session.commit()

    if interface == "action":
        add_suppression(reason=reason, source="relay", words="a report")
    else:
        import_file(f"email,reason\nada@example.com,{reason}\n", kind="suppressions")

    db.session.expire_all()
    row = db.session.get_one(Suppression, "ada@example.com")
    newer = ("relay", "a report") if interface == "action" else ("import", "")
    assert (row.at > PAST, row.source, row.detail) == (is_newer, *(newer if is_newer else ("api", "by phone")))


def test_only_a_campaign_requires_a_customer_with_the_address(app: Flask, make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com")
    assert add_suppression("nobody@example.com", source="import")
    assert not add_suppression("gone@example.com", source=3)
    assert add_suppression("ada@example.com", source=3)
    assert suppression_reasons() == {"nobody@example.com": "bounced", "ada@example.com": "bounced"}
    assert db.session.get_one(Suppression, "ada@example.com").source == "campaign 3"


def test_suppressions_are_found_by_address_and_by_hash(app: Flask, make_customer: MakeCustomer) -> None:
    ada, bob, eve, zoë = (make_customer(f"{name}@example.com") for name in ("ada", "bob", "eve", "zoë"))
    add_suppression("ada@example.com", "bounced")
    add_suppression(hash_email("ada@example.com"), "complained")
    add_suppression(hash_email("zoë@example.com"), "unsubscribed")
    add_suppression("eve@example.com", "unsubscribed")

    assert customer_queries.find_suppression_reasons([ada.id, bob.id, eve.id, zoë.id, 999]) == {
        ada.id: "complained",
        eve.id: "unsubscribed",
        zoë.id: "unsubscribed",
    }
    assert customer_queries.find_suppression_reasons([bob.id]) == customer_queries.find_suppression_reasons([]) == {}


# --- changed addresses and erased customers -------------------------------------------------------


@pytest.mark.parametrize(("reason", "follows"), [("unsubscribed", True), ("complained", True), ("bounced", False)])
@pytest.mark.parametrize("interface", ["staff", "api"])
def test_requests_of_the_customer_apply_to_their_new_email_but_bounces_do_not(
    app: Flask, make_customer: MakeCustomer, reason: str, follows: bool, interface: str
) -> None:
    ada = make_customer("ada@example.com", source_id="C1")
    add_suppression("ada@example.com", reason, "relay", words="as it was")
    db.session.execute(text("update suppression set at = :at"), {"at": PAST})
    db.session.commit()
    if interface == "staff":
        customer_actions.update_customer(
            ada.id, CustomerValues("new@example.com", "Ada", source_id="C1"), [], by="tests"
        )
    else:
        customer_actions.upsert_customer(CustomerValues("new@example.com", source_id="C1"), None, by="tests")

    assert customer_queries.find_suppression_reasons([ada.id]) == ({ada.id: reason} if follows else {})
    # The old address stays suppressed by its hash, as no customer has it any more.
    assert suppression_reasons() == {hash_email("ada@example.com"): reason} | (
        {"new@example.com": reason} if follows else {}
    )
    # Of the old address nothing is kept that could name the customer.
    kept = {hash_email("ada@example.com"): ""} | ({"new@example.com": "as it was"} if follows else {})
    assert {row.email: (row.at, row.source, row.detail) for row in db.session.scalars(select(Suppression))} == {
        email: (PAST, "relay", detail) for email, detail in kept.items()
    }
    other = customer_actions.create_customer(CustomerValues("ada@example.com", "Other"), [], by="tests")
    assert customer_queries.find_suppression_reasons([other.id]) == {other.id: reason}
    assert customer_queries.count_audience_members(None) == customer_queries.AudienceTotals(2, 1 + follows)


def test_a_removed_suppression_is_removed_under_the_address_and_its_hash(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", suppressed="bounced")
    add_suppression(hash_email("ada@example.com"), "complained")
    found = suppression_queries.find_suppression_by_email("ada@example.com")
    assert found is not None
    assert found.reason == "complained"

    suppression_actions.remove_suppression("ada@example.com", by="tests")

    assert customer_queries.find_suppression_reasons([ada.id]) == {}
    assert suppression_reasons() == {}


def test_a_suppression_ignores_the_case_of_an_email(app: Flask, make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", suppressed="bounced")
    customer_actions.update_customer(ada.id, CustomerValues("Ada@Example.com", "Ada"), [], by="tests")
    assert suppression_reasons() == {"ada@example.com": "bounced"}


@pytest.mark.parametrize("reason", ["unsubscribed", "complained"])
@pytest.mark.parametrize("interface", ["import", "staff", "api"])
def test_an_erased_customer_stays_suppressed_when_created_again(
    import_file: ImportFileFixture, make_customer: MakeCustomer, reason: str, interface: str
) -> None:
    ada = make_customer("ada@example.com")
    add_suppression("ada@example.com", reason, "relay", words="ada@example.com said so")
    db.session.execute(text("update suppression set at = :at"), {"at": PAST})
    customer_actions.erase_customer(ada.id, by="tests")
    assert suppression_reasons() == {hash_email("ada@example.com"): reason}
    kept = db.session.execute(select(Suppression.detail, Suppression.source, Suppression.at)).all()
    assert kept == [("", "relay", PAST)]

    if interface == "import":
        import_file("email\nbob@example.com\nADA@example.com\n")
    elif interface == "staff":
        customer_actions.create_customer(CustomerValues("ada@example.com", "Ada"), [], by="tests")
    else:
        customer_actions.upsert_customer(CustomerValues("ada@example.com", source_id="C9"), None, by="tests")

    again = customer_queries.find_customer_by_email("ada@example.com")
    assert again is not None
    assert customer_queries.find_suppression_reasons([again.id]) == {again.id: reason}
    assert suppression_reasons() == {"ada@example.com": reason}
    assert customer_queries.count_audience_members(None).suppressed == 1


STRONGER = [
    # The reason for the plain address, the reason for its hash, and the one that is kept.
    ("bounced", "unsubscribed", "unsubscribed"),
    ("bounced", "complained", "complained"),
    ("unsubscribed", "complained", "complained"),
    ("unsubscribed", "bounced", "unsubscribed"),
    ("complained", "unsubscribed", "complained"),
    ("complained", "bounced", "complained"),
]


@pytest.mark.parametrize(("plain", "hashed", "kept"), [*STRONGER, ("unsubscribed", "unsubscribed", "unsubscribed")])
@pytest.mark.parametrize("interface", ["import", "staff", "api", "other address"])
def test_of_an_address_and_its_hash_the_stronger_reason_is_kept(
    import_file: ImportFileFixture, make_customer: MakeCustomer, plain: str, hashed: str, kept: str, interface: str
) -> None:
    add_suppression("ada@example.com", plain, source="api", words="by phone")
    add_suppression(hash_email("ada@example.com"), hashed, source="relay")
    db.session.execute(text("update suppression set at = '2026-01-02T03:04:05Z'"))
    db.session.commit()

    if interface == "import":
        import_file("email\nada@example.com\n")
    elif interface == "staff":
        customer_actions.create_customer(CustomerValues("ada@example.com", "Ada"), [], by="tests")
    elif interface == "api":
        customer_actions.upsert_customer(CustomerValues("ada@example.com", source_id="C9"), None, by="tests")
    else:
        bob = make_customer("bob@example.com")
        customer_actions.update_customer(bob.id, CustomerValues("ada@example.com", "Bob"), [], by="tests")

    assert suppression_reasons() == {"ada@example.com": kept}
    row = db.session.get_one(Suppression, "ada@example.com")
    assert (row.source, row.detail, row.at) == (*(("api", "by phone") if kept == plain else ("relay", "")), PAST)


@pytest.mark.parametrize(("new", "old", "kept"), STRONGER)
def test_a_moved_suppression_does_not_weaken_that_of_the_new_address(
    make_customer: MakeCustomer, new: str, old: str, kept: str
) -> None:
    ada = make_customer("ada@example.com")
    add_suppression("ada@example.com", old, "api", words="old")
    add_suppression("new@example.com", new, "relay", words="new")
    db.session.execute(text("update suppression set at = :at where words = 'old'"), {"at": PAST})
    customer_actions.update_customer(ada.id, CustomerValues("new@example.com", "Ada"), [], by="tests")
    assert suppression_reasons() == {"new@example.com": kept, hash_email("ada@example.com"): old}
    row = db.session.get_one(Suppression, "new@example.com")
    expected = ("relay", "new", False) if kept == new else ("api", "old", True)
    assert (row.source, row.detail, row.at == PAST) == expected


@pytest.mark.parametrize(("hashed", "plain", "kept"), [row for row in STRONGER if row[1] != "bounced"])
def test_an_erasure_keeps_the_stronger_reason_under_the_hash(
    make_customer: MakeCustomer, hashed: str, plain: str, kept: str
) -> None:
    ada = make_customer("ada@example.com")
    add_suppression("ada@example.com", plain, "api")
    add_suppression(hash_email("ada@example.com"), hashed, "relay")
    db.session.execute(text("update suppression set at = :at where source = 'api'"), {"at": PAST})
    customer_actions.erase_customer(ada.id, by="tests")
    assert suppression_reasons() == {hash_email("ada@example.com"): kept}
    row = db.session.scalars(select(Suppression)).one()
    assert (row.source, row.at == PAST) == (("relay", False) if kept == hashed else ("api", True))


def test_an_erased_customer_cannot_be_unsubscribed(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    customer_actions.erase_customer(ada.id, by="tests")
    assert not suppression_actions.unsubscribe_customer(ada.id, campaign_id=1)
    assert suppression_reasons() == {}
    assert "customer.unsubscribed" not in db.session.scalars(select(AuditEntry.action)).all()


def test_unsubscribing_twice_is_recorded_once(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    assert suppression_actions.unsubscribe_customer(ada.id, campaign_id=1)
    assert not suppression_actions.unsubscribe_customer(ada.id, campaign_id=1)
    assert db.session.scalars(select(AuditEntry.action)).all() == ["customer.unsubscribed"]


def test_every_change_of_the_list_is_in_the_audit_log(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    subject = f"customer {ada.id}"

    suppression_actions.unsubscribe_customer(ada.id, 7)
    suppression_actions.resubscribe_customer(ada.id, 8)
    suppression_actions.resubscribe_customer(ada.id, 8)
    suppression_actions.add_suppression_by_staff("ADA@example.com", "complained", by="ann")
    suppression_actions.add_suppression_by_staff("ada@example.com", "bounced", by="bob")
    suppression_actions.remove_suppression("ada@example.com", by="cem")
    db.session.rollback()

    columns = (AuditEntry.actor, AuditEntry.action, AuditEntry.subject, AuditEntry.detail)
    assert [tuple(row) for row in db.session.execute(select(*columns).order_by(AuditEntry.id))] == [
        ("the customer", "customer.unsubscribed", subject, {"campaign": 7}),
        ("the customer", "customer.subscribed_again", subject, {"campaign": 8}),
        ("ann", "suppression.added", subject, {"reason": "complained"}),
        ("cem", "suppression.lifted", subject, {"reason": "complained"}),
    ]


def test_a_detail_is_cut_and_loses_its_null_characters(app: Flask) -> None:
    add_suppression(words="a\0" * 999 + "bcd")
    assert db.session.get_one(Suppression, "ada@example.com").detail == "a" * 999 + "b"


def test_a_long_note_is_cut_before_the_earlier_detail(app: Flask) -> None:
    add_suppression("ada@example.com", "bounced", words="5.1.1 User unknown")
    suppression_actions.add_suppression_by_staff("ada@example.com", "unsubscribed", "tests", "x" * 2000)
    detail = db.session.get_one(Suppression, "ada@example.com").detail
    assert (len(detail), detail.strip("x")) == (1000, "; before: bounced, 5.1.1 User unknown")


@pytest.mark.parametrize("address", ["news@example.com", "BOUNCES@example.com"])
def test_no_address_of_the_shop_can_be_suppressed(with_settings: Callable[..., Settings], address: str) -> None:
    with_settings(mail_default_sender="Shop <News@Example.com>", mail_bounce_address="Bounces@example.com")
    with pytest.raises(InvalidInput) as raised:
        suppression_actions.add_suppression_by_staff(address, "bounced", by="tests")
    assert raised.value.errors[0].key == "own_address"
    assert suppression_reasons() == {}


def test_an_email_by_hand_is_refused_for_any_spelling_of_a_suppressed_address(app: Flask) -> None:
    add_suppression(hash_email("ada@example.com"), "unsubscribed")
    with pytest.raises(DomainError, match="suppression list") as raised:
        suppression_actions.check_not_suppressed(" ADA@Example.com")
    assert raised.value.key == "suppressed"


def test_a_bounce_waits_for_an_erasure_that_is_about_to_commit(app: Flask, make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com")
    added: list[bool] = []

    def bounce() -> None:
        with app.app_context():
            added.append(add_suppression("ada@example.com", "bounced", source=1))

    thread = threading.Thread(target=bounce)
    with db.engine.connect() as erasure:
        erasure.execute(
            text("update customer set email = 'erased 1', email_as_given = :given, name = '', erased_at = now()"),
            {"given": ERASED_EMAIL_PLACEHOLDER},
        )
        thread.start()
        while thread.is_alive() and not count_lock_waiters("transactionid"):
            db.session.rollback()
        erasure.commit()
    thread.join()

    assert added == [False]
    assert suppression_reasons() == {}


def test_erasing_deletes_the_suppression_of_a_bounced_address(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", suppressed="bounced")
    customer_actions.erase_customer(ada.id, by="tests")
    assert suppression_reasons() == {}


def test_a_bounce_for_an_erased_customer_stores_no_address(make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    customer_actions.erase_customer(ada.id, by="tests")
    assert not add_suppression("ada@example.com", "bounced", source=1)
    assert suppression_reasons() == {}
