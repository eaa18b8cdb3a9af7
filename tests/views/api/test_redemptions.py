from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from webapp.accounts import api_key_actions
from webapp.core.extensions import db
from webapp.customers.models import Audience, Customer
from webapp.offers.models import Offer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import personal_codes
from webapp.redemptions.rules import RedemptionRequest
from webapp.views.api.schemas import redemptions

MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]
ADA: dict[str, Any] = {"code": "summer25", "customer": {"email": "Ada@example.com"}}
ORDER = {"id": "A-1", "amount": 4999, "currency": "EUR"}
PAST = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def ready(make_offer: MakeOffer, make_customer: MakeCustomer) -> tuple[Offer, Customer]:
    """A live offer and a customer."""
    return make_offer(), make_customer(source_id="C-1")


def rows() -> int:
    return int(db.session.execute(text("select count(*) from redemption")).scalar_one())


def redeem(api: Any, key: str | None = None, **values: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return api.post("/api/v1/redemptions", json=ADA | values, headers=headers)


@pytest.mark.usefixtures("ready")
def test_redeeming_answers_with_the_discount(api: Any) -> None:
    answer = redeem(api, order=ORDER, metadata={"till": [1, {"clerk": "Bo"}]})

    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/api/v1/redemptions/{answer.json['id']}"
    assert answer.json["redeemed_at"].endswith("Z")
    assert (
        answer.json.items()
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


@pytest.mark.usefixtures("ready")
def test_a_customer_may_be_named_by_the_shops_own_id(api: Any) -> None:
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


@pytest.mark.parametrize(("values", "asked", "status", "code"), REFUSALS)
def test_a_refusal_is_a_problem_that_says_which_rule(
    api: Any,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    values: dict[str, Any],
    asked: dict[str, Any],
    status: int,
    code: str,
) -> None:
    make_offer(**values), make_customer()

    answer = redeem(api, **asked)

    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert answer.mimetype == "application/problem+json"
    assert rows() == 0


@pytest.mark.parametrize(("values", "asked", "status", "code"), REFUSALS)
def test_a_validation_gives_the_same_reason_and_writes_nothing(
    api: Any,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    values: dict[str, Any],
    asked: dict[str, Any],
    status: int,
    code: str,
) -> None:
    make_offer(**values), make_customer()

    answer = api.post("/api/v1/validations", json=ADA | asked)

    assert answer.status_code == 200
    assert (answer.json["valid"], answer.json["reason"]) == (False, code)


def test_a_validation_tells_what_it_would_give_and_writes_nothing(api: Any, ready: tuple[Offer, Customer]) -> None:
    answer = api.post("/api/v1/validations", json=ADA | {"order": ORDER})

    db.session.refresh(ready[0])
    assert answer.json.items() >= {"valid": True, "discount_amount": 1250}.items()
    assert answer.json["discount"] == {"type": "percent", "percent": "25"}
    assert (rows(), ready[0].frozen_at) == (0, None)


def test_not_being_in_the_audience_is_a_reason_of_its_own(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.flush()
    make_offer(audience_id=audience.id), make_customer()

    assert redeem(api).json["code"] == "customer_not_eligible"


@pytest.mark.usefixtures("ready")
def test_a_second_use_is_refused(api: Any) -> None:
    redeem(api)

    assert (redeem(api).status_code, redeem(api).json["code"]) == (409, "already_redeemed")


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize(("first", "second"), [({"key": "k1"}, {"key": "k1"}), ({"order": ORDER}, {"order": ORDER})])
def test_a_repeat_answers_the_first_result(api: Any, first: dict[str, Any], second: dict[str, Any]) -> None:
    done = redeem(api, **first)

    again = redeem(api, **second)

    assert (again.status_code, again.json) == (200, done.json)


@pytest.mark.usefixtures("ready")
def test_a_repeat_may_be_written_otherwise_but_not_say_something_else(api: Any) -> None:
    redeem(api, key="k1", metadata={"a": 1, "b": 2})

    same = redeem(api, key="k1", metadata={"b": 2, "a": 1})
    other = redeem(api, key="k1", metadata={"a": 1})

    assert (same.status_code, other.status_code, other.json["code"]) == (200, 422, "invalid_payload")


@pytest.mark.usefixtures("ready")
def test_the_key_of_one_machine_is_nothing_to_another(api: Any) -> None:
    redeem(api, key="k1", order=ORDER)
    other = {"Authorization": f"Bearer {api_key_actions.create_api_key('other', ['redeem'], by='tests')}"}

    answer = api.post("/api/v1/redemptions", json=ADA | {"order": ORDER}, headers=other | {"Idempotency-Key": "k1"})

    assert (answer.status_code, answer.json["code"]) == (409, "already_redeemed")


@pytest.mark.usefixtures("ready")
def test_after_a_rollback_the_same_key_tells_of_it_and_a_new_one_redeems_anew(api: Any) -> None:
    first = redeem(api, key="k1", order=ORDER).json
    undone = api.post(f"/api/v1/redemptions/{first['id']}/rollback", json={"reason": "order cancelled"})

    repeat, anew = redeem(api, key="k1", order=ORDER), redeem(api, key="k2", order=ORDER | {"id": "A-2"})

    assert (undone.status_code, undone.json["rollback_reason"]) == (200, "order cancelled")
    assert (repeat.status_code, repeat.json["id"]) == (200, first["id"])
    assert repeat.json["rolled_back_at"] == undone.json["rolled_back_at"]
    assert (anew.status_code, anew.json["rolled_back_at"]) == (201, None)


@pytest.mark.usefixtures("ready")
def test_undoing_twice_is_refused(api: Any) -> None:
    where = f"/api/v1/redemptions/{redeem(api).json['id']}/rollback"
    api.post(where, json={"reason": "order cancelled"})

    answer = api.post(where, json={"reason": "order cancelled"})

    assert (answer.status_code, answer.json["code"]) == (409, "already_rolled_back")


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "  "}, {"reason": 5}, {"reason": "a\0"}, {"why": "x"}])
def test_undoing_needs_a_reason(api: Any, body: dict[str, Any]) -> None:
    done = redeem(api).json

    assert api.post(f"/api/v1/redemptions/{done['id']}/rollback", json=body).status_code == 422
    assert rows() == 1


