"""Redeeming with shared codes, aliases and personal codes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask.testing import FlaskClient

from tests.support.factories import MakeOffer
from webapp.customers.models import Customer
from webapp.offers import code_actions
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, personal_codes, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest, RefusalReason

ADA = "ada@example.com"


@pytest.fixture
def make_renewed_offer(make_offer: MakeOffer, make_customer: Callable[..., Customer]) -> Callable[..., Offer]:
    """Makes an offer with the codes WINTER26, SUMMER25 and OLD, which is closed.

    Ada has the id 1.
    """

    def make(**values: object) -> Offer:
        make_customer(ADA), make_customer("bob@example.com")
        offer = make_offer("OLD", frozen_at=datetime(2026, 1, 1, tzinfo=UTC), **values)
        for code in ("SUMMER25", "WINTER26"):
            code_actions.renew_code(offer.id, code, by="tests")
        return code_actions.close_code(offer.id, "OLD", by="tests")

    return make


def redeem(code: str, email: str = ADA) -> RedemptionRecord:
    return group_commit.redeem(RedemptionRequest(channel="form", code=code, email=email))


def refusal(code: str, email: str = ADA) -> RefusalReason:
    with pytest.raises(RedemptionRefused) as error:
        redeem(code, email)
    return error.value.reason


def derive_code(code: str, offer: Offer, customer_id: int = 1) -> str:
    return personal_codes.derive_personal_code(code, offer.id, customer_id).replace("-", "")


@pytest.mark.parametrize("code", ["WINTER26", "SUMMER25"])
def test_the_current_code_and_an_alias_redeem_the_offer_once(
    make_renewed_offer: Callable[..., Offer], code: str
) -> None:
    offer = make_renewed_offer()

    redemption = redeem(code)

    assert (redemption.offer_id, redemption.code) == (offer.id, "WINTER26")
    assert [refusal(other) for other in ("WINTER26", "SUMMER25")] == ["already_redeemed"] * 2


@pytest.mark.parametrize("required", [False, True])
@pytest.mark.parametrize("code", ["WINTER26", "SUMMER25"])
def test_a_personal_code_of_either_code_works_only_for_its_customer(
    make_renewed_offer: Callable[..., Offer], code: str, required: bool
) -> None:
    code_with_suffix = derive_code(code, make_renewed_offer(personal_code_required=required))

    assert refusal(code_with_suffix, "bob@example.com") == "personal_code_required"
    assert redeem(code_with_suffix).customer_id == 1


@pytest.mark.parametrize("code", ["WINTER26", "SUMMER25"])
def test_the_shared_codes_are_refused_where_a_personal_code_is_required(
    make_renewed_offer: Callable[..., Offer], code: str
) -> None:
    make_renewed_offer(personal_code_required=True)

    assert refusal(code) == "personal_code_required"


def test_a_closed_code_and_its_personal_codes_are_not_found(make_renewed_offer: Callable[..., Offer]) -> None:
    offer = make_renewed_offer(personal_code_required=True)

    assert [refusal("OLD"), refusal(derive_code("OLD", offer))] == ["not_found", "not_found"]


def test_a_repeat_with_a_closed_code_returns_the_first_redemption(
    make_renewed_offer: Callable[..., Offer],
) -> None:
    offer = make_renewed_offer()
    request = RedemptionRequest(
        channel="api", code="SUMMER25", email="ada@example.com", api_key_id=1, order=Order("A-1")
    )
    first = group_commit.redeem(request)
    code_actions.close_code(offer.id, "SUMMER25", by="tests")

    repeat = group_commit.redeem(request)

    assert repeat.is_replay
    assert repeat.public_id == first.public_id
    assert refusal("SUMMER25") == "not_found"


def test_a_reopened_code_redeems(make_renewed_offer: Callable[..., Offer]) -> None:
    offer = make_renewed_offer()

    code_actions.reopen_code(offer.id, "OLD", by="tests")

    assert redeem("OLD").offer_id == offer.id


def test_an_exact_shared_code_takes_precedence_over_a_personal_code(
    make_renewed_offer: Callable[..., Offer], make_offer: MakeOffer
) -> None:
    offer = make_renewed_offer()
    looks_personal = make_offer(derive_code("WINTER26", offer), personal_code_required=False)

    assert redeem(derive_code("WINTER26", offer)).offer_id == looks_personal.id


def test_a_closed_code_does_not_hide_a_personal_code_with_the_same_text(
    make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    make_customer(ADA)
    short = make_offer("ABC")
    typed = derive_code("ABC", short)
    other = make_offer(typed, frozen_at=datetime(2026, 1, 1, tzinfo=UTC))
    code_actions.renew_code(other.id, "WINTER26", by="tests")
    code_actions.close_code(other.id, typed, by="tests")

    assert redeem(typed).offer_id == short.id


def test_an_exact_alias_takes_precedence_over_a_personal_code(
    make_renewed_offer: Callable[..., Offer], make_offer: MakeOffer
) -> None:
    offer = make_renewed_offer()
    other = make_offer(derive_code("WINTER26", offer), frozen_at=datetime(2026, 1, 1, tzinfo=UTC))
    code_actions.renew_code(other.id, "OTHER", by="tests")

    assert redeem(derive_code("WINTER26", offer)).offer_id == other.id


def test_a_personal_link_from_before_a_renewal_shows_the_current_code(
    client: FlaskClient, make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    offer = make_offer(frozen_at=datetime(2026, 1, 1, tzinfo=UTC), personal_code_required=True)
    path = "/r/" + personal_links.build_personal_url(offer.id, make_customer(ADA).id).rpartition("/")[2]
    code_actions.renew_code(offer.id, "WINTER26", by="tests")
    code_actions.close_code(offer.id, "SUMMER25", by="tests")

    page = client.get(path)
    receipt = client.post(path)

    assert (page.status_code, receipt.status_code) == (200, 200)
    assert "WINTER26" in page.text
    assert redemption_queries.find_current_redemption(offer.id, 1) is not None


def test_the_api_accepts_an_alias_and_returns_the_current_code(
    make_renewed_offer: Callable[..., Offer], api: FlaskClient
) -> None:
    offer = make_renewed_offer()
    body = {"code": "summer-25", "customer": {"email": ADA}}

    usable = api.get(f"/api/v1/customers/{ADA}/offers").get_json()["offers"]
    valid = api.post("/api/v1/validations", json=body).get_json()
    redemption = api.post("/api/v1/redemptions", json=body)

    assert [(found["code"], found["personal_code"]) for found in usable] == [
        ("WINTER26", personal_codes.derive_personal_code("WINTER26", offer.id, 1))
    ]
    assert (valid["valid"], valid["code"]) == (True, "WINTER26")
    assert (redemption.status_code, redemption.get_json()["code"]) == (201, "WINTER26")


def test_a_repeat_of_an_order_with_another_code_returns_the_first_redemption(
    make_renewed_offer: Callable[..., Offer], api: FlaskClient
) -> None:
    make_renewed_offer()
    order = {"id": "A-1", "amount": 1000, "currency": "EUR"}
    request = [{"code": code, "customer": {"email": ADA}, "order": order} for code in ("SUMMER25", "WINTER26")]

    first, repeat = (api.post("/api/v1/redemptions", json=body) for body in request)

    assert (first.status_code, repeat.status_code) == (201, 200)
    assert first.get_json()["id"] == repeat.get_json()["id"]
