"""Erasing a customer deletes all personal data and keeps all counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask, current_app
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support.databases import dump_tables
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.imports import ImportFileFixture
from webapp.accounts import api_key_actions
from webapp.accounts.models import AuditEntry
from webapp.campaigns import stats_queries
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.core import task_queue
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports import queries as import_queries
from webapp.customers.models import Customer
from webapp.customers.validation import CustomerValues
from webapp.offers.models import Offer, OfferCounter
from webapp.redemptions import count_queries, group_commit, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.models import ERASED_REASON
from webapp.redemptions.rules import Order, RedemptionRequest

SECRETS = ("ada@", "Ada Lovelace", "C-1815", "en-GB", "poems", "key-of-ada")


@pytest.fixture
def ada(make_offer: MakeOffer, import_file: ImportFileFixture, app: Flask) -> Customer:
    """Ada with personal data in every table that may hold any."""
    import_file(
        "email,name,source_id,locale,audience\n"
        "ada@example.com,Ada Lovelace,C-1815,en-GB,Poets\n"
        "bob@example.com,Bob,C-2,,\n"
        f"ADA@example.com,{'Ada Lovelace ' * 20},,,\n"
    )
    found = customer_queries.find_customer_by_email("ada@example.com")
    assert found is not None
    customer_actions.update_customer(
        found.id, CustomerValues("Ada@Example.com", "Ada Lovelace", "en-GB", "C-1815"), [], by="tests"
    )
    customer_actions.upsert_customer(CustomerValues("ada@example.com", None, None, "C-1815"), ["Poets"], by="tests")
    for code in ("SUMMER25", "WINTER"):
        make_offer(code, max_redemptions=10)
        campaign = launch_actions.launch_announcement(
            db.session.scalars(select(Offer.id).where(Offer.code == code)).one(), "tests"
        )
        preparation.prepare_campaign(campaign.campaign.id)
    db.session.execute(
        text(
            "insert into mail_issue (campaign_id, customer_id, state, smtp_code, text) "
            "values (1, :id, 'failed', 550, '550 5.1.1 <ada@example.com> unknown')"
        ),
        {"id": found.id},
    )
    db.session.commit()
    for code in ("SUMMER25", "WINTER"):
        redemption = group_commit.redeem(
            RedemptionRequest(
                channel="api",
                code=code,
                email="ada@example.com",
                order=Order("A-1", 4999, "EUR"),
                metadata={"gift": "poems for Ada Lovelace"},
                api_key_id=1,
                idempotency_key="key-of-ada",
                body_hash=b"hash of a body with ada@example.com",
            )
        )
    redemption_rollback.roll_back_redemption(redemption.public_id, "Ada Lovelace called", by="tests")
    return found


def test_no_table_has_personal_data_after_erasing(ada: Customer) -> None:
    before = dump_tables()
    assert all(secret in before for secret in SECRETS)

    customer_actions.erase_customer(ada.id, by="eve@example.com")

    after = dump_tables()
    assert [secret for secret in SECRETS if secret.lower() in after.lower()] == []
    assert b"hash of a body".hex() not in after
    assert "bob@example.com" in after


def test_erasing_keeps_all_counts(ada: Customer) -> None:
    def figures() -> object:
        db.session.expire_all()
        return (
            count_queries.count_redemptions([1, 2]),
            count_queries.count_redemptions_per_day(None, datetime(2020, 1, 1, tzinfo=UTC)),
            [(o.redeemed, o.max_redemptions) for o in db.session.scalars(select(Offer).order_by(Offer.id))],
            # The time since the last email goes on.
            {n: replace(stats, idle_seconds=0) for n, stats in stats_queries.get_stats_by_campaign([1, 2]).items()},
            [
                (redemption.offer_id, redemption.row.order_id, redemption.row.discount_amount)
                for redemption in redemption_queries.list_customer_redemptions(ada.id)
            ],
            db.session.execute(text("select rows, created, rejected from customer_import")).all(),
            len(delivery_queries.list_customer_deliveries(ada.id)),
        )

    before = figures()

    customer_actions.erase_customer(ada.id, by="tests")

    assert figures() == before


def test_the_audit_log_has_the_erasure_and_its_actor(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="eve@example.com")

    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "customer.erased")).one()
    assert (entry.actor, entry.subject, entry.detail) == ("eve@example.com", f"customer {ada.id}", None)


def test_erasing_twice_changes_nothing(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")
    before = dump_tables()

    customer_actions.erase_customer(ada.id, by="tests")

    assert dump_tables() == before


def test_an_unknown_customer_cannot_be_erased(app: Flask) -> None:
    with pytest.raises(NotFound):
        customer_actions.erase_customer(7, by="tests")


def test_the_row_of_an_erased_customer_rejects_a_name(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    with pytest.raises(Exception, match="ck_customer_erased"):
        db.session.execute(text("update customer set name = 'Ada' where id = :id"), {"id": ada.id})
    db.session.rollback()


def test_an_import_of_an_erased_email_creates_a_new_customer(ada: Customer, import_file: ImportFileFixture) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    import_file("email,source_id\nada@example.com,C-1815\n")

    found = customer_queries.find_customer_by_email("ada@example.com")
    assert found is not None
    assert found.id != ada.id
    assert (
        group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com")).customer_id
        == found.id
    )


@pytest.mark.parametrize("given", ["erased 1", "erased customer"])
def test_the_placeholder_of_an_erased_email_is_not_a_valid_email(ada: Customer, given: str) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    with pytest.raises(DomainError, match="This email address is not valid"):
        customer_actions.create_customer(CustomerValues(given), [], by="tests")


def test_erasing_keeps_the_rejected_rows_of_other_customers(
    import_file: ImportFileFixture, make_customer: MakeCustomer
) -> None:
    ada = make_customer("ada@example.com")
    long = "x" * 201
    row = import_file(
        f"email,name\nada@example.com,{long}\nbada@example.com,{long}\nada@example.com.au,{long}\n+ADA@EXAMPLE.COM,{long}\n"
        f'"Ada <ADA@Example.com>",x\n'
    )

    customer_actions.erase_customer(ada.id, by="tests")

    remaining = [rejected.row.partition("@")[0] for rejected in import_queries.list_rejected_rows(row.id)]
    assert remaining == ["", "bada", "ada", "+ADA", ""]


def test_erasing_deletes_rejected_rows_with_either_form_of_an_international_domain(
    import_file: ImportFileFixture,
) -> None:
    long = "x" * 201
    row = import_file(
        f"email,name\nada@müller.example,Ada\nada@müller.example,{long}\nada@xn--mller-kva.example,{long}\nbo@example.com,{long}\n"
    )
    ada = customer_queries.find_customer_by_email("ada@xn--mller-kva.example")
    assert ada is not None

    customer_actions.erase_customer(ada.id, by="tests")

    remaining = [rejected.row.partition(",")[0] for rejected in import_queries.list_rejected_rows(row.id)]
    assert remaining == ["", "", "bo@example.com"]


def test_erasing_keeps_the_reason_for_which_a_row_was_rejected(import_file: ImportFileFixture) -> None:
    row = import_file(f"email,name\nada@example.com,Ada\nada@example.com,{'x' * 201}\n")
    ada = customer_queries.find_customer_by_email("ada@example.com")
    assert ada is not None

    customer_actions.erase_customer(ada.id, by="tests")

    rejected = import_queries.list_rejected_rows(row.id)
    assert [(item.row, item.detail) for item in rejected] == [("", "The name can have at most 200 characters.")]


def test_erasing_keeps_the_audiences_of_other_customers(import_file: ImportFileFixture) -> None:
    import_file("email\nada@example.com\nbob@example.com\n", audience="VIP")
    ada, bob = (customer_queries.find_customer_by_email(f"{name}@example.com") for name in ("ada", "bob"))
    assert ada is not None
    assert bob is not None

    customer_actions.erase_customer(ada.id, by="tests")
    task_queue.run("customers.sweep_customers")

    audiences = [customer_queries.list_customer_audiences(customer.id) for customer in (ada, bob)]
    assert [[audience.name for audience in found] for found in audiences] == [[], ["VIP"]]


def test_erasing_deletes_the_row_of_a_source_id_that_another_customer_has(
    import_file: ImportFileFixture, make_customer: MakeCustomer
) -> None:
    ada, _ = make_customer("ada@example.com"), make_customer("bob@example.com", source_id="C1")
    row = import_file("email,name,source_id,locale,audience\nada@example.com,Ada King,C1,en,VIP\n")
    assert [item.row for item in import_queries.list_rejected_rows(row.id)] == ["ada@example.com,Ada King,C1,en,VIP"]

    customer_actions.erase_customer(ada.id, by="tests")

    assert [item.row for item in import_queries.list_rejected_rows(row.id)] == [""]


def test_erasing_deletes_what_a_warning_quotes_from_the_row(
    import_file: ImportFileFixture, make_customer: MakeCustomer
) -> None:
    ada = make_customer("ada@example.com")
    row = import_file("email,name,locale\nada@example.com,en,Ada Lovelace\nbob@example.com,en,Bob Babbage\n")

    customer_actions.erase_customer(ada.id, by="tests")

    details = [rejected.detail for rejected in import_queries.list_rejected_rows(row.id)]
    assert [("Lovelace" in detail, "Babbage" in detail) for detail in details] == [(False, False), (False, True)]


# --- interfaces ----------------------------------------------------------------------------------


def test_the_personal_link_of_an_erased_customer_is_not_found(client: FlaskClient, ada: Customer) -> None:
    token = personal_links.build_personal_url(1, ada.id).rpartition("/")[2]
    customer_actions.erase_customer(ada.id, by="tests")

    opened, redeemed = client.get(f"/r/{token}"), client.post(f"/r/{token}")

    assert (opened.status_code, redeemed.status_code) == (404, 404)
    assert "This link does not work" in opened.text


def test_an_admin_erases_a_customer_after_a_confirmation(sign_in: Callable[..., FlaskClient], ada: Customer) -> None:
    admin = sign_in("admin")
    confirmation = admin.get(f"/customers/{ada.id}/erase").text

    response = admin.post(f"/customers/{ada.id}/erase")

    assert "2 redemptions" in confirmation
    assert "2 campaign emails to this customer" in confirmation
    assert response.headers["Location"] == f"/customers/{ada.id}"
    page = admin.get(f"/customers/{ada.id}").text
    assert "Erased customer" in page
    assert "ada@" not in page.lower()
    assert "Change" not in page.partition("<main")[2].partition("Redeemed")[0]


def test_opening_the_confirmation_erases_nothing(sign_in: Callable[..., FlaskClient], ada: Customer) -> None:
    sign_in("admin").get(f"/customers/{ada.id}/erase")

    assert customer_queries.find_customer_by_email("ada@example.com") is not None


def test_managers_cannot_erase_customers(staff: FlaskClient, ada: Customer) -> None:
    assert staff.get(f"/customers/{ada.id}/erase").status_code == 403
    assert staff.post(f"/customers/{ada.id}/erase").status_code == 403
    assert "Erase this customer" not in staff.get(f"/customers/{ada.id}").text
    assert customer_queries.find_customer_by_email("ada@example.com") is not None


def test_an_erased_customer_has_no_forms(sign_in: Callable[..., FlaskClient], ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")
    admin = sign_in("admin")

    assert admin.get(f"/customers/{ada.id}/erase").status_code == 404
    assert admin.get(f"/customers/{ada.id}/edit").status_code == 404


@pytest.mark.parametrize(
    "address", ["/redemptions", "/redemptions.csv", "/campaigns/1/recipients", "/offers/1", "/redemptions/{reference}"]
)
def test_lists_pages_and_files_show_an_erased_customer(staff: FlaskClient, ada: Customer, address: str) -> None:
    reference = redemption_queries.list_customer_redemptions(ada.id)[0].public_id
    customer_actions.erase_customer(ada.id, by="tests")

    response = staff.get(address.format(reference=reference))

    assert response.status_code == 200
    assert "erased customer" in response.text


def test_customer_lists_and_exports_omit_erased_customers(staff: FlaskClient, ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    assert "erased" not in staff.get("/customers?q=erased").text.partition("<main")[2].partition("</form>")[2]
    assert "erased" not in staff.get("/customers.csv").text


def erasing_actors() -> list[str]:
    return list(db.session.scalars(select(AuditEntry.actor).where(AuditEntry.action == "customer.erased")))


def test_the_api_erases_by_source_id(api: Any, ada: Customer) -> None:
    first, second = api.delete("/api/v1/customers/C-1815"), api.delete("/api/v1/customers/C-1815")

    assert erasing_actors() == ["API key tests"]
    assert (first.status_code, first.data, second.status_code) == (204, b"", 404)
    assert customer_queries.find_customer_by_email("ada@example.com") is None


def test_the_api_erases_by_email(api: Any, ada: Customer) -> None:
    statuses = [api.post("/api/v1/erasures", json={"email": "ADA@example.com"}).status_code for _ in range(2)]

    assert erasing_actors() == ["API key tests"]
    assert statuses == [204, 404]
    assert customer_queries.find_customer_by_source_id("C-1815") is None


@pytest.mark.parametrize("body", [{}, {"email": "ada"}, {"email": 1}, {"email": "a@b.example", "name": "x"}])
def test_an_invalid_erasure_request_is_rejected(api: Any, body: dict[str, object]) -> None:
    response = api.post("/api/v1/erasures", json=body)

    assert response.status_code == 422
    assert response.json["errors"]


@pytest.mark.parametrize("scope", ["read", "redeem"])
def test_erasing_requires_the_scope_manage(app: Flask, ada: Customer, scope: str) -> None:
    headers = {"Authorization": f"Bearer {api_key_actions.create_api_key('reader', [scope], by='tests')}"}
    client = app.test_client()

    by_source_id = client.delete("/api/v1/customers/C-1815", headers=headers)
    by_email = client.post("/api/v1/erasures", json={"email": "ada@example.com"}, headers=headers)

    assert (by_source_id.status_code, by_email.status_code) == (403, 403)


def test_the_api_returns_no_email_of_an_erased_customer(api: Any, ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    found = api.get("/api/v1/redemptions").json["redemptions"]

    assert [(done["customer"], done["metadata"], done["order"]["id"]) for done in found] == [
        ({"email": None}, None, "A-1")
    ]


# --- concurrency ---------------------------------------------------------------------------------


def test_concurrent_erasures_and_redemptions_leave_consistent_rows(
    make_customer: MakeCustomer, make_offer: MakeOffer
) -> None:
    make_offer(max_redemptions=100)
    app_object: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    customer_ids = [make_customer(f"c{n}@example.com").id for n in range(12)]
    start = threading.Barrier(2 * len(customer_ids))
    outcomes: list[str] = []
    failures: list[BaseException] = []

    def run(call: Callable[[], None]) -> None:
        with app_object.app_context():
            start.wait()
            try:
                call()
            except RedemptionRefused as refusal:
                outcomes.append(refusal.reason)
            except BaseException as error:
                failures.append(error)

    def redeem(n: int) -> None:
        request = RedemptionRequest(
            channel="api", code="SUMMER25", email=f"c{n}@example.com", metadata={"of": f"c{n}"}, api_key_id=1
        )
        group_commit.redeem(request)
        outcomes.append("redeemed")

    def erase(customer_id: int) -> None:
        customer_actions.erase_customer(customer_id, by="tests")

    calls = [lambda n=n: redeem(n) for n in range(12)]
    calls += [lambda i=i: erase(i) for i in customer_ids]
    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    task_queue.run("customers.sweep_customers")

    stored = db.session.execute(text("select count(*), count(order_metadata) from redemption")).one()
    assert failures == []
    assert set(outcomes) <= {"redeemed", "customer_unknown"}
    assert (stored[0], stored[1]) == (outcomes.count("redeemed"), 0)
    assert db.session.scalars(select(OfferCounter.redeemed)).one() == stored[0]


@pytest.mark.parametrize("table", ["redemption", "rollback"])
def test_erasing_keeps_nothing_of_the_request_of_a_redemption(ada: Customer, table: str) -> None:
    stored = f"select order_metadata, idempotency_key, body_hash from {table}"
    assert None not in db.session.execute(text(stored)).one()

    customer_actions.erase_customer(ada.id, by="tests")

    assert db.session.execute(text(stored)).one() == (None, None, None)


def test_erasing_deletes_the_reason_of_an_undone_redemption_without_other_data(
    make_customer: MakeCustomer, make_offer: MakeOffer
) -> None:
    make_offer()
    ada = make_customer()
    redemption = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    redemption_rollback.roll_back_redemption(redemption.public_id, "Ada Lovelace called", by="tests")

    customer_actions.erase_customer(ada.id, by="tests")

    assert db.session.scalars(text("select reason from rollback")).one() == ERASED_REASON


def test_the_sweep_deletes_data_written_during_an_erasure(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")
    parameters = {"id": ada.id}
    for statement in (
        'update redemption set order_metadata = \'{"for": "Ada Lovelace"}\' where customer_id = :id',
        "update mail_issue set text = '250 ada@example.com' where customer_id = :id",
        "insert into audience_member (audience_id, customer_id) values (1, :id)",
    ):
        db.session.execute(text(statement), parameters)
    db.session.commit()

    task_queue.run("customers.sweep_customers")

    after = dump_tables()
    assert [secret for secret in SECRETS if secret.lower() in after.lower()] == []
    assert customer_queries.list_customer_audiences(ada.id) == []


def test_a_put_during_an_erasure_creates_a_new_customer(
    make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = make_customer("ada@example.com", source_id="C1")
    find_by_source_id = customer_queries.find_customer_by_source_id

    def find_then_erase(source_id: str) -> Customer | None:
        found = find_by_source_id(source_id)
        monkeypatch.setattr(customer_queries, "find_customer_by_source_id", find_by_source_id)
        with db.engine.begin() as connection:
            connection.execute(
                text(
                    "update customer set email = 'erased ' || id, email_as_given = 'erased customer', name = '', "
                    "source_id = null, erased_at = now()"
                )
            )
        return found

    monkeypatch.setattr(customer_queries, "find_customer_by_source_id", find_then_erase)

    found, is_new = customer_actions.upsert_customer(
        CustomerValues("ada@example.com", source_id="C1"), None, by="tests"
    )

    assert (found.id != ada.id, is_new) == (True, True)


def test_rejected_rows_are_deleted_after_three_months_but_stay_counted(import_file: ImportFileFixture) -> None:
    old, new = import_file("email\nada@@example.com\n"), import_file("email\nbob@@example.com\n")
    old.finished_at = datetime.now(UTC) - timedelta(days=90, minutes=1)
    new.finished_at = datetime.now(UTC) - timedelta(days=89, hours=23)
    db.session.commit()

    task_queue.run("customers.sweep_customers")

    assert (import_queries.list_rejected_rows(old.id), len(import_queries.list_rejected_rows(new.id))) == ([], 1)
    row = import_queries.find_import(old.id)
    assert row is not None
    assert row.rejected == 1


def test_a_queued_import_creates_an_erased_customer_as_a_new_one(
    receive_file: Callable[..., int], make_customer: MakeCustomer
) -> None:
    ada = make_customer("ada@example.com")
    import_id = receive_file("email\nada@example.com\n")
    customer_actions.erase_customer(ada.id, by="tests")

    import_processing.run_import(import_id)

    found = customer_queries.find_customer_by_email("ada@example.com")
    assert found is not None
    assert found.id != ada.id
