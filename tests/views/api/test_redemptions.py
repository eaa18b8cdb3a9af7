from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.accounts import api_key_actions
from webapp.core.extensions import db
from webapp.customers.models import Audience, Customer
from webapp.offers.models import Offer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import personal_codes
from webapp.redemptions.rules import RedemptionRequest
from webapp.views.api.schemas import redemptions

ADA: dict[str, Any] = {"code": "summer25", "customer": {"email": "Ada@example.com"}}
ORDER = {"id": "A-1", "amount": 4999, "currency": "EUR"}
PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def offer_and_customer(make_offer: MakeOffer, make_customer: MakeCustomer) -> tuple[Offer, Customer]:
    """A live offer and a customer."""
    return make_offer(), make_customer(source_id="C-1")


def count_redemptions() -> int:
    return int(db.session.execute(text("select count(*) from redemption")).scalar_one())


def redeem(api: Any, key: str | None = None, **values: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return api.post("/api/v1/redemptions", json=ADA | values, headers=headers)


@pytest.mark.usefixtures("offer_and_customer")
def test_redeeming_returns_the_discount(api: Any) -> None:
    response = redeem(api, order=ORDER, metadata={"till": [1, {"clerk": "Bo"}]})

    assert response.status_code == 201
    assert response.headers["Location"] == f"/api/v1/redemptions/{response.json['id']}"
    assert response.json["redeemed_at"].endswith("Z")
    assert (
        response.json.items()
        >= {
            "code": "SUMMER25",
            "offer": "Summer",
            "customer": {"email": "ada@example.com"},
            "discount": {"type": "percent", "percent": "25"},
            "discount_amount": 1250,
            "order": ORDER,
            "metadata": {"till": [1, {"clerk": "Bo"}]},
            "channel": "api",
            "rolled_back_at": None,
        }.items()
    )


@pytest.mark.usefixtures("offer_and_customer")
def test_a_customer_can_be_identified_by_source_id(api: Any) -> None:
    assert redeem(api, customer={"source_id": "C-1"}).status_code == 201


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], int, str]] = [
    ({}, {"code": "WINTER"}, 404, "not_found"),
    ({}, {"customer": {"email": "bob@example.com"}}, 409, "customer_unknown"),
    ({"starts_at": datetime(2099, 1, 1, tzinfo=UTC), "ends_at": None}, {}, 409, "offer_not_started"),
    ({"starts_at": PAST, "ends_at": PAST + timedelta(days=1)}, {}, 409, "offer_expired"),
    ({"paused_at": PAST}, {}, 409, "offer_paused"),
    ({"personal_code_required": True}, {}, 409, "personal_code_required"),
    ({}, {"code": "SUMMER25-AAAAAAAA"}, 409, "personal_code_required"),
    ({"max_redemptions": 1, "redeemed": 1}, {}, 409, "offer_exhausted"),
]


@pytest.mark.parametrize(("values", "changes", "status", "code"), REFUSALS)
def test_a_refusal_is_a_problem_with_its_reason(
    api: Any,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    values: dict[str, Any],
    changes: dict[str, Any],
    status: int,
    code: str,
) -> None:
    make_offer(**values), make_customer()

    response = redeem(api, **changes)

    assert (response.status_code, response.json["code"]) == (status, code)
    assert response.mimetype == "application/problem+json"
    assert count_redemptions() == 0


@pytest.mark.parametrize(("values", "changes", "status", "code"), REFUSALS)
def test_a_validation_returns_the_same_refusal_reason(
    api: Any,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    values: dict[str, Any],
    changes: dict[str, Any],
    status: int,
    code: str,
) -> None:
    make_offer(**values), make_customer()

    response = api.post("/api/v1/validations", json=ADA | changes)

    assert response.status_code == 200
    assert (response.json["valid"], response.json["reason"]) == (False, code)
    assert response.json["detail"] == redeem(api, **changes).json["detail"]


