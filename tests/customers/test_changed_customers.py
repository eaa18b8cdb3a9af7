"""What becomes of redeeming and mailing when a customer's e-mail or audiences change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support import smtp_relay
from webapp.accounts.models import AuditEntry
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.sending import sender
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import actions as customer_actions
from webapp.customers import audience_actions
from webapp.customers import queries as customer_queries
from webapp.customers.models import Audience, Customer
from webapp.customers.validation import CustomerValues
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.rules import RedemptionRequest

Make = Callable[..., Customer]
MakeOffer = Callable[..., Offer]


def ask(email: str = "ada@example.com", code: str = "SUMMER25") -> RedemptionRequest:
    return RedemptionRequest(channel="form", code=code, email=email)


def refusal(email: str = "ada@example.com", code: str = "SUMMER25") -> str | None:
    """Why redeeming is refused, or none: then it has been redeemed."""
    try:
        group_commit.redeem(ask(email, code))
    except RedemptionRefused as refused:
        return refused.reason
    return None


def edit(staff: FlaskClient, customer_id: int, **typed: object) -> Any:
    return staff.post(f"/customers/{customer_id}/edit", data={"email": "ada@example.com", "name": "Ada", **typed})


# --- another e-mail ------------------------------------------------------------------------------


def test_another_e_mail_by_staff_frees_no_second_use(staff: FlaskClient, customer: Make, offer: MakeOffer) -> None:
    ada = customer()
    offer()
    group_commit.redeem(ask())

    edit(staff, ada.id, email="countess@example.com", locale="de", name="Countess")

    assert refusal("countess@example.com") == "already_redeemed"
    assert refusal("ada@example.com") == "customer_unknown"
    found = customer_queries.find_customer(ada.id)
    assert found is not None
    assert (found.name, found.locale) == ("Countess", "de")


def test_another_e_mail_by_json_frees_no_second_use(api: Any, customer: Make, offer: MakeOffer) -> None:
    customer(source_id="C-1")
    offer()
    group_commit.redeem(ask())

    answer = api.put("/api/v1/customers/C-1", json={"email": "countess@example.com"})

    assert answer.status_code == 200
    assert refusal("countess@example.com") == "already_redeemed"
    assert refusal("ada@example.com") == "customer_unknown"


def test_the_personal_link_and_the_receipt_go_on_with_another_e_mail(
    client: FlaskClient, customer: Make, offer: MakeOffer
) -> None:
    ada, row = customer(), offer()
    link = personal_links.build_personal_url(row.id, ada.id).removeprefix("http://localhost")
    customer_actions.update_customer(ada.id, CustomerValues("countess@example.org", "Ada"), [], by="tests")

    used = client.post(link)
    receipt = client.get(link)

    assert (used.status_code, receipt.status_code) == (200, 200)
    assert "c…s@example.org" in receipt.text
    assert redemption_queries.list_customer_redemptions(ada.id)[0].public_id in receipt.text


def test_the_former_e_mail_may_become_somebody_elses_who_may_redeem(customer: Make, offer: MakeOffer) -> None:
    ada = customer()
    offer()
    group_commit.redeem(ask())
    customer_actions.update_customer(ada.id, CustomerValues("countess@example.com", "Ada"), [], by="tests")

    other = customer_actions.create_customer(CustomerValues("ada@example.com", "Another Ada"), [], by="tests")

    assert group_commit.redeem(ask()).customer_id == other.id != ada.id


def test_somebody_elses_e_mail_is_told_at_the_field_and_the_typed_stays(staff: FlaskClient, customer: Make) -> None:
    ada = customer()
    customer("bob@example.com")

    answer = edit(staff, ada.id, email="BOB@example.com", name="Typed")

    assert answer.status_code == 422
    assert "Another customer has this email address." in answer.text
    assert 'id="email-error"' in answer.text
    assert 'value="Typed"' in answer.text
    assert customer_queries.find_customer_by_email("ada@example.com") is not None


def test_somebody_elses_e_mail_by_json_is_a_conflict_at_the_field(api: Any, customer: Make) -> None:
    customer(source_id="C-1")
    customer("bob@example.com")

    answer = api.put("/api/v1/customers/C-1", json={"email": "bob@example.com"})

    assert (answer.status_code, answer.json["code"]) == (409, "conflict")
    assert answer.json["errors"][0]["pointer"] == "/email"


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
def test_a_source_id_may_hold_slashes_and_anything_else(api: Any, path: str, source_id: str) -> None:
    made = api.put(f"/api/v1/customers/{path}", json={"email": "ada@example.com"})
    again = api.put(f"/api/v1/customers/{path}", json={"email": "countess@example.com"})

    assert (made.status_code, again.status_code, again.json["source_id"]) == (201, 200, source_id)
    assert api.get(f"/api/v1/customers/{path}").json["email"] == "countess@example.com"
    assert api.delete(f"/api/v1/customers/{path}").status_code == 204


@pytest.mark.parametrize("path", ["c/offers", "c%2Foffers", "offers", "a@b/c/offers"])
def test_a_source_id_that_ends_like_another_call_is_a_source_id(api: Any, path: str) -> None:
    assert api.put(f"/api/v1/customers/{path}", json={"email": "ada@example.com"}).status_code == 201
    assert api.get(f"/api/v1/customers/{path}").json["email"] == "ada@example.com"
    assert api.delete(f"/api/v1/customers/{path}").status_code == 204


@pytest.mark.parametrize("path", ["ada@example.com", "ada%40example.com"])
def test_what_somebody_can_use_is_asked_by_e_mail(api: Any, customer: Make, path: str) -> None:
    customer("ada@example.com", source_id="ada@example.com/offers")
    assert api.get(f"/api/v1/customers/{path}/offers").json == {"offers": []}


# --- audiences -----------------------------------------------------------------------------------


@pytest.fixture
def vip(app: object) -> Audience:
    return audience_actions.create_audience("VIP", by="tests")


def test_an_offer_for_everyone_is_for_everyone_known_and_nobody_else(customer: Make, offer: MakeOffer) -> None:
    customer()
    offer()

    assert refusal() is None
    assert refusal("stranger@example.com") == "customer_unknown"


def test_an_offer_for_an_audience_is_for_its_members_alone(vip: Audience, customer: Make, offer: MakeOffer) -> None:
    other = audience_actions.create_audience("Others", by="tests")
    customer_actions.create_customer(CustomerValues("member@example.com"), [vip.id], by="tests")
    customer_actions.create_customer(CustomerValues("elsewhere@example.com"), [other.id], by="tests")
    customer()
    offer(audience_id=vip.id)

    assert refusal("member@example.com") is None
    assert refusal("elsewhere@example.com") == "customer_not_eligible"
    assert refusal() == "customer_not_eligible"


def test_who_joins_after_the_launch_may_redeem_and_is_mailed_by_the_next_campaign_only(
    vip: Audience, offer: MakeOffer, with_settings: Callable[..., Settings]
) -> None:
    customer_actions.create_customer(CustomerValues("early@example.com"), [vip.id], by="tests")
    first, second = offer("SUMMER25", audience_id=vip.id), offer("WINTER", audience_id=vip.id)
    preparation.prepare_campaign(launch_actions.launch_announcement(first.id, "tests").campaign.id)
    customer_actions.create_customer(CustomerValues("late@example.com"), [vip.id], by="tests")

    with smtp_relay.running() as relay:
        with_settings(mail_port=relay.port)
        sender.send_pending_emails()
        running = dict(relay.recipients)
        preparation.prepare_campaign(launch_actions.launch_announcement(second.id, "tests").campaign.id)
        sender.send_pending_emails()

    assert running == {"early@example.com": 1}
    assert relay.recipients == {"early@example.com": 2, "late@example.com": 1}
    assert refusal("late@example.com") is None


def test_staff_add_one_customer_to_an_audience(
    staff: FlaskClient, vip: Audience, customer: Make, offer: MakeOffer
) -> None:
    ada = customer()
    offer(audience_id=vip.id)
    assert refusal() == "customer_not_eligible"

    edit(staff, ada.id, audiences=[vip.id])

    assert f'href="/customers?audience={vip.id}"' in staff.get(f"/customers/{ada.id}").text
    assert refusal() is None


def test_staff_remove_one_customer_who_may_then_not_redeem(staff: FlaskClient, vip: Audience, offer: MakeOffer) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [vip.id], by="tests")
    offer(audience_id=vip.id)

    edit(staff, ada.id)

    assert refusal() == "customer_not_eligible"


def test_removing_from_an_audience_leaves_what_was_redeemed(
    staff: FlaskClient, client: FlaskClient, vip: Audience, offer: MakeOffer
) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [vip.id], by="tests")
    row = offer(audience_id=vip.id)
    done = group_commit.redeem(ask())

    edit(staff, ada.id)

    assert redemption_queries.count_redemptions([row.id]) == {row.id: 1}
    assert refusal() == "already_redeemed"
    receipt = client.get(personal_links.build_personal_url(row.id, ada.id).removeprefix("http://localhost"))
    assert done.public_id in receipt.text


def test_joining_again_frees_no_second_use(vip: Audience, offer: MakeOffer) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [vip.id], by="tests")
    offer(audience_id=vip.id)
    group_commit.redeem(ask())

    for audiences in ([], [vip.id]):
        customer_actions.update_customer(ada.id, CustomerValues("ada@example.com"), audiences, by="tests")

    assert refusal() == "already_redeemed"


def test_who_leaves_an_audience_while_its_mail_is_on_the_way_is_not_in_the_next_one(
    vip: Audience, offer: MakeOffer
) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [vip.id], by="tests")
    customer_actions.create_customer(CustomerValues("bob@example.com"), [vip.id], by="tests")
    row = offer(audience_id=vip.id)
    customer_actions.update_customer(ada.id, CustomerValues("ada@example.com"), [], by="tests")

    campaign = launch_actions.launch_announcement(row.id, "tests").campaign
    preparation.prepare_campaign(campaign.id)

    assert db.session.execute(text("select total from campaign")).scalar_one() == 1


def test_a_put_joins_an_audience_as_a_row_of_an_import_does(api: Any, vip: Audience) -> None:
    customer_actions.upsert_customer(CustomerValues("ada@example.com", source_id="C-1"), ["News"], by="tests")

    answer = api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", "audience": "VIP"})
    exact = api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", "audiences": ["Only"]})
    both = api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", "audiences": [], "audience": "VIP"})

    assert answer.json["audiences"] == ["News", "VIP"]
    assert exact.json["audiences"] == ["Only"]
    assert both.json["audiences"] == ["VIP"]


def test_a_put_that_joins_makes_the_audience_and_is_in_the_trail(api: Any, customer: Make) -> None:
    ada = customer(source_id="C-1")

    api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", "audience": " New  people "})

    assert [found.name for found in customer_queries.list_customer_audiences(ada.id)] == ["New people"]
    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "customer.changed")).one()
    assert entry.detail == {"fields": ["audiences"]}


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\u0007b"])
@pytest.mark.parametrize("pointer", ["/audience", "/audiences/1"])
def test_an_audience_that_can_not_be_is_told_at_its_field(api: Any, name: str, pointer: str) -> None:
    said = {"audience": name} if pointer == "/audience" else {"audiences": ["VIP", name]}

    answer = api.put("/api/v1/customers/C-1", json={"email": "ada@example.com", **said})

    assert answer.status_code == 422
    assert answer.json["errors"][0]["pointer"] == pointer


# --- who takes data out --------------------------------------------------------------------------


def test_every_file_that_is_taken_out_is_in_the_trail_without_naming_anybody(
    staff: FlaskClient, customer: Make, offer: MakeOffer
) -> None:
    ada = customer()
    row = offer()
    group_commit.redeem(ask())

    staff.get("/redemptions.csv")
    staff.get("/redemptions.csv?who=ada@example.com&code=summer-25&channel=form&first=2026-01-01")
    staff.get("/redemptions.csv?who=stranger@example.com")

    entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [(entry.actor, entry.action) for entry in entries] == [
        ("manager@example.com", "redemptions.exported"),
    ] * 3
    assert [entry.detail for entry in entries] == [
        None,
        {"offer_id": row.id, "customer_id": ada.id, "channel": "form", "since": "2026-01-01T00:00:00+00:00"},
        {"found": "nothing"},
    ]


def test_taking_out_refused_rows_is_in_the_trail(staff: FlaskClient, imported: Callable[..., Any]) -> None:
    row = imported("email\nada@@example.com\n")

    assert "ada@@example.com" in staff.get(f"/customers/imports/{row.id}/rejected.csv").text

    found = select(AuditEntry.subject).where(AuditEntry.action == "customers.refused_rows_exported")
    assert db.session.scalars(found).all() == [f"import {row.id}"]


def test_the_trail_leads_to_the_customer(sign_in: Callable[..., FlaskClient], customer: Make) -> None:
    ada = customer_actions.create_customer(CustomerValues("ada@example.com"), [], by="tests")

    page = sign_in("admin").get("/settings/audit").text

    assert f'href="/customers/{ada.id}"' in page
    assert "ada@example.com" not in page
