"""Why not? Every check as one sentence, on the screen and as JSON, from the one rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text

from webapp.accounts import actions as account_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.models import Audience, AudienceMember, Customer
from webapp.offers import code_actions
from webapp.offers.models import Offer
from webapp.overview.why_not import Explanation, explain_eligibility
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import group_commit, personal_codes
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.rules import RedemptionRequest, evaluate

MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]
ADA = RedemptionRequest(channel="staff", code="SUMMER25", email="ada@example.com")
BERLIN = ZoneInfo("Europe/Berlin")
MAY, JUNE = datetime(2026, 5, 1, tzinfo=BERLIN), datetime(2026, 6, 1, tzinfo=BERLIN)
FAR = datetime(2098, 6, 1, tzinfo=BERLIN)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


def audience(*members: Customer) -> int:
    row = Audience(name="VIPs")
    db.session.add(row)
    db.session.flush()
    for member in members:
        db.session.add(AudienceMember(audience_id=row.id, customer_id=member.id))
    db.session.commit()
    return row.id


def told(explanation: Explanation) -> dict[str, tuple[bool | None, str]]:
    return {line.check.name: (line.check.passed, line.detail) for line in explanation.checks}


def test_the_checks_come_in_the_order_of_the_rule_with_its_answers(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(paused_at=LONG_AGO), customer()

    found = explain_eligibility(ADA)

    judged = evaluate(redemption_facts.load_facts([ADA])[0])
    assert tuple(line.check for line in found.checks) == judged.checks
    assert found.reason == judged.reason == "offer_paused"


def test_who_can_redeem_is_told_so(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()

    found = explain_eligibility(ADA)

    assert (found.reason, found.detail) == (None, "ada@example.com can redeem “Summer” now.")
    assert {passed for passed, _ in told(found).values()} == {True}


EDGES: list[tuple[dict[str, Any], bool, str]] = [
    ({"starts_at": MAY, "ends_at": None}, True, "Valid since 1 May 2026 at 00:00 Europe/Berlin, without an end."),
    (
        {"starts_at": MAY, "ends_at": FAR},
        True,
        "Valid since 1 May 2026 at 00:00 Europe/Berlin, ends on 31 May 2098 at 24:00 Europe/Berlin.",
    ),
    ({"starts_at": MAY, "ends_at": JUNE}, False, "Ended on 31 May 2026 at 24:00 Europe/Berlin."),
    (
        {"starts_at": MAY, "ends_at": JUNE.replace(hour=13, minute=5)},
        False,
        "Ended on 1 June 2026 at 13:05 Europe/Berlin.",
    ),
    ({"starts_at": FAR, "ends_at": None}, False, "Starts on 1 June 2098 at 00:00 Europe/Berlin."),
]


@pytest.mark.parametrize(("values", "passed", "sentence"), EDGES)
def test_the_window(
    offer: MakeOffer, customer: MakeCustomer, values: dict[str, Any], passed: bool, sentence: str
) -> None:
    offer(time_zone="Europe/Berlin", **values), customer()

    assert told(explain_eligibility(ADA))["window"] == (passed, sentence)


@pytest.mark.parametrize(
    ("values", "check", "passed", "sentence"),
    [
        ({}, "code", True, "SUMMER25 is the code of “Summer”."),
        ({}, "customer", True, "ada@example.com is a customer."),
        ({}, "unused", True, "Not redeemed by this customer yet."),
        ({}, "status", True, "The offer is active."),
        ({"paused_at": LONG_AGO}, "status", False, "The offer is paused."),
        ({}, "audience", True, "The offer is for all customers."),
        ({}, "personal_code", True, "The offer accepts the shared code."),
        (
            {"personal_code_required": True},
            "personal_code",
            False,
            "The offer requires the personal code from the customer's email; this is the shared code.",
        ),
        ({}, "room", True, "There is no limit on redemptions."),
        ({"max_redemptions": 1000, "redeemed": 12}, "room", True, "12 of at most 1,000 redemptions have been made."),
        (
            {"max_redemptions": 1000, "redeemed": 1000},
            "room",
            False,
            "The limit of 1,000 redemptions has been reached.",
        ),
    ],
)
def test_each_fact_is_one_sentence(
    offer: MakeOffer, customer: MakeCustomer, values: dict[str, Any], check: str, passed: bool, sentence: str
) -> None:
    offer(**values), customer()

    assert told(explain_eligibility(ADA))[check] == (passed, sentence)


@pytest.mark.parametrize(
    ("is_member", "sentence"),
    [
        (True, "ada@example.com is in the audience “VIPs”."),
        (False, "ada@example.com is not in the audience “VIPs”."),
    ],
)
def test_the_audience(offer: MakeOffer, customer: MakeCustomer, is_member: bool, sentence: str) -> None:
    ada = customer()
    offer(audience_id=audience(*[ada] if is_member else []))

    assert told(explain_eligibility(ADA))["audience"] == (is_member, sentence)


def test_a_use_is_told_with_its_time_and_channel(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(time_zone="Europe/Berlin"), customer()
    words = {"form": "with the form", "link": "with the personal link", "api": "through the API", "staff": "by staff"}
    for channel, how in words.items():
        done = group_commit.redeem(replace(ADA, channel=channel))  # type: ignore[arg-type]
        db.session.execute(text("update redemption set redeemed_at = '2026-05-03 10:00Z'"))
        db.session.commit()

        found = explain_eligibility(ADA)

        assert told(found)["unused"] == (False, f"Redeemed on 3 May 2026, 12:00 CEST {how}.")
        assert found.detail == "This customer has already redeemed this offer. It can be redeemed only once."
        db.session.execute(text("delete from redemption"))
        db.session.commit()
    assert done.row.channel == "staff"


def test_a_use_that_was_undone_is_told(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(time_zone="Europe/Berlin"), customer()
    group_commit.redeem(ADA)
    db.session.execute(text("update redemption set redeemed_at = '2026-05-03 10:00Z'"))
    db.session.commit()
    redemption_rollback.roll_back_redemption(
        redemption_queries.list_customer_redemptions(1)[0].public_id, "wrong customer", by="tests"
    )

    found = explain_eligibility(ADA)

    sentence = "Not redeemed: the redemption of 3 May 2026, 12:00 CEST was undone."
    assert told(found)["unused"] == (True, sentence)
    assert len(found.redemptions) == 1


def test_a_personal_code_is_judged_for_this_customer(offer: MakeOffer, customer: MakeCustomer) -> None:
    row, ada, bob = offer(personal_code_required=True), customer(), customer("bob@example.com")

    own = explain_eligibility(
        replace(ADA, code=personal_codes.derive_personal_code("SUMMER25", row.id, ada.id).replace("-", ""))
    )
    others = explain_eligibility(
        replace(ADA, code=personal_codes.derive_personal_code("SUMMER25", row.id, bob.id).replace("-", ""))
    )

    assert (own.reason, told(own)["personal_code"]) == (None, (True, "The personal code belongs to this customer."))
    assert told(own)["code"][1].endswith(" is a code of “Summer” with a personal suffix.")
    assert told(others)["personal_code"] == (
        False,
        "The personal code does not belong to this customer: it is another customer's, or mistyped.",
    )


def test_an_older_code_is_told_as_long_as_it_works_and_when_it_does_not(
    offer: MakeOffer, customer: MakeCustomer
) -> None:
    row, ada = offer(time_zone="Europe/Berlin", frozen_at=LONG_AGO), customer()
    code_actions.renew_code(row.id, "sommer-26", by="tests")

    works = told(explain_eligibility(ADA))["code"]
    code_actions.close_code(row.id, "SUMMER25", by="tests")
    db.session.execute(text("update offer_code set closed_at = '2026-05-03 10:00Z' where closed_at is not null"))
    db.session.commit()
    gone = explain_eligibility(ADA)
    personal_one = explain_eligibility(
        replace(ADA, code=personal_codes.derive_personal_code("SUMMER25", row.id, ada.id).replace("-", ""))
    )

    assert works == (
        True,
        "SUMMER25 is an earlier code of “Summer” that is still valid. The current code is sommer-26.",
    )
    sentence = (
        "SUMMER25 was a code of “Summer” and was closed on 3 May 2026, 12:00 CEST. The current code is sommer-26."
    )
    assert told(gone)["code"] == told(personal_one)["code"] == (False, sentence)
    assert (gone.reason, gone.failed_detail) == ("not_found", sentence)


def test_what_can_not_be_asked_is_said(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()

    nobody = told(explain_eligibility(replace(ADA, email="bob@example.com")))
    nothing = told(explain_eligibility(replace(ADA, code="WINTER")))

    assert nobody["customer"] == (False, "No customer has the email address bob@example.com.")
    for check in ("unused", "audience", "personal_code"):
        assert nobody[check] == (None, "Not checked: the customer does not exist.")
    assert nothing["code"] == (False, "No offer has the code WINTER.")
    for check in ("unused", "window", "status", "audience", "personal_code", "room"):
        assert nothing[check] == (None, "Not checked: the code does not exist.")


def test_a_customer_may_be_named_by_the_shops_own_id(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer(source_id="C-1")

    found = told(explain_eligibility(RedemptionRequest(channel="staff", code="SUMMER25", source_id="C-1")))
    lost = told(explain_eligibility(RedemptionRequest(channel="staff", code="SUMMER25", source_id="C-2")))

    assert found["customer"] == (True, "ada@example.com is a customer.")
    assert lost["customer"] == (False, "No customer has the source ID C-2.")


def test_an_erased_customer_is_nobody(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer()
    customer_actions.erase_customer(customer(source_id="C-1").id, by="tests")

    assert (
        explain_eligibility(ADA).reason
        == explain_eligibility(RedemptionRequest("staff", "SUMMER25", source_id="C-1")).reason
        == "customer_unknown"
    )


def test_explaining_writes_nothing_and_asks_a_handful_of_questions(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer()
    offer_id = row.id
    row.audience_id = audience(customer())
    db.session.commit()
    group_commit.redeem(ADA)
    ran: list[str] = []
    listen = lambda _c, _cursor, statement, *_: ran.append(statement)  # noqa: E731
    event.listen(db.engine, "before_cursor_execute", listen)

    found = explain_eligibility(ADA)

    event.remove(db.engine, "before_cursor_execute", listen)
    assert found.facts.offer is not None
    assert found.facts.offer.id == offer_id
    assert len(ran) <= 6
    assert [s for s in ran if not s.strip().lower().startswith(("select", "with"))] == []


# --- the screen ----------------------------------------------------------------------------------


def test_the_screen_begins_with_two_fields(staff: FlaskClient) -> None:
    page = staff.get("/why-not")

    assert page.status_code == 200
    assert 'name="who"' in page.text
    assert 'name="code"' in page.text
    assert "Checks" not in page.text


def test_the_conclusion_comes_first_with_links_to_all_it_is_about(
    sign_in: Callable[..., FlaskClient], offer: MakeOffer, customer: MakeCustomer
) -> None:
    row, ada = offer(), customer()
    campaign = launch_actions.launch_announcement(row.id, "tests").campaign.id
    preparation.prepare_campaign(campaign)
    done = group_commit.redeem(ADA)

    page = sign_in("viewer").get("/why-not?who=ADA@example.com&code=summer-25").text

    assert page.index("No. Redeemed on ") < page.index("Code exists")
    assert "“This customer has already redeemed this offer. It can be redeemed only once.”" in page
    assert page.index("Code exists") < page.index("Redemptions left")
    for address in (
        f"/customers/{ada.id}",
        f"/offers/{row.id}",
        f"/redemptions/{done.public_id}",
        f"/campaigns/{campaign}",
    ):
        assert f'href="{address}"' in page
    assert "/redemptions/new" not in page.partition("<main")[2]


def test_whoever_may_redeem_by_hand_can_go_on_from_a_yes(
    staff: FlaskClient, offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer(), customer()

    page = staff.get("/why-not?who=ada@example.com&code=SUMMER25").text

    assert "Yes. ada@example.com can redeem" in page
    assert "/redemptions/new?email=ada@example.com&amp;code=SUMMER25" in page
    assert "No email about this offer was sent to this customer" in page


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("who=&code=SUMMER25", "Enter the customer&#39;s email address or source ID."),
        ("who=ada@example.com&code=", "Enter the code that the customer received."),
        ("who=%00&code=SUMMER25", "Enter the customer&#39;s email address or source ID."),
        ("who=ada@example.com&code=S%C3%9C%00", "A code can only have letters from A to Z and digits."),
        ("who=ada@example.com&code=" + "A" * 10_000, "A code can only have letters from A to Z and digits."),
    ],
)
def test_what_can_not_be_read_is_told_at_its_field(staff: FlaskClient, query: str, sentence: str) -> None:
    page = staff.get(f"/why-not?{query}")

    assert page.status_code == 422
    assert sentence in page.text


@pytest.mark.parametrize("who", ["<b>x</b>", "a'b\"@x", "x" * 5000, "ada@@example.com", "%ED%A0%80"])
def test_odd_names_are_nobodys(staff: FlaskClient, offer: MakeOffer, who: str) -> None:
    offer()

    page = staff.get("/why-not", query_string={"who": who, "code": "SUMMER25"})

    assert page.status_code == 200
    assert "This customer does not exist" in page.text
    assert "<b>x</b>" not in page.text


def test_pages_lead_here_with_what_they_know(staff: FlaskClient, customer: MakeCustomer) -> None:
    ada = customer()

    assert 'href="/why-not?who=ada@example.com"' in staff.get(f"/customers/{ada.id}").text
    assert 'href="/why-not"' in staff.get("/redemptions").text
    page = staff.get("/why-not?who=ada@example.com")
    assert (page.status_code, "Enter the code" in page.text) == (200, False)
    assert 'value="ada@example.com"' in page.text


def test_the_screen_is_for_those_who_are_signed_in(client: FlaskClient) -> None:
    assert client.get("/why-not?who=a@example.com&code=SUMMER25").status_code == 302


# --- JSON ----------------------------------------------------------------------------------------


def test_json_gives_the_same_answer(api: Any, offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer()
    customer(source_id="C-1")
    preparation.prepare_campaign(launch_actions.launch_announcement(row.id, "tests").campaign.id)
    done = group_commit.redeem(ADA)
    found = explain_eligibility(ADA)

    for whose in ({"email": "Ada@example.com"}, {"source_id": "C-1"}):
        answer = api.post("/api/v1/explanations", json={"code": "summer-25", "customer": whose})

        assert answer.status_code == 200
        assert answer.json == {
            "redeemable": False,
            "reason": "already_redeemed",
            "detail": found.detail,
            "checks": [
                {
                    "name": line.check.name,
                    "passed": line.check.passed,
                    "reason": line.check.reason,
                    "detail": line.detail,
                }
                for line in found.checks
            ],
            "offer": {"code": "SUMMER25", "name": "Summer"},
            "customer": {"email": "ada@example.com"},
            "redemption": done.public_id,
            "mails": answer.json["mails"],
        }
        assert [(mail["campaign"], mail["kind"], mail["status"]) for mail in answer.json["mails"]] == [
            (1, "announcement", "waiting")
        ]


def test_json_of_what_nobody_knows(api: Any) -> None:
    answer = api.post("/api/v1/explanations", json={"code": "WINTER", "customer": {"email": "bob@example.com"}}).json

    assert (answer["redeemable"], answer["reason"]) == (False, "not_found")
    assert (answer["offer"], answer["customer"], answer["redemption"], answer["mails"]) == (None, None, None, [])
    assert [check["passed"] for check in answer["checks"]] == [False, False, *[None] * 6]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"customer": {"email": "ada@example.com"}}, "/code"),
        ({"code": "sü!", "customer": {"email": "ada@example.com"}}, "/code"),
        ({"code": "SUMMER25", "customer": {"email": "ada"}}, "/customer/email"),
        ({"code": "SUMMER25", "customer": {}}, "/customer"),
        ({"code": "SUMMER25", "customer": {"source_id": "a\0"}}, "/customer/source_id"),
        ({"code": "SUMMER25", "customer": {"email": "a@example.com"}, "order": {"id": "A"}}, "/order"),
    ],
)
def test_json_that_can_not_be_taken_is_told_at_its_field(api: Any, body: dict[str, Any], pointer: str) -> None:
    answer = api.post("/api/v1/explanations", json=body)

    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json["errors"]] == [pointer]


@pytest.mark.parametrize("scope", ["read", "redeem"])
def test_json_needs_the_scope_manage(app: Flask, scope: str) -> None:
    headers = {"Authorization": f"Bearer {account_actions.create_api_key('till', [scope], by='tests')}"}
    body = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}

    assert app.test_client().post("/api/v1/explanations", json=body, headers=headers).status_code == 403