def test_a_validation_returns_the_discount_and_writes_nothing(
    api: Any, offer_and_customer: tuple[Offer, Customer]
) -> None:
    response = api.post("/api/v1/validations", json=ADA | {"order": ORDER})

    db.session.refresh(offer_and_customer[0])
    assert response.json == {
        "valid": True,
        "discount": {"type": "percent", "percent": "25"},
        "discount_amount": 1250,
        "code": "SUMMER25",
        "offer": "Summer",
    }
    assert (count_redemptions(), offer_and_customer[0].frozen_at) == (0, None)


def test_a_customer_outside_the_audience_is_not_eligible(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.flush()
    make_offer(audience_id=audience.id), make_customer()

    assert redeem(api).json["code"] == "customer_not_eligible"


@pytest.mark.usefixtures("offer_and_customer")
def test_a_second_redemption_is_refused(api: Any) -> None:
    redeem(api)

    assert (redeem(api).status_code, redeem(api).json["code"]) == (409, "already_redeemed")


@pytest.mark.usefixtures("offer_and_customer")
@pytest.mark.parametrize(("first", "second"), [({"key": "k1"}, {"key": "k1"}), ({"order": ORDER}, {"order": ORDER})])
def test_a_repeated_request_returns_the_first_result(api: Any, first: dict[str, Any], second: dict[str, Any]) -> None:
    first_response = redeem(api, **first)

    second_response = redeem(api, **second)

    assert (second_response.status_code, second_response.json) == (200, first_response.json)
    assert "Location" not in second_response.headers


@pytest.mark.usefixtures("offer_and_customer")
def test_a_repeated_key_needs_an_equivalent_body(api: Any) -> None:
    redeem(api, key="k1", metadata={"a": 1, "b": 2})

    same = redeem(api, key="k1", metadata={"b": 2, "a": 1})
    other = redeem(api, key="k1", metadata={"a": 1})

    assert (same.status_code, other.status_code, other.json["code"]) == (200, 422, "invalid_payload")


@pytest.mark.usefixtures("offer_and_customer")
@pytest.mark.parametrize("other", [{"order": ORDER | {"amount": 5000}}, {"order": None}])
def test_the_order_is_part_of_the_compared_body(api: Any, other: dict[str, Any]) -> None:
    redeem(api, key="k1", order=ORDER)

    response = redeem(api, key="k1", **{"order": ORDER} | other)

    assert (response.status_code, response.json["errors"][0]["code"]) == (422, "idempotency_key_reused")


@pytest.mark.usefixtures("offer_and_customer")
def test_the_largest_order_and_metadata_are_accepted(api: Any) -> None:
    """Metadata is measured in bytes of UTF-8."""
    largest: dict[str, Any] = {"a": {"b": {"c": {"d": 1}}}, "e": ""}
    largest["e"] = "ü" * ((4096 - len(json.dumps(largest).encode())) // 2)
    largest["e"] += "x" * (4096 - len(json.dumps(largest, ensure_ascii=False).encode()))
    order = {"id": "x" * 200, "amount": 10**15, "currency": "EUR"}

    refused = [
        redeem(api, order=order, metadata=largest | {"e": f"{largest['e']}x"}),
        redeem(api, order=order, metadata={"a": {"b": {"c": {"d": {"e": 1}}}}}),
        redeem(api, order=order | {"amount": 10**15 + 1}, metadata=largest),
    ]
    accepted = redeem(api, order=order, metadata=largest)

    assert [[error["pointer"] for error in response.json["errors"]] for response in refused] == [
        ["/metadata"],
        ["/metadata"],
        ["/order/amount"],
    ]
    assert (accepted.status_code, accepted.json["metadata"], accepted.json["order"]) == (201, largest, order)


@pytest.mark.usefixtures("offer_and_customer")
def test_empty_metadata_stays_empty(api: Any) -> None:
    created = redeem(api, metadata={})

    read = api.get(created.headers["Location"])

    assert (created.json["metadata"], read.json["metadata"]) == ({}, {})


@pytest.mark.usefixtures("offer_and_customer")
def test_idempotency_keys_of_different_api_keys_are_independent(api: Any) -> None:
    redeem(api, key="k1", order=ORDER)
    other = {"Authorization": f"Bearer {api_key_actions.create_api_key('other', ['redeem'], by='tests')}"}

    response = api.post("/api/v1/redemptions", json=ADA | {"order": ORDER}, headers=other | {"Idempotency-Key": "k1"})

    assert (response.status_code, response.json["code"]) == (409, "already_redeemed")


@pytest.mark.usefixtures("offer_and_customer")
def test_after_a_rollback_the_same_key_returns_it_and_a_new_key_redeems(api: Any) -> None:
    first = redeem(api, key="k1", order=ORDER).json
    undone = api.post(f"/api/v1/redemptions/{first['id']}/rollback", json={"reason": "order cancelled"})

    repeat, redeemed = redeem(api, key="k1", order=ORDER), redeem(api, key="k2", order=ORDER | {"id": "A-2"})

    assert (undone.status_code, undone.json["rollback_reason"]) == (200, "order cancelled")
    assert (repeat.status_code, repeat.json["id"]) == (200, first["id"])
    assert repeat.json["rolled_back_at"] == undone.json["rolled_back_at"]
    assert (redeemed.status_code, redeemed.json["rolled_back_at"]) == (201, None)


@pytest.mark.usefixtures("offer_and_customer")
def test_a_second_rollback_is_refused(api: Any) -> None:
    url = f"/api/v1/redemptions/{redeem(api).json['id']}/rollback"
    api.post(url, json={"reason": "order cancelled"})

    response = api.post(url, json={"reason": "order cancelled"})

    assert (response.status_code, response.json["code"]) == (409, "already_rolled_back")


@pytest.mark.usefixtures("offer_and_customer")
@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "  "}, {"reason": 5}, {"reason": "a\0"}, {"why": "x"}])
def test_a_rollback_needs_a_reason(api: Any, body: dict[str, Any]) -> None:
    redemption = redeem(api).json

    assert api.post(f"/api/v1/redemptions/{redemption['id']}/rollback", json=body).status_code == 422
    assert count_redemptions() == 1