@pytest.mark.parametrize("public_id", ["x", "0" * 26, "Z" * 26, "7" + "Z" * 25, "%00", "ä"])
def test_what_is_not_there_is_not_found(api: Any, public_id: str) -> None:
    undo = api.post(f"/api/v1/redemptions/{public_id}/rollback", json={"reason": "x"})

    assert (api.get(f"/api/v1/redemptions/{public_id}").status_code, undo.status_code) == (404, 404)


DEEP: dict[str, Any] = {}
for _ in range(50):
    DEEP = {"a": DEEP}


@pytest.mark.usefixtures("ready")
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
def test_what_makes_no_sense_is_a_problem_with_a_pointer(api: Any, values: dict[str, Any], pointer: str) -> None:
    answer = redeem(api, **values)

    assert answer.status_code == 422
    assert pointer in [error["pointer"] for error in answer.json["errors"]]
    assert rows() == 0


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_refused(api: Any, number: str) -> None:
    body = f'{{"code": "SUMMER25", "customer": {{"email": "ada@example.com"}}, "metadata": {{"a": {number}}}}}'

    answer = api.post("/api/v1/redemptions", data=body, content_type="application/json")

    assert answer.status_code in (400, 422)
    assert rows() == 0


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("key", ["", "x" * 256, "ä", "a\tb"])
def test_an_idempotency_key_that_can_not_be_kept_is_refused(api: Any, key: str) -> None:
    answer = api.post("/api/v1/redemptions", json=ADA, headers={"Idempotency-Key": key})

    assert answer.status_code == 422


@pytest.mark.parametrize(
    ("order", "code"),
    [(ORDER | {"currency": "USD"}, "currency_mismatch"), ({"id": "A-1", "amount": 4999}, "currency_missing")],
)
def test_a_fixed_amount_wants_its_own_currency(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer, order: dict[str, Any], code: str
) -> None:
    make_offer(discount_type="amount", amount=500, currency="EUR"), make_customer()

    answer = redeem(api, order=order)

    assert (answer.status_code, answer.json["errors"][0]["code"]) == (422, code)
    assert answer.json["errors"][0]["pointer"] == "/order/currency"


