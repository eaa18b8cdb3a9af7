"""Redemptions and campaigns after a customer's email or audiences have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support import smtp_relay
from tests.support.factories import MakeCustomer, MakeOffer
from webapp.accounts.models import AuditEntry
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.sending import sender
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import actions as customer_actions
from webapp.customers import audience_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Audience
from webapp.customers.validation import CustomerValues
from webapp.redemptions import count_queries, group_commit, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.rules import RedemptionRequest


def make_request(email: str = "ada@example.com", code: str = "SUMMER25") -> RedemptionRequest:
    return RedemptionRequest(channel="form", code=code, email=email)


def redeem(email: str = "ada@example.com", code: str = "SUMMER25") -> str | None:
    """Redeem; return the refusal reason, or None when it is redeemed."""
    try:
        group_commit.redeem(make_request(email, code))
    except RedemptionRefused as refusal:
        return refusal.reason
    return None


def edit(staff: FlaskClient, customer_id: int, **fields: object) -> Any:
    return staff.post(f"/customers/{customer_id}/edit", data={"email": "ada@example.com", "name": "Ada", **fields})


# --- changed emails ------------------------------------------------------------------------------


def test_a_new_email_set_by_staff_allows_no_second_redemption(
    staff: FlaskClient, make_customer: MakeCustomer, make_offer: MakeOffer
) -> None:
    ada = make_customer()
    make_offer()
    group_commit.redeem(make_request())

    edit(staff, ada.id, email="countess@example.com", locale="de", name="Countess")

    assert redeem("countess@example.com") == "already_redeemed"
    assert redeem("ada@example.com") == "customer_unknown"
    found = customer_queries.find_customer(ada.id)
    assert found is not None
    assert (found.name, found.locale) == ("Countess", "de")


def test_a_new_email_set_by_the_api_allows_no_second_redemption(
    api: Any, make_customer: MakeCustomer, make_offer: MakeOffer
) -> None:
    make_customer(source_id="C-1")
    make_offer()
    group_commit.redeem(make_request())

    response = api.put("/api/v1/customers/C-1", json={"email": "countess@example.com"})

    assert response.status_code == 200
    assert redeem("countess@example.com") == "already_redeemed"
    assert redeem("ada@example.com") == "customer_unknown"


def test_the_personal_link_and_the_receipt_work_after_a_new_email(
    client: FlaskClient, make_customer: MakeCustomer, make_offer: MakeOffer
) -> None:
    ada, offer = make_customer(), make_offer()
    link = personal_links.build_personal_url(offer.id, ada.id).removeprefix("http://localhost")
    customer_actions.update_customer(ada.id, CustomerValues("countess@example.org", "Ada"), [], by="tests")

    redeemed = client.post(link)
    receipt = client.get(link)

    assert (redeemed.status_code, receipt.status_code) == (200, 200)
    assert "c…s@example.org" in receipt.text
    assert redemption_queries.list_customer_redemptions(ada.id)[0].public_id in receipt.text


def test_a_new_customer_with_the_former_email_may_redeem(make_customer: MakeCustomer, make_offer: MakeOffer) -> None:
    ada = make_customer()
    make_offer()
    group_commit.redeem(make_request())
    customer_actions.update_customer(ada.id, CustomerValues("countess@example.com", "Ada"), [], by="tests")

    other = customer_actions.create_customer(CustomerValues("ada@example.com", "Another Ada"), [], by="tests")

    assert group_commit.redeem(make_request()).customer_id == other.id != ada.id


def test_a_taken_email_is_an_error_at_the_field_and_the_form_keeps_its_input(
    staff: FlaskClient, make_customer: MakeCustomer
) -> None:
    ada = make_customer()
    make_customer("bob@example.com")

    response = edit(staff, ada.id, email="BOB@example.com", name="Typed")

    assert response.status_code == 422
    assert "Another customer has this email address." in response.text
    assert 'id="email-error"' in response.text
    assert 'value="Typed"' in response.text
    assert customer_queries.find_customer_by_email("ada@example.com") is not None


def test_a_taken_email_is_a_conflict_in_the_api(api: Any, make_customer: MakeCustomer) -> None:
    make_customer(source_id="C-1")
    make_customer("bob@example.com")

    response = api.put("/api/v1/customers/C-1", json={"email": "bob@example.com"})

    assert (response.status_code, response.json["code"]) == (409, "conflict")
    assert response.json["errors"][0]["pointer"] == "/email"


@pytest.mark.parametrize(
    ("path", "source_id"),
    [
        ("crm/42", "crm/42"),
        ("crm%2F42", "crm/42"),
        ("a/b/c", "a/b/c"),
        ("a//b", "a//b"),
        ("import", "import"),
        ("a%20b%3F%23", "a b?#"),
        ("%C3%A9", "é"),
    ],
)
def test_a_source_id_may_have_any_characters(api: Any, path: str, source_id: str) -> None:
    created = api.put(f"/api/v1/customers/{path}", json={"email": "ada@example.com"})
    updated = api.put(f"/api/v1/customers/{path}", json={"email": "countess@example.com"})

    assert (created.status_code, updated.status_code, updated.json["source_id"]) == (201, 200, source_id)
    assert api.get(f"/api/v1/customers/{path}").json["email"] == "countess@example.com"
    assert api.delete(f"/api/v1/customers/{path}").status_code == 204


@pytest.mark.parametrize("path", ["c/offers", "c%2Foffers", "offers", "a@b/c/offers"])
def test_a_source_id_may_end_like_another_endpoint(api: Any, path: str) -> None:
    assert api.put(f"/api/v1/customers/{path}", json={"email": "ada@example.com"}).status_code == 201
    assert api.get(f"/api/v1/customers/{path}").json["email"] == "ada@example.com"
    assert api.delete(f"/api/v1/customers/{path}").status_code == 204


@pytest.mark.parametrize("path", ["ada@example.com", "ada%40example.com"])
def test_the_offers_of_a_customer_are_listed_by_email(api: Any, make_customer: MakeCustomer, path: str) -> None:
    make_customer("ada@example.com", source_id="ada@example.com/offers")
    assert api.get(f"/api/v1/customers/{path}/offers").json == {"offers": []}


# --- audiences -----------------------------------------------------------------------------------


@pytest.fixture
def vip(app: object) -> Audience:
    return audience_actions.create_audience("VIP", by="tests")


def test_an_offer_for_everyone_requires_a_known_customer(make_customer: MakeCustomer, make_offer: MakeOffer) -> None:
    make_customer()
    make_offer()

    assert redeem() is None
    assert redeem("stranger@example.com") == "customer_unknown"


def test_an_offer_for_an_audience_is_only_for_its_members(
    vip: Audience, make_customer: MakeCustomer, make_offer: MakeOffer
) -> None:
    other = audience_actions.create_audience("Others", by="tests")
    customer_actions.create_customer(CustomerValues("member@example.com"), [vip.id], by="tests")
    customer_actions.create_customer(CustomerValues("elsewhere@example.com"), [other.id], by="tests")
    make_customer()
    make_offer(audience_id=vip.id)

    assert redeem("member@example.com") is None
    assert redeem("elsewhere@example.com") == "customer_not_eligible"
    assert redeem() == "customer_not_eligible"


def test_a_member_who_joins_after_the_launch_gets_only_the_next_campaign(
    vip: Audience, make_offer: MakeOffer, with_settings: Callable[..., Settings]
) -> None:
    customer_actions.create_customer(CustomerValues("early@example.com"), [vip.id], by="tests")
    first, second = make_offer("SUMMER25", audience_id=vip.id), make_offer("WINTER", audience_id=vip.id)
    preparation.prepare_campaign(launch_actions.launch_announcement(first.id, "tests").campaign.id)
    customer_actions.create_customer(CustomerValues("late@example.com"), [vip.id], by="tests")

    with smtp_relay.running() as relay:
        with_settings(mail_port=relay.port)
        sender.send_pending_emails()
        first_recipients = dict(relay.recipients)
        preparation.prepare_campaign(launch_actions.launch_announcement(second.id, "tests").campaign.id)
        sender.send_pending_emails()

    assert first_recipients == {"early@example.com": 1}
    assert relay.recipients == {"early@example.com": 2, "late@example.com": 1}
    assert redeem("late@example.com") is None


def test_staff_add_one_customer_to_an_audience(
    staff: FlaskClient, vip: Audience, make_customer: MakeCustomer, make_offer: MakeOffer
) -> None:
    ada = make_customer()
    make_offer(audience_id=vip.id)
    assert redeem() == "customer_not_eligible"

    edit(staff, ada.id, audiences=[vip.id])

    assert f'href="/customers?audience={vip.id}"' in staff.get(f"/customers/{ada.id}").text
    assert redeem() is None


def test_a_customer_removed_from_the_audience_may_not_redeem(
    staff: FlaskClient, vip: Audience, make_offer: MakeOffer
) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [vip.id], by="tests")
    make_offer(audience_id=vip.id)

    edit(staff, ada.id)

    assert redeem() == "customer_not_eligible"


def test_removal_from_an_audience_keeps_redemptions(
    staff: FlaskClient, client: FlaskClient, vip: Audience, make_offer: MakeOffer
) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [vip.id], by="tests")
    offer = make_offer(audience_id=vip.id)
    redemption = group_commit.redeem(make_request())

    edit(staff, ada.id)

    assert count_queries.count_redemptions([offer.id]) == {offer.id: 1}
    assert redeem() == "already_redeemed"
    receipt = client.get(personal_links.build_personal_url(offer.id, ada.id).removeprefix("http://localhost"))
    assert redemption.public_id in receipt.text


def test_rejoining_an_audience_allows_no_second_redemption(vip: Audience, make_offer: MakeOffer) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [vip.id], by="tests")
    make_offer(audience_id=vip.id)
    group_commit.redeem(make_request())

    for audiences in ([], [vip.id]):
        customer_actions.update_customer(ada.id, CustomerValues("ada@example.com"), audiences, by="tests")

    assert redeem() == "already_redeemed"


def test_a_customer_who_left_the_audience_gets_no_campaign(vip: Audience, make_offer: MakeOffer) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [vip.id], by="tests")
    customer_actions.create_customer(CustomerValues("bob@example.com"), [vip.id], by="tests")
    offer = make_offer(audience_id=vip.id)
    customer_actions.update_customer(ada.id, CustomerValues("ada@example.com"), [], by="tests")

    campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
    preparation.prepare_campaign(campaign.id)

    assert db.session.execute(text("select total from campaign")).scalar_one() == 1


def test_a_put_with_audience_adds_to_the_audiences(api: Any, vip: Audience) -> None:
    customer_actions.upsert_customer(CustomerValues("ada@example.com", source_id="C-1"), ["News"], by="tests")

    response = api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", "audience": "VIP"})
    exact = api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", "audiences": ["Only"]})
    both = api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", "audiences": [], "audience": "VIP"})

    assert response.json["audiences"] == ["News", "VIP"]
    assert exact.json["audiences"] == ["Only"]
    assert both.json["audiences"] == ["VIP"]


def test_a_put_creates_the_audience_and_is_in_the_audit_log(api: Any, make_customer: MakeCustomer) -> None:
    ada = make_customer(source_id="C-1")

    api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", "audience": " New  people "})

    assert [found.name for found in customer_queries.list_customer_audiences(ada.id)] == ["New people"]
    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "customer.changed")).one()
    assert entry.detail == {"fields": ["audiences"]}


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\u0007b"])
@pytest.mark.parametrize("pointer", ["/audience", "/audiences/1"])
def test_an_invalid_audience_is_an_error_at_its_field(api: Any, name: str, pointer: str) -> None:
    fields = {"audience": name} if pointer == "/audience" else {"audiences": ["VIP", name]}

    response = api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", **fields})

    assert response.status_code == 422
    assert response.json["errors"][0]["pointer"] == pointer


# --- exports -------------------------------------------------------------------------------------


def test_every_export_is_in_the_audit_log_without_personal_data(
    staff: FlaskClient, make_customer: MakeCustomer, make_offer: MakeOffer
) -> None:
    ada = make_customer()
    offer = make_offer()
    group_commit.redeem(make_request())

    staff.get("/redemptions.csv")
    staff.get("/redemptions.csv?who=ada@example.com&code=summer-25&channel=form&first=2026-01-01")
    staff.get("/redemptions.csv?who=stranger@example.com")

    entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [(entry.actor, entry.action) for entry in entries] == [
        ("manager@example.com", "redemptions.exported"),
    ] * 3
    assert [entry.detail for entry in entries] == [
        None,
        {"offer_id": offer.id, "customer_id": ada.id, "channel": "form", "since": "2026-01-01T00:00:00+00:00"},
        {"found": "nothing"},
    ]


def test_an_export_of_all_customers_is_in_the_audit_log(staff: FlaskClient) -> None:
    staff.get("/customers.csv")

    entries = db.session.execute(select(AuditEntry.actor, AuditEntry.action, AuditEntry.subject)).all()
    assert entries == [("manager@example.com", "customers.exported", "all customers")]


def test_an_export_of_rejected_rows_is_in_the_audit_log(staff: FlaskClient, import_file: Callable[..., Any]) -> None:
    row = import_file("email\nada@@example.com\n")

    assert "ada@@example.com" in staff.get(f"/customers/imports/{row.id}/rejected.csv").text

    found = select(AuditEntry.subject).where(AuditEntry.action == "customers.refused_rows_exported")
    assert db.session.scalars(found).all() == [f"import {row.id}"]


def test_the_audit_log_links_to_the_customer(sign_in: Callable[..., FlaskClient]) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [], by="tests")

    page = sign_in("admin").get("/settings/audit").text

    assert f'href="/customers/{ada.id}"' in page
    assert "ada@example.com" not in page