@pytest.mark.parametrize("public_id", ["x", "0" * 26, "Z" * 26, "7" + "Z" * 25, "%00", "ä"])
def test_an_unknown_redemption_is_not_found(api: Any, public_id: str) -> None:
    undo = api.post(f"/api/v1/redemptions/{public_id}/rollback", json={"reason": "x"})

    assert (api.get(f"/api/v1/redemptions/{public_id}").status_code, undo.status_code) == (404, 404)


DEEP: dict[str, Any] = {}
for _ in range(50):
    DEEP = {"a": DEEP}


@pytest.mark.usefixtures("offer_and_customer")
@pytest.mark.parametrize(
    ("values", "pointer"),
    [
        ({"code": ""}, "/code"),
        ({"code": "SÜSS"}, "/code"),
        ({"code": 25}, "/code"),
        ({"customer": {}}, "/customer"),
        ({"customer": {"email": "a@example.com", "source_id": "1"}}, "/customer"),
        ({"customer": {"email": "not an address"}}, "/customer/email"),
        ({"customer": {"email": "a\0@example.com"}}, "/customer/email"),
        ({"customer": {"source_id": "a\0"}}, "/customer/source_id"),
        ({"customer": {"source_id": 5}}, "/customer/source_id"),
        ({"order": {"id": ""}}, "/order/id"),
        ({"order": {"id": "a\0"}}, "/order/id"),
        ({"order": {"id": "\ud800"}}, "/order/id"),
        ({"order": {"id": "x" * 201}}, "/order/id"),
        ({"order": {"amount": 5}}, "/order/id"),
        ({"order": ORDER | {"amount": 5255.0}}, "/order/amount"),
        ({"order": ORDER | {"amount": "5255"}}, "/order/amount"),
        ({"order": ORDER | {"amount": True}}, "/order/amount"),
        ({"order": ORDER | {"amount": -1}}, "/order/amount"),
        ({"order": ORDER | {"amount": 10**30}}, "/order/amount"),
        ({"order": ORDER | {"currency": "eur"}}, "/order/currency"),
        ({"metadata": "text"}, "/metadata"),
        ({"metadata": {"a": "x" * 5000}}, "/metadata"),
        ({"metadata": DEEP}, "/metadata"),
        ({"metadata": {"a": ["x\0y"]}}, "/metadata"),
        ({"metadata": {"a\0": 1}}, "/metadata"),
        ({"metadata": {"a": "\ud800"}}, "/metadata"),
        ({"metadata": {"a": 10**200}}, "/metadata"),
        ({"channel": "staff"}, "/channel"),
    ],
)
def test_invalid_values_are_reported_with_a_pointer(api: Any, values: dict[str, Any], pointer: str) -> None:
    response = redeem(api, **values)

    assert response.status_code == 422
    assert pointer in [error["pointer"] for error in response.json["errors"]]
    assert count_redemptions() == 0


