"""The eligibility check: every check has one sentence, on the page and in the API."""

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

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.accounts import api_key_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.models import Audience, AudienceMember, Customer
from webapp.offers import code_actions
from webapp.overview.eligibility import Explanation, explain_eligibility
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import group_commit, personal_codes
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.rules import RedemptionRequest, evaluate

ADA = RedemptionRequest(channel="staff", code="SUMMER25", email="ada@example.com")
BERLIN = ZoneInfo("Europe/Berlin")
MAY, JUNE = datetime(2026, 5, 1, tzinfo=BERLIN), datetime(2026, 6, 1, tzinfo=BERLIN)
FAR_FUTURE = datetime(2098, 6, 1, tzinfo=BERLIN)
IN_THE_PAST = datetime(2026, 1, 1, tzinfo=UTC)


def make_audience(*members: Customer) -> int:
    row = Audience(name="VIPs")
    db.session.add(row)
    db.session.flush()
    for member in members:
        db.session.add(AudienceMember(audience_id=row.id, customer_id=member.id))
    db.session.commit()
    return row.id


def checks_by_name(explanation: Explanation) -> dict[str, tuple[bool | None, str]]:
    return {line.check.name: (line.check.passed, line.detail) for line in explanation.checks}


def test_the_checks_are_those_of_the_rules_in_their_order(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(paused_at=IN_THE_PAST), make_customer()

    found = explain_eligibility(ADA)

    evaluation = evaluate(redemption_facts.load_facts([ADA])[0])
    assert tuple(line.check for line in found.checks) == evaluation.checks
    assert found.reason == evaluation.reason == "offer_paused"


def test_an_eligible_customer_passes_all_checks(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()

    found = explain_eligibility(ADA)

    assert (found.reason, found.detail) == (None, "ada@example.com can redeem “Summer” now.")
    assert {passed for passed, _ in checks_by_name(found).values()} == {True}


VALIDITY_PERIODS: list[tuple[dict[str, Any], bool, str]] = [
    ({"starts_at": MAY, "ends_at": None}, True, "Valid from 1 May 2026 at 00:00 (Europe/Berlin), with no end date."),
    (
        {"starts_at": MAY, "ends_at": FAR_FUTURE},
        True,
        "Valid from 1 May 2026 at 00:00 (Europe/Berlin) until the end of 31 May 2098 (Europe/Berlin).",
    ),
    ({"starts_at": MAY, "ends_at": JUNE}, False, "Was valid until the end of 31 May 2026 (Europe/Berlin)."),
    (
        {"starts_at": MAY, "ends_at": JUNE.replace(hour=13, minute=5)},
        False,
        "Was valid until 1 June 2026 at 13:05 (Europe/Berlin).",
    ),
    (
        {"starts_at": MAY, "ends_at": JUNE.replace(minute=30)},
        False,
        "Was valid until 1 June 2026 at 00:30 (Europe/Berlin).",
    ),
    ({"starts_at": FAR_FUTURE, "ends_at": None}, False, "Starts on 1 June 2098 at 00:00 (Europe/Berlin)."),
    (
        {"starts_at": FAR_FUTURE, "ends_at": FAR_FUTURE.replace(year=2099)},
        False,
        "Starts on 1 June 2098 at 00:00 (Europe/Berlin).",
    ),
]


@pytest.mark.parametrize(("values", "passed", "sentence"), VALIDITY_PERIODS)
def test_the_check_of_the_validity_period(
    make_offer: MakeOffer, make_customer: MakeCustomer, values: dict[str, Any], passed: bool, sentence: str
) -> None:
    make_offer(time_zone="Europe/Berlin", **values), make_customer()

    assert checks_by_name(explain_eligibility(ADA))["window"] == (passed, sentence)


@pytest.mark.parametrize(
    ("values", "check", "passed", "sentence"),
    [
        ({}, "code", True, "SUMMER25 is the code of “Summer”."),
        ({}, "customer", True, "ada@example.com is a customer."),
        ({}, "unused", True, "Not redeemed by this customer yet."),
        ({}, "status", True, "The offer is not paused."),
        ({"paused_at": IN_THE_PAST}, "status", False, "The offer is paused."),
        ({}, "audience", True, "The offer is for all customers."),
        ({}, "personal_code", True, "The offer accepts the shared code."),
        (
            {"personal_code_required": True},
            "personal_code",
            False,
            "The offer requires the personal code from the customer's email; this is the shared code.",
        ),
        ({}, "room", True, "There is no limit on redemptions."),
        ({"max_redemptions": 1, "redeemed": 1}, "room", False, "The limit of 1 redemption has been reached."),
        ({"max_redemptions": 1000, "redeemed": 12}, "room", True, "12 of 1,000 redemptions used."),
        (
            {"max_redemptions": 1000, "redeemed": 1000},
            "room",
            False,
            "The limit of 1,000 redemptions has been reached.",
        ),
    ],
)
def test_each_check_has_one_sentence(
    make_offer: MakeOffer, make_customer: MakeCustomer, values: dict[str, Any], check: str, passed: bool, sentence: str
) -> None:
    make_offer(**values), make_customer()

    assert checks_by_name(explain_eligibility(ADA))[check] == (passed, sentence)


@pytest.mark.parametrize(
    ("is_member", "sentence"),
    [
        (True, "ada@example.com is in the audience “VIPs”."),
        (False, "ada@example.com is not in the audience “VIPs”."),
    ],
)
def test_the_check_of_the_audience(
    make_offer: MakeOffer, make_customer: MakeCustomer, is_member: bool, sentence: str
) -> None:
    ada = make_customer()
    make_offer(audience_id=make_audience(*[ada] if is_member else []))

    assert checks_by_name(explain_eligibility(ADA))["audience"] == (is_member, sentence)


def test_a_redemption_is_shown_with_its_time_and_channel(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(time_zone="Europe/Berlin"), make_customer()
    phrases = {"form": "with the form", "link": "with the personal link", "api": "through the API", "staff": "by staff"}
    for channel, how in phrases.items():
        redemption = group_commit.redeem(replace(ADA, channel=channel))  # type: ignore[arg-type]
        db.session.execute(text("update redemption set redeemed_at = '2026-05-03 10:00Z'"))
        db.session.commit()

        found = explain_eligibility(ADA)

        assert checks_by_name(found)["unused"] == (False, f"Redeemed on 3 May 2026, 12:00 CEST {how}.")
        assert found.detail == "This customer has already redeemed this offer. It can be redeemed only once."
        db.session.execute(text("delete from redemption"))
        db.session.commit()
    assert redemption.row.channel == "staff"


def test_a_rolled_back_redemption_is_shown(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(time_zone="Europe/Berlin"), make_customer()
    group_commit.redeem(ADA)
    db.session.execute(text("update redemption set redeemed_at = '2026-05-03 10:00Z'"))
    db.session.commit()
    redemption_rollback.roll_back_redemption(
        redemption_queries.list_customer_redemptions(1)[0].public_id, "wrong customer", by="tests"
    )

    found = explain_eligibility(ADA)

    sentence = "Unused: the redemption on 3 May 2026, 12:00 CEST was undone."
    assert checks_by_name(found)["unused"] == (True, sentence)
    assert len(found.redemptions) == 1


def test_a_personal_code_is_checked_for_the_customer(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer, ada, bob = make_offer(personal_code_required=True), make_customer(), make_customer("bob@example.com")

    own = explain_eligibility(
        replace(ADA, code=personal_codes.derive_personal_code("SUMMER25", offer.id, ada.id).replace("-", ""))
    )
    others = explain_eligibility(
        replace(ADA, code=personal_codes.derive_personal_code("SUMMER25", offer.id, bob.id).replace("-", ""))
    )

    assert (own.reason, checks_by_name(own)["personal_code"]) == (
        None,
        (True, "The personal code belongs to this customer."),
    )
    assert checks_by_name(own)["code"][1].endswith(" is a code of “Summer” with a personal suffix.")
    assert checks_by_name(others)["personal_code"] == (
        False,
        "The personal code does not belong to this customer: it is another customer's, or mistyped.",
    )


def test_an_earlier_code_is_described_while_open_and_when_closed(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(time_zone="Europe/Berlin", frozen_at=IN_THE_PAST), make_customer()
    code_actions.renew_code(offer.id, "sommer-26", by="tests")

    open_code = checks_by_name(explain_eligibility(ADA))["code"]
    current_code = checks_by_name(explain_eligibility(replace(ADA, code="SOMMER26")))["code"]
    code_actions.close_code(offer.id, "SUMMER25", by="tests")
    db.session.execute(text("update offer_code set closed_at = '2026-05-03 10:00Z' where closed_at is not null"))
    db.session.commit()
    closed = explain_eligibility(ADA)
    closed_personal = explain_eligibility(
        replace(ADA, code=personal_codes.derive_personal_code("SUMMER25", offer.id, ada.id).replace("-", ""))
    )

    assert open_code == (
        True,
        "SUMMER25 is an earlier code of “Summer” that is still valid. The current code is sommer-26.",
    )
    assert current_code == (True, "SOMMER26 is the code of “Summer”.")
    sentence = (
        "SUMMER25 was a code of “Summer” and was closed on 3 May 2026, 12:00 CEST. The current code is sommer-26."
    )
    assert checks_by_name(closed)["code"] == checks_by_name(closed_personal)["code"] == (False, sentence)
    assert (closed.reason, closed.failed_detail) == ("not_found", sentence)
    utc = checks_by_name(explain_eligibility(ADA, "UTC"))["code"]
    assert utc == (False, sentence.replace("12:00 CEST", "10:00 UTC"))


def test_redemptions_and_emails_of_other_offers_are_not_shown(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_customer(), make_offer()
    winter = make_offer("WINTER", name="Winter")
    preparation.prepare_campaign(launch_actions.launch_announcement(winter.id, "tests").campaign.id)
    for _ in range(2):
        redemption = group_commit.redeem(replace(ADA, code="WINTER"))
        redemption_rollback.roll_back_redemption(redemption.public_id, "wrong offer", by="tests")

    summer, other = explain_eligibility(ADA), explain_eligibility(replace(ADA, code="WINTER"))

    assert (summer.redemptions, summer.emails) == ((), ())
    assert checks_by_name(summer)["unused"] == (True, "Not redeemed by this customer yet.")
    assert (len(other.redemptions), len(other.emails)) == (2, 1)


def test_checks_without_customer_or_offer_are_not_checked(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()

    unknown_customer = checks_by_name(explain_eligibility(replace(ADA, email="bob@example.com")))
    unknown_code = checks_by_name(explain_eligibility(replace(ADA, code="WINTER")))

    assert unknown_customer["customer"] == (False, "No customer has the email address bob@example.com.")
    for check in ("unused", "audience", "personal_code"):
        assert unknown_customer[check] == (None, "Not checked: the customer does not exist.")
    assert unknown_code["code"] == (False, "No offer has the code WINTER.")
    for check in ("unused", "window", "status", "audience", "personal_code", "room"):
        assert unknown_code[check] == (None, "Not checked: the code does not exist.")


def test_a_customer_is_found_by_source_id(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer(source_id="C-1")

    found = checks_by_name(explain_eligibility(RedemptionRequest(channel="staff", code="SUMMER25", source_id="C-1")))
    unknown = checks_by_name(explain_eligibility(RedemptionRequest(channel="staff", code="SUMMER25", source_id="C-2")))

    assert found["customer"] == (True, "ada@example.com is a customer.")
    assert unknown["customer"] == (False, "No customer has the source ID C-2.")


def test_an_erased_customer_is_unknown(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer()
    customer_actions.erase_customer(make_customer(source_id="C-1").id, by="tests")

    assert (
        explain_eligibility(ADA).reason
        == explain_eligibility(RedemptionRequest("staff", "SUMMER25", source_id="C-1")).reason
        == "customer_unknown"
    )


def test_an_explanation_only_reads_and_runs_few_statements(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer()
    offer_id = offer.id
    offer.audience_id = make_audience(make_customer())
    db.session.commit()
    group_commit.redeem(ADA)
    statements: list[str] = []
    record = lambda _c, _cursor, statement, *_: statements.append(statement)  # noqa: E731
    event.listen(db.engine, "before_cursor_execute", record)

    found = explain_eligibility(ADA)

    event.remove(db.engine, "before_cursor_execute", record)
    assert found.facts.offer is not None
    assert found.facts.offer.id == offer_id
    assert len(statements) <= 6
    assert [s for s in statements if not s.strip().lower().startswith(("select", "with"))] == []


# --- the page ------------------------------------------------------------------------------------


def test_the_page_shows_the_times_of_redemptions_in_the_readers_time_zone(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(time_zone="Europe/Berlin"), make_customer()
    group_commit.redeem(ADA)
    db.session.execute(text("update redemption set redeemed_at = '2026-05-03 10:00Z'"))
    db.session.commit()
    url = "/why-not?who=ada@example.com&code=SUMMER25"

    redeemed = staff.get(url).text
    redemption_rollback.roll_back_redemption(explain_eligibility(ADA).redemptions[0].public_id, "returned", by="tests")
    rolled_back = staff.get(url).text

    assert redeemed.count("3 May 2026, 10:00 UTC") == 3
    assert "Unused: the redemption on 3 May 2026, 10:00 UTC was undone." in rolled_back
    assert "CEST." not in redeemed + rolled_back
    assert "3 May 2026, 12:00" not in redeemed + rolled_back


def test_the_page_starts_with_two_fields(staff: FlaskClient) -> None:
    page = staff.get("/why-not")

    assert page.status_code == 200
    assert 'name="who"' in page.text
    assert 'name="code"' in page.text
    assert "Checks" not in page.text


def test_the_conclusion_comes_first_and_has_links(
    sign_in: Callable[..., FlaskClient], make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(), make_customer()
    campaign = launch_actions.launch_announcement(offer.id, "tests").campaign.id
    preparation.prepare_campaign(campaign)
    redemption = group_commit.redeem(ADA)

    page = sign_in("viewer").get("/why-not?who=ADA@example.com&code=summer-25").text

    assert page.index("Not eligible. Redeemed on ") < page.index("Code exists")
    check = page[page.index("Unused") : page.index("Within the offer period")]
    assert [label in check for label in ("Failed", "Passed", "Yes", "No.")] == [True, False, False, False]
    assert "“This customer has already redeemed this offer. It can be redeemed only once.”" in page
    assert page.index("Code exists") < page.index("Redemptions left")
    for address in (
        f"/customers/{ada.id}",
        f"/offers/{offer.id}",
        f"/redemptions/{redemption.public_id}",
        f"/campaigns/{campaign}",
    ):
        assert f'href="{address}"' in page
    assert "/redemptions/new" not in page.partition("<main")[2]


def test_a_positive_result_links_to_the_form_to_redeem(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()

    page = staff.get("/why-not?who=ada@example.com&code=SUMMER25").text

    assert "Eligible. ada@example.com can redeem" in page
    assert "/redemptions/new?email=ada@example.com&amp;code=SUMMER25" in page
    assert "No email about this offer was sent to this customer" in page


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("who=&code=", "Enter the customer&#39;s email address or source ID."),
        ("who=&code=SUMMER25", "Enter the customer&#39;s email address or source ID."),
        ("who=ada@example.com&code=", "Enter the code that the customer received."),
        ("who=%00&code=SUMMER25", "Enter the customer&#39;s email address or source ID."),
        ("who=ada@example.com&code=S%C3%9C%00", "A code can only have letters from A to Z and digits."),
        ("who=ada@example.com&code=" + "A" * 10_000, "This code is too long. Check what you entered."),
    ],
)
def test_an_invalid_input_is_an_error_at_its_field(staff: FlaskClient, query: str, sentence: str) -> None:
    page = staff.get(f"/why-not?{query}")

    assert page.status_code == 422
    assert sentence in page.text


@pytest.mark.parametrize("who", ["<b>x</b>", "a'b\"@x", "x" * 5000, "ada@@example.com", "%ED%A0%80"])
def test_unusual_inputs_find_no_customer(staff: FlaskClient, make_offer: MakeOffer, who: str) -> None:
    make_offer()

    page = staff.get("/why-not", query_string={"who": who, "code": "SUMMER25"})

    assert page.status_code == 200
    assert "This customer does not exist" in page.text
    assert "<b>x</b>" not in page.text


def test_other_pages_link_to_the_check_with_their_values(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    ada = make_customer()

    assert 'href="/why-not?who=ada@example.com"' in staff.get(f"/customers/{ada.id}").text
    assert 'href="/why-not"' in staff.get("/redemptions").text
    page = staff.get("/why-not?who=ada@example.com")
    assert (page.status_code, "Enter the code" in page.text) == (200, False)
    assert 'value="ada@example.com"' in page.text


def test_the_page_requires_a_sign_in(client: FlaskClient) -> None:
    assert client.get("/why-not?who=a@example.com&code=SUMMER25").status_code == 302


# --- API -----------------------------------------------------------------------------------------


def test_the_api_returns_the_same_explanation(api: Any, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer()
    make_customer(source_id="C-1")
    preparation.prepare_campaign(launch_actions.launch_announcement(offer.id, "tests").campaign.id)
    redemption = group_commit.redeem(ADA)
    found = explain_eligibility(ADA)

    for identifier in ({"email": "Ada@example.com"}, {"source_id": "C-1"}):
        response = api.post("/api/v1/explanations", json={"code": "summer-25", "customer": identifier})

        assert response.status_code == 200
        assert response.json == {
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
            "redemption": redemption.public_id,
            "mails": response.json["mails"],
        }
        assert [(mail["campaign"], mail["kind"], mail["status"]) for mail in response.json["mails"]] == [
            (1, "announcement", "waiting")
        ]


def test_the_api_for_an_unknown_code_and_customer(api: Any) -> None:
    response = api.post("/api/v1/explanations", json={"code": "WINTER", "customer": {"email": "bob@example.com"}}).json

    assert (response["redeemable"], response["reason"]) == (False, "not_found")
    assert (response["offer"], response["customer"], response["redemption"], response["mails"]) == (
        None,
        None,
        None,
        [],
    )
    assert [check["passed"] for check in response["checks"]] == [False, False, *[None] * 6]


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
def test_an_invalid_api_request_is_rejected_at_its_field(api: Any, body: dict[str, Any], pointer: str) -> None:
    response = api.post("/api/v1/explanations", json=body)

    assert response.status_code == 422
    assert [error["pointer"] for error in response.json["errors"]] == [pointer]


@pytest.mark.parametrize("scope", ["read", "redeem"])
def test_the_api_requires_the_scope_manage(app: Flask, scope: str) -> None:
    headers = {"Authorization": f"Bearer {api_key_actions.create_api_key('till', [scope], by='tests')}"}
    body = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}

    assert app.test_client().post("/api/v1/explanations", json=body, headers=headers).status_code == 403
