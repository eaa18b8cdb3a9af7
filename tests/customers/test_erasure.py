"""Erasing a customer: nothing names the person any more, and everything still adds up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask, current_app
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support.imports import Import
from webapp.accounts import api_key_actions
from webapp.accounts.models import AuditEntry
from webapp.campaigns import queries as campaign_queries
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
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.rules import Order, RedemptionRequest

Make = Callable[..., Customer]
MakeOffer = Callable[..., Offer]
SECRETS = ("ada@", "Ada Lovelace", "C-1815", "en-GB", "poems", "key-of-ada")


def everything() -> str:
    """All rows of all tables, as text."""
    names = [t.name for t in db.metadata.sorted_tables]
    rows = [db.session.execute(text(f"select t::text from {name} t")).scalars().all() for name in names]
    db.session.rollback()
    return "\n".join(row for table in rows for row in table)


@pytest.fixture
def ada(offer: MakeOffer, imported: Import, app: Flask) -> Customer:
    """Ada with traces everywhere: imported, changed, refused rows, mailed with trouble, redeemed twice, once undone."""
    imported(
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
        offer(code, max_redemptions=10)
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
        done = group_commit.redeem(
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
    redemption_rollback.roll_back_redemption(done.public_id, "Ada Lovelace called", by="tests")
    return found


def test_nothing_that_names_the_person_is_left_in_any_table(ada: Customer) -> None:
    before = everything()
    assert all(secret in before for secret in SECRETS)

    customer_actions.erase_customer(ada.id, by="eve@example.com")

    after = everything()
    assert [secret for secret in SECRETS if secret.lower() in after.lower()] == []
    assert b"hash of a body".hex() not in after
    assert "bob@example.com" in after


def test_what_was_redeemed_and_mailed_stays_counted(ada: Customer) -> None:
    def figures() -> object:
        db.session.expire_all()
        return (
            redemption_queries.count_redemptions([1, 2]),
            redemption_queries.count_redemptions_per_day(None, datetime(2020, 1, 1, tzinfo=UTC)),
            [(o.redeemed, o.max_redemptions) for o in db.session.scalars(select(Offer).order_by(Offer.id))],
            campaign_queries.get_stats_by_campaign([1, 2]),
            [
                (use.offer_id, use.row.order_id, use.row.discount_amount)
                for use in redemption_queries.list_customer_redemptions(ada.id)
            ],
            db.session.execute(text("select rows, created, rejected from customer_import")).all(),
            len(delivery_queries.list_customer_deliveries(ada.id)),
        )

    before = figures()

    customer_actions.erase_customer(ada.id, by="tests")

    assert figures() == before


def test_the_trail_says_that_somebody_was_erased_and_by_whom(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="eve@example.com")

    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "customer.erased")).one()
    assert (entry.actor, entry.subject, entry.detail) == ("eve@example.com", f"customer {ada.id}", None)


def test_erasing_once_more_changes_nothing(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")
    before = everything()

    customer_actions.erase_customer(ada.id, by="tests")

    assert everything() == before


def test_nobody_can_be_erased_who_never_was(app: Flask) -> None:
    with pytest.raises(NotFound):
        customer_actions.erase_customer(7, by="tests")


def test_the_row_of_an_erased_customer_takes_no_name_again(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    with pytest.raises(Exception, match="ck_customer_erased"):
        db.session.execute(text("update customer set name = 'Ada' where id = :id"), {"id": ada.id})
    db.session.rollback()


def test_an_import_of_the_same_e_mail_makes_somebody_new(ada: Customer, imported: Import) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    imported("email,source_id\nada@example.com,C-1815\n")

    found = customer_queries.find_customer_by_email("ada@example.com")
    assert found is not None
    assert found.id != ada.id
    assert (
        group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com")).customer_id
        == found.id
    )


@pytest.mark.parametrize("given", ["erased 1", "erased customer"])
def test_what_stands_for_the_e_mail_can_not_be_typed(ada: Customer, given: str) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    with pytest.raises(DomainError, match="This email address is not valid"):
        customer_actions.create_customer(CustomerValues(given), [], by="tests")


def test_the_refused_rows_of_others_are_left_alone(imported: Import, customer: Make) -> None:
    ada = customer("ada@example.com")
    long = "x" * 201
    row = imported(
        f"email,name\nada@example.com,{long}\nbada@example.com,{long}\nada@example.com.au,{long}\n+ADA@EXAMPLE.COM,{long}\n"
        f'"Ada <ADA@Example.com>",x\n'
    )

    customer_actions.erase_customer(ada.id, by="tests")

    kept = [refused.row.partition("@")[0] for refused in import_queries.list_rejected_rows(row.id)]
    assert kept == ["", "bada", "ada", "+ADA", ""]


# --- the doors -----------------------------------------------------------------------------------


def test_the_personal_link_and_code_are_not_known_any_more(client: FlaskClient, ada: Customer) -> None:
    token = personal_links.build_personal_url(1, ada.id).rpartition("/")[2]
    customer_actions.erase_customer(ada.id, by="tests")

    looked, used = client.get(f"/r/{token}"), client.post(f"/r/{token}")

    assert (looked.status_code, used.status_code) == (404, 404)
    assert "This link does not work" in looked.text


def test_an_administrator_erases_after_reading_what_stays(sign_in: Callable[..., FlaskClient], ada: Customer) -> None:
    admin = sign_in("admin")
    question = admin.get(f"/customers/{ada.id}/erase").text

    answer = admin.post(f"/customers/{ada.id}/erase")

    assert "2 redemptions" in question
    assert "2 campaign emails to this customer" in question
    assert answer.headers["Location"] == f"/customers/{ada.id}"
    page = admin.get(f"/customers/{ada.id}").text
    assert "Erased customer" in page
    assert "ada@" not in page.lower()
    assert "Change" not in page.partition("<main")[2].partition("Redeemed")[0]


def test_asking_erases_nothing(sign_in: Callable[..., FlaskClient], ada: Customer) -> None:
    sign_in("admin").get(f"/customers/{ada.id}/erase")

    assert customer_queries.find_customer_by_email("ada@example.com") is not None


def test_managers_do_not_erase(staff: FlaskClient, ada: Customer) -> None:
    assert staff.get(f"/customers/{ada.id}/erase").status_code == 403
    assert staff.post(f"/customers/{ada.id}/erase").status_code == 403
    assert "Erase this customer" not in staff.get(f"/customers/{ada.id}").text
    assert customer_queries.find_customer_by_email("ada@example.com") is not None


def test_whoever_is_erased_can_not_be_erased_or_changed_by_hand(
    sign_in: Callable[..., FlaskClient], ada: Customer
) -> None:
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

    answer = staff.get(address.format(reference=reference))

    assert answer.status_code == 200
    assert "erased customer" in answer.text


def test_an_erased_customer_is_on_no_list_and_in_no_file_of_customers(staff: FlaskClient, ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    assert "erased" not in staff.get("/customers?q=erased").text.partition("<main")[2].partition("</form>")[2]
    assert "erased" not in staff.get("/customers.csv").text


def test_a_key_erases_by_source_id(api: Any, ada: Customer) -> None:
    first, second = api.delete("/api/v1/customers/C-1815"), api.delete("/api/v1/customers/C-1815")

    assert (first.status_code, first.data, second.status_code) == (204, b"", 404)
    assert customer_queries.find_customer_by_email("ada@example.com") is None


def test_a_key_erases_by_e_mail(api: Any, ada: Customer) -> None:
    answers = [api.post("/api/v1/erasures", json={"email": "ADA@example.com"}).status_code for _ in range(2)]

    assert answers == [204, 404]
    assert customer_queries.find_customer_by_source_id("C-1815") is None


@pytest.mark.parametrize("body", [{}, {"email": "ada"}, {"email": 1}, {"email": "a@b.example", "name": "x"}])
def test_what_names_nobody_is_told_at_its_field(api: Any, body: dict[str, object]) -> None:
    answer = api.post("/api/v1/erasures", json=body)

    assert answer.status_code == 422
    assert answer.json["errors"]


@pytest.mark.parametrize("scope", ["read", "redeem"])
def test_erasing_needs_the_scope_manage(app: Flask, ada: Customer, scope: str) -> None:
    headers = {"Authorization": f"Bearer {api_key_actions.create_api_key('reader', [scope], by='tests')}"}
    client = app.test_client()

    gone = client.delete("/api/v1/customers/C-1815", headers=headers)
    by_email = client.post("/api/v1/erasures", json={"email": "ada@example.com"}, headers=headers)

    assert (gone.status_code, by_email.status_code) == (403, 403)


def test_json_of_a_redemption_gives_no_e_mail_for_an_erased_customer(api: Any, ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")

    found = api.get("/api/v1/redemptions").json["redemptions"]

    assert [(done["customer"], done["metadata"], done["order"]["id"]) for done in found] == [
        ({"email": None}, None, "A-1")
    ]


# --- at the same time ----------------------------------------------------------------------------


def test_erasing_while_redeeming_fails_nobody_and_leaves_no_half_state(customer: Make, offer: MakeOffer) -> None:
    offer(max_redemptions=100)
    running: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    people = [customer(f"c{n}@example.com").id for n in range(12)]
    start = threading.Barrier(2 * len(people))
    answers: list[str] = []
    failures: list[BaseException] = []

    def at_once(work: Callable[[], None]) -> None:
        with running.app_context():
            start.wait()
            try:
                work()
            except RedemptionRefused as refused:
                answers.append(refused.reason)
            except BaseException as error:
                failures.append(error)

    def redeem(n: int) -> None:
        ask = RedemptionRequest(
            channel="api", code="SUMMER25", email=f"c{n}@example.com", metadata={"of": f"c{n}"}, api_key_id=1
        )
        group_commit.redeem(ask)
        answers.append("redeemed")

    works = [lambda n=n: redeem(n) for n in range(12)]
    works += [lambda i=i: customer_actions.erase_customer(i, by="tests") for i in people]
    threads = [threading.Thread(target=at_once, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    task_queue.run("customers.sweep_customers")

    left = db.session.execute(text("select count(*), count(order_metadata) from redemption")).one()
    assert failures == []
    assert set(answers) <= {"redeemed", "customer_unknown"}
    assert (left[0], left[1]) == (answers.count("redeemed"), 0)
    assert db.session.scalars(select(Offer.redeemed)).one() == left[0]


def test_what_was_written_at_the_very_moment_is_emptied_by_the_sweep(ada: Customer) -> None:
    customer_actions.erase_customer(ada.id, by="tests")
    late = {"id": ada.id}
    for statement in (
        'update redemption set order_metadata = \'{"for": "Ada Lovelace"}\' where customer_id = :id',
        "update mail_issue set text = '250 ada@example.com' where customer_id = :id",
        "insert into audience_member (audience_id, customer_id) values (1, :id)",
    ):
        db.session.execute(text(statement), late)
    db.session.commit()

    task_queue.run("customers.sweep_customers")

    after = everything()
    assert [secret for secret in SECRETS if secret.lower() in after.lower()] == []
    assert customer_queries.list_customer_audiences(ada.id) == []


def test_a_put_at_the_very_moment_makes_somebody_new(customer: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = customer("ada@example.com", source_id="C1")
    looked_up = customer_queries.find_customer_by_source_id

    def erased_between(source_id: str) -> Customer | None:
        found = looked_up(source_id)
        monkeypatch.setattr(customer_queries, "find_customer_by_source_id", looked_up)
        with db.engine.begin() as other:
            other.execute(
                text(
                    "update customer set email = 'erased ' || id, email_as_given = 'erased customer', name = '', "
                    "source_id = null, erased_at = now()"
                )
            )
        return found

    monkeypatch.setattr(customer_queries, "find_customer_by_source_id", erased_between)

    found, is_new = customer_actions.upsert_customer(
        CustomerValues("ada@example.com", source_id="C1"), None, by="tests"
    )

    assert (found.id != ada.id, is_new) == (True, True)


def test_refused_rows_are_dropped_after_three_months_and_their_number_stays(imported: Import) -> None:
    old, new = imported("email\nada@@example.com\n"), imported("email\nbob@@example.com\n")
    old.finished_at = datetime.now(UTC) - timedelta(days=91)
    db.session.commit()

    task_queue.run("customers.sweep_customers")

    assert (import_queries.list_rejected_rows(old.id), len(import_queries.list_rejected_rows(new.id))) == ([], 1)
    row = import_queries.find_import(old.id)
    assert row is not None
    assert row.rejected == 1


def test_an_import_that_was_waiting_brings_an_erased_customer_back_as_somebody_new(
    received: Callable[..., int], customer: Make
) -> None:
    ada = customer("ada@example.com")
    waiting = received("email\nada@example.com\n")
    customer_actions.erase_customer(ada.id, by="tests")

    import_processing.run_import(waiting)

    found = customer_queries.find_customer_by_email("ada@example.com")
    assert found is not None
    assert found.id != ada.id