@pytest.mark.usefixtures("offer_and_customer")
@pytest.mark.parametrize(
    ("number", "status", "code"),
    [("NaN", 400, "broken_json"), ("Infinity", 400, "broken_json"), ("1e999", 422, "invalid_payload")],
)
def test_numbers_that_are_not_json_are_rejected(api: Any, number: str, status: int, code: str) -> None:
    body = f'{{"code": "SUMMER25", "customer": {{"email": "ada@example.com"}}, "metadata": {{"a": {number}}}}}'

    response = api.post("/api/v1/redemptions", data=body, content_type="application/json")

    assert (response.status_code, response.json["code"]) == (status, code)
    assert response.json["title"] == {"broken_json": "Malformed JSON", "invalid_payload": "Invalid payload"}[code]
    assert count_redemptions() == 0


@pytest.mark.usefixtures("offer_and_customer")
@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb"])
def test_an_invalid_idempotency_key_is_rejected(api: Any, key: str) -> None:
    response = api.post("/api/v1/redemptions", json=ADA, headers={"Idempotency-Key": key})

    assert response.status_code == 422


@pytest.mark.parametrize(
    ("order", "code"),
    [(ORDER | {"currency": "USD"}, "currency_mismatch"), ({"id": "A-1", "amount": 4999}, "currency_missing")],
)
def test_an_amount_discount_needs_an_order_in_its_currency(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer, order: dict[str, Any], code: str
) -> None:
    make_offer(discount_type="amount", amount=500, currency="EUR"), make_customer()

    response = redeem(api, order=order)

    assert (response.status_code, response.json["errors"][0]["code"]) == (422, code)
    assert response.json["errors"][0]["pointer"] == "/order/currency"


def test_redemptions_are_listed_filtered_and_read(api: Any, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_offer("OTHER")
    make_customer(source_id="C-1"), make_customer("bob@example.com")
    first = redeem(api).json
    redeem(api, code="OTHER")
    last = redeem(api, customer={"email": "bob@example.com"}).json
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat().replace("+00:00", "Z")

    def count_listed(query: str) -> int:
        response = api.get(f"/api/v1/redemptions?{query}")
        assert response.status_code == 200
        return len(response.json["redemptions"])

    assert count_listed("") == 3
    assert count_listed("offer=summer-25") == 2
    assert count_listed("email=Ada@Example.com") == 2
    assert count_listed("source_id=C-1&offer=OTHER") == 1
    assert count_listed("offer=NONE") == count_listed("email=nobody@example.com") == count_listed(f"since={later}") == 0
    assert count_listed(f"until={later}&channel=api") == 3
    assert count_listed(f"since={last['redeemed_at']}") == 1
    assert count_listed(f"until={last['redeemed_at']}") == 2
    assert api.get(f"/api/v1/redemptions/{first['id'].lower()}").json == first


def test_linked_pages_contain_every_redemption(api: Any, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_offer("OTHER")
    emails = [make_customer(f"c{n}@example.com").email for n in range(4)]
    redemption_actions.redeem_all(
        [RedemptionRequest(channel="api", code=c, email=e) for e in emails for c in ("SUMMER25", "OTHER")]
    )
    listed_ids: list[str] = []
    next_url: str | None = "/api/v1/redemptions?limit=3"

    while next_url and len(listed_ids) < 20:
        response = api.get(next_url)
        listed_ids += [item["id"] for item in response.json["redemptions"]]
        link = response.headers.get("Link")
        next_url = link[1 : link.index(">")] if link else None

    assert len(listed_ids) == len(set(listed_ids)) == 8

    full = api.get("/api/v1/redemptions?limit=8")
    assert (len(full.json["redemptions"]), full.json["next_cursor"], "Link" in full.headers) == (8, None, False)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "cursor=x",
        "cursor=OTIyMzM3MjAzNjg1NDc3NTgwNw",
        "since=yesterday",
        "channel=post",
        "sort=x",
        "email=x",
        "offer=%00",
    ],
)
def test_invalid_query_parameters_are_rejected(api: Any, query: str) -> None:
    assert api.get(f"/api/v1/redemptions?{query}").status_code == 422


