"""Shared codes, aliases and personal codes: which offer they name, and what they prove."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask.testing import FlaskClient

from webapp.customers.models import Customer
from webapp.offers import code_actions
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, personal_codes, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest, RefusalReason

MakeOffer = Callable[..., Offer]
ADA = "ada@example.com"


@pytest.fixture
def renewed(offer: MakeOffer, customer: Callable[..., Customer]) -> Callable[..., Offer]:
    """An offer that was OLD, then SUMMER25, and is WINTER26 now; OLD is closed. Ada has the id 1."""

    def make(**values: object) -> Offer:
        customer(ADA), customer("bob@example.com")
        row = offer("OLD", frozen_at=datetime(2026, 1, 1, tzinfo=UTC), **values)
        for code in ("SUMMER25", "WINTER26"):
            code_actions.renew_code(row.id, code, by="tests")
        return code_actions.close_code(row.id, "OLD", by="tests")

    return make


def redeem(code: str, email: str = ADA) -> RedemptionRecord:
    return group_commit.redeem(RedemptionRequest(channel="form", code=code, email=email))


def refusal(code: str, email: str = ADA) -> RefusalReason:
    with pytest.raises(RedemptionRefused) as refused:
        redeem(code, email)
    return refused.value.reason


def own(code: str, offer: Offer, customer_id: int = 1) -> str:
    return personal_codes.derive_personal_code(code, offer.id, customer_id).replace("-", "")


@pytest.mark.parametrize("code", ["WINTER26", "SUMMER25"])
def test_the_code_of_now_and_an_alias_redeem_the_same_offer_once(renewed: Callable[..., Offer], code: str) -> None:
    row = renewed()

    done = redeem(code)

    assert (done.offer_id, done.code) == (row.id, "WINTER26")
    assert [refusal(other) for other in ("WINTER26", "SUMMER25")] == ["already_redeemed"] * 2


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("code", ["WINTER26", "SUMMER25"])
def test_a_personal_code_made_of_either_works_for_its_customer_alone(
    renewed: Callable[..., Offer], code: str, required: bool
) -> None:
    typed = own(code, renewed(personal_code_required=required))

    assert refusal(typed, "bob@example.com") == "personal_code_required"
    assert redeem(typed).customer_id == 1


@pytest.mark.parametrize("code", ["WINTER26", "SUMMER25"])
def test_where_a_personal_code_is_required_neither_code_alone_is_enough(
    renewed: Callable[..., Offer], code: str
) -> None:
    renewed(personal_code_required=True)

    assert refusal(code) == "personal_code_required"


def test_a_closed_code_is_known_to_nobody_nor_is_a_personal_code_made_of_it(renewed: Callable[..., Offer]) -> None:
    row = renewed(personal_code_required=True)

    assert [refusal("OLD"), refusal(own("OLD", row))] == ["not_found", "not_found"]


def test_a_repeat_of_what_was_redeemed_with_a_code_that_is_closed_now_hears_the_first_result(
    renewed: Callable[..., Offer],
) -> None:
    row = renewed()
    asked = RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com", api_key_id=1, order=Order("A-1"))
    first = group_commit.redeem(asked)
    code_actions.close_code(row.id, "SUMMER25", by="tests")

    again = group_commit.redeem(asked)

    assert again.is_replay
    assert again.public_id == first.public_id
    assert refusal("SUMMER25") == "not_found"


def test_a_code_that_is_reopened_works_again(renewed: Callable[..., Offer]) -> None:
    row = renewed()

    code_actions.reopen_code(row.id, "OLD", by="tests")

    assert redeem("OLD").offer_id == row.id


def test_an_exact_shared_code_wins_over_what_reads_like_a_personal_one(
    renewed: Callable[..., Offer], offer: MakeOffer
) -> None:
    row = renewed()
    looks_personal = offer(own("WINTER26", row), personal_code_required=False)

    assert redeem(own("WINTER26", row)).offer_id == looks_personal.id


def test_a_closed_code_does_not_hide_the_personal_code_that_reads_the_same(
    offer: MakeOffer, customer: Callable[..., Customer]
) -> None:
    customer(ADA)
    short = offer("ABC")
    typed = own("ABC", short)
    other = offer(typed, frozen_at=datetime(2026, 1, 1, tzinfo=UTC))
    code_actions.renew_code(other.id, "WINTER26", by="tests")
    code_actions.close_code(other.id, typed, by="tests")

    assert redeem(typed).offer_id == short.id


def test_an_exact_alias_wins_as_well(renewed: Callable[..., Offer], offer: MakeOffer) -> None:
    row = renewed()
    other = offer(own("WINTER26", row), frozen_at=datetime(2026, 1, 1, tzinfo=UTC))
    code_actions.renew_code(other.id, "OTHER", by="tests")

    assert redeem(own("WINTER26", row)).offer_id == other.id


def test_a_personal_link_of_before_a_renewal_opens_and_shows_the_code_of_now(
    client: FlaskClient, offer: MakeOffer, customer: Callable[..., Customer]
) -> None:
    row = offer(frozen_at=datetime(2026, 1, 1, tzinfo=UTC), personal_code_required=True)
    path = "/r/" + personal_links.build_personal_url(row.id, customer(ADA).id).rpartition("/")[2]
    code_actions.renew_code(row.id, "WINTER26", by="tests")
    code_actions.close_code(row.id, "SUMMER25", by="tests")

    page = client.get(path)
    receipt = client.post(path)

    assert (page.status_code, receipt.status_code) == (200, 200)
    assert "WINTER26" in page.text
    assert redemption_queries.find_live_redemption(row.id, 1) is not None


def test_integrators_validate_redeem_and_list_by_alias_and_hear_the_code_of_now(
    renewed: Callable[..., Offer], api: FlaskClient
) -> None:
    row = renewed()
    body = {"code": "summer-25", "customer": {"email": ADA}}

    usable = api.get(f"/api/v1/customers/{ADA}/offers").get_json()["offers"]
    valid = api.post("/api/v1/validations", json=body).get_json()
    done = api.post("/api/v1/redemptions", json=body)

    assert [(found["code"], found["personal_code"]) for found in usable] == [
        ("WINTER26", personal_codes.derive_personal_code("WINTER26", row.id, 1))
    ]
    assert (valid["valid"], valid["code"]) == (True, "WINTER26")
    assert (done.status_code, done.get_json()["code"]) == (201, "WINTER26")


def test_a_repeat_under_another_code_of_the_offer_is_the_same_redemption_by_its_order(
    renewed: Callable[..., Offer], api: FlaskClient
) -> None:
    renewed()
    order = {"id": "A-1", "amount": 1000, "currency": "EUR"}
    asked = [{"code": code, "customer": {"email": ADA}, "order": order} for code in ("SUMMER25", "WINTER26")]

    first, again = (api.post("/api/v1/redemptions", json=body) for body in asked)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.get_json()["id"] == again.get_json()["id"]