def test_redemptions_are_listed_narrowed_and_read(api: Any, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_offer("OTHER")
    make_customer(source_id="C-1"), make_customer("bob@example.com")
    first = redeem(api).json
    redeem(api, code="OTHER")
    redeem(api, customer={"email": "bob@example.com"})
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat().replace("+00:00", "Z")

    def listed(query: str) -> int:
        answer = api.get(f"/api/v1/redemptions?{query}")
        assert answer.status_code == 200
        return len(answer.json["redemptions"])

    assert listed("") == 3
    assert listed("offer=summer-25") == 2
    assert listed("email=Ada@Example.com") == 2
    assert listed("source_id=C-1&offer=OTHER") == 1
    assert listed("offer=NONE") == listed("email=nobody@example.com") == listed(f"since={later}") == 0
    assert listed(f"until={later}&channel=api") == 3
    assert api.get(f"/api/v1/redemptions/{first['id'].lower()}").json == first


def test_pages_are_linked_and_go_through_all(api: Any, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_offer("OTHER")
    emails = [make_customer(f"c{n}@example.com").email for n in range(4)]
    redemption_actions.redeem_all(
        [RedemptionRequest(channel="api", code=c, email=e) for e in emails for c in ("SUMMER25", "OTHER")]
    )
    seen: list[str] = []
    address: str | None = "/api/v1/redemptions?limit=3"

    while address and len(seen) < 20:
        answer = api.get(address)
        seen += [item["id"] for item in answer.json["redemptions"]]
        link = answer.headers.get("Link")
        address = link[1 : link.index(">")] if link else None

    assert len(seen) == len(set(seen)) == 8


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
def test_a_query_that_makes_no_sense_is_refused(api: Any, query: str) -> None:
    assert api.get(f"/api/v1/redemptions?{query}").status_code == 422


def test_a_cursor_from_the_end_of_time_is_only_the_first_page(api: Any) -> None:
    from webapp.core import pagination

    largest = (1 << 63) - 1

    assert (
        api.get(f"/api/v1/redemptions?cursor={pagination.encode_cursor(largest, largest, largest)}").status_code == 200
    )


def test_what_a_customer_can_use_now(api: Any, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    soon = make_offer("SOON", ends_at=datetime.now(UTC) + timedelta(days=1), personal_code_required=True)
    make_offer("OPEN", ends_at=None)
    make_offer("USED")
    make_offer("OVER", starts_at=PAST, ends_at=PAST + timedelta(days=1))
    make_offer("FULL", max_redemptions=1, redeemed=1)
    make_offer("PAUSED", paused_at=PAST)
    ada = make_customer()
    redeem(api, code="USED")

    usable = api.get("/api/v1/customers/Ada@example.com/offers").json["offers"]
    used = api.get("/api/v1/customers/ada@example.com/offers?used=true").json["offers"]

    assert [item["code"] for item in usable] == ["SOON", "OPEN"]
    assert usable[0]["personal_code"] == personal_codes.derive_personal_code("SOON", soon.id, ada.id)
    assert (usable[1]["name"], usable[1]["ends_at"]) == ("Summer", None)
    assert [("redeemed_at" in item) for item in used] == [False, True, False]


@pytest.mark.parametrize(("email", "status"), [("nobody@example.com", 404), ("nonsense@", 422), ("nonsense", 404)])
def test_an_unknown_customer_has_no_offers(api: Any, email: str, status: int) -> None:
    assert api.get(f"/api/v1/customers/{email}/offers").status_code == status


@pytest.mark.usefixtures("ready")
def test_each_call_wants_its_scope(api: Any) -> None:
    reader = {"Authorization": f"Bearer {api_key_actions.create_api_key('reader', ['read'], by='tests')}"}
    till = {"Authorization": f"Bearer {api_key_actions.create_api_key('till', ['redeem'], by='tests')}"}

    assert api.get("/api/v1/redemptions", headers=reader).status_code == 200
    assert api.get("/api/v1/redemptions", headers=till).status_code == 403
    assert api.post("/api/v1/redemptions", json=ADA, headers=reader).status_code == 403
    assert api.post("/api/v1/validations", json=ADA, headers=reader).status_code == 403
    assert api.post("/api/v1/redemptions", json=ADA, headers=till).status_code == 201


def test_a_key_is_kept_as_the_migration_made_those_that_were_there_before(app: Flask) -> None:
    kept = db.session.execute(
        text("select encode(substr(sha256(convert_to('a key', 'UTF8')), 1, 9), 'base64')")
    ).scalar_one()

    assert redemptions.hash_idempotency_key("a key") == kept
    assert len(kept) == 12


def test_the_document_tells_of_the_key_for_repeats(api: Any) -> None:
    document = api.get("/api/v1/openapi.json").get_json()
    parameters = document["paths"]["/api/v1/redemptions"]["post"]["parameters"]
    assert [given["name"] for given in parameters if given["in"] == "header"] == ["Idempotency-Key"]