def test_the_largest_cursor_returns_the_first_page(api: Any) -> None:
    from webapp.core import pagination

    largest = (1 << 63) - 1

    assert (
        api.get(f"/api/v1/redemptions?cursor={pagination.encode_cursor(largest, largest, largest)}").status_code == 200
    )


def test_the_offers_of_a_customer_are_usable_or_used(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    soon = make_offer(
        "SOON", name="Soon", ends_at=datetime.now(UTC) + timedelta(days=1), personal_code_required=True,
        discount_type="amount", amount=500, currency="EUR",
    )  # fmt: skip
    make_offer("OPEN", ends_at=None)
    make_offer("USED")
    make_offer("OVER", starts_at=PAST, ends_at=PAST + timedelta(days=1))
    make_offer("FULL", max_redemptions=1, redeemed=1)
    make_offer("PAUSED", paused_at=PAST)
    ada = make_customer()
    redeemed_at = redeem(api, code="USED").json["redeemed_at"]

    usable = api.get("/api/v1/customers/Ada@example.com/offers").json["offers"]
    used = api.get("/api/v1/customers/ada@example.com/offers?used=true").json["offers"]

    assert [item["code"] for item in usable] == ["SOON", "OPEN"]
    assert soon.ends_at is not None
    assert usable[0] == {
        "code": "SOON",
        "personal_code": personal_codes.derive_personal_code("SOON", soon.id, ada.id),
        "name": "Soon",
        "discount": {"type": "amount", "amount": 500, "currency": "EUR"},
        "ends_at": soon.ends_at.isoformat().replace("+00:00", "Z"),
    }
    assert (usable[1]["name"], usable[1]["ends_at"]) == ("Summer", None)
    assert [item.get("redeemed_at") for item in used] == [None, redeemed_at, None]


@pytest.mark.parametrize(("email", "status"), [("nobody@example.com", 404), ("nonsense@", 422), ("nonsense", 404)])
def test_the_offers_of_an_unknown_customer_are_not_found(api: Any, email: str, status: int) -> None:
    assert api.get(f"/api/v1/customers/{email}/offers").status_code == status


@pytest.mark.usefixtures("offer_and_customer")
def test_each_operation_needs_its_scope(api: Any) -> None:
    reader = {"Authorization": f"Bearer {api_key_actions.create_api_key('reader', ['read'], by='tests')}"}
    till = {"Authorization": f"Bearer {api_key_actions.create_api_key('till', ['redeem'], by='tests')}"}

    assert api.get("/api/v1/redemptions", headers=reader).status_code == 200
    assert api.get("/api/v1/redemptions", headers=till).status_code == 403
    assert api.post("/api/v1/redemptions", json=ADA, headers=reader).status_code == 403
    assert api.post("/api/v1/validations", json=ADA, headers=reader).status_code == 403
    assert api.post("/api/v1/redemptions", json=ADA, headers=till).status_code == 201


def test_idempotency_keys_are_hashed_as_in_the_migration(app: Flask) -> None:
    expected_hash = db.session.execute(
        text("select encode(substr(sha256(convert_to('a key', 'UTF8')), 1, 9), 'base64')")
    ).scalar_one()

    assert redemptions.hash_idempotency_key("a key") == expected_hash
    assert len(expected_hash) == 12


def test_the_document_declares_the_idempotency_key(api: Any) -> None:
    document = api.get("/api/v1/openapi.json").get_json()
    parameters = document["paths"]["/api/v1/redemptions"]["post"]["parameters"]
    assert [parameter["name"] for parameter in parameters if parameter["in"] == "header"] == ["Idempotency-Key"]
