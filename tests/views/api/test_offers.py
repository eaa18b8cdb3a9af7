from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from webapp.accounts import api_key_actions
from webapp.campaigns import queries as campaign_queries
from webapp.core.extensions import db
from webapp.customers.models import Audience
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer

MakeOffer = Callable[..., Offer]
SUMMER: dict[str, Any] = {
    "name": "Summer",
    "code": "Summer-25",
    "discount": {"type": "percent", "percent": "25"},
    "starts_at": "2026-06-01T00:00:00Z",
    "ends_at": "2026-09-01T00:00:00Z",
    "max_redemptions": None,
    "audience": None,
    "personal_code_required": False,
}


def test_setting_up_an_offer_answers_with_where_it_is(api: Any) -> None:
    answer = api.post("/api/v1/offers", json=SUMMER)

    assert answer.status_code == 201
    assert answer.headers["Location"] == "/api/v1/offers/SUMMER25"
    assert answer.headers["ETag"] == '"1"'
    assert answer.json.items() >= (SUMMER | {"frozen": False, "redeemed": 0, "time_zone": "UTC"}).items()


def test_the_mail_comes_with_the_offer_or_neither_does(api: Any) -> None:
    mail = {"subject": "For you", "text": "Use {{ offer.code }}: {{ link }}"}
    wrong = {"subject": "For you", "text": "{{ nonsense }}"}

    refused = api.post("/api/v1/offers", json=SUMMER | {"mail": wrong})
    nothing_half_done = not offer_queries.has_offers()
    taken = api.post("/api/v1/offers", json=SUMMER | {"mail": mail})

    offer = offer_queries.find_offer_by_code("SUMMER25")
    assert (refused.status_code, nothing_half_done, taken.status_code) == (422, True, 201)
    assert offer is not None
    draft = campaign_queries.find_announcement(offer.id)
    assert draft is not None
    assert draft.subject == "For you"


def test_an_amount_without_code_window_and_mail_is_enough(api: Any) -> None:
    discount = {"type": "amount", "amount": 500, "currency": "EUR"}

    answer = api.post("/api/v1/offers", json={"name": "Five", "discount": discount})

    assert answer.status_code == 201
    assert answer.json["discount"] == discount
    assert answer.json["state"] == "live"
    assert len(answer.json["code"]) == 9


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"name": ""}, "/name"),
        ({"name": None}, "/name"),
        ({"name": "a\0b"}, "/name"),
        ({"name": "\ud800"}, "/name"),
        ({"code": "SÜSS"}, "/code"),
        ({"code": "AB"}, "/code"),
        ({"discount": {"type": "percent", "percent": "500"}}, "/discount/percent"),
        ({"discount": {"type": "percent", "percent": 25}}, "/discount/percent"),
        ({"discount": {"type": "percent", "percent": "12.345"}}, "/discount/percent"),
        ({"discount": {"type": "percent", "percent": "0"}}, "/discount/percent"),
        ({"discount": {"type": "amount", "amount": 5.0, "currency": "EUR"}}, "/discount/amount"),
        ({"discount": {"type": "amount", "amount": True, "currency": "EUR"}}, "/discount/amount"),
        ({"discount": {"type": "amount", "amount": -5, "currency": "EUR"}}, "/discount/amount"),
        ({"discount": {"type": "amount", "amount": 10**30, "currency": "EUR"}}, "/discount/amount"),
        ({"discount": {"type": "amount", "amount": 5, "currency": "XYZ"}}, "/discount/currency"),
        ({"discount": {"type": "gift"}}, "/discount/type"),
        ({"discount": {"type": "percent", "amount": 5, "currency": "EUR"}}, "/discount"),
        ({"discount": {"type": "amount", "amount": 5}}, "/discount"),
        ({"starts_at": "tomorrow"}, "/starts_at"),
        ({"starts_at": 1780000000}, "/starts_at"),
        ({"starts_at": "2026-06-01T00:00:00"}, "/starts_at"),
        ({"starts_at": "0001-01-01T00:00:00+14:00"}, "/starts_at"),
        ({"ends_at": "2026-05-01T00:00:00Z"}, "/ends_at"),
        ({"ends_at": "9999-12-31T23:59:59-14:00"}, "/ends_at"),
        ({"max_redemptions": -1}, "/max_redemptions"),
        ({"max_redemptions": 5255.0}, "/max_redemptions"),
        ({"max_redemptions": True}, "/max_redemptions"),
        ({"max_redemptions": 10**30}, "/max_redemptions"),
        ({"time_zone": "Mars/Base"}, "/time_zone"),
        ({"audience": "Nobody"}, "/audience"),
        ({"personal_code_required": "yes"}, "/personal_code_required"),
        ({"colour": "red"}, "/colour"),
    ],
)
def test_what_makes_no_sense_is_a_problem_with_a_pointer(api: Any, changes: dict[str, Any], pointer: str) -> None:
    answer = api.post("/api/v1/offers", json=SUMMER | changes)

    assert answer.status_code == 422
    assert answer.mimetype == "application/problem+json"
    assert pointer in [error["pointer"] for error in answer.json["errors"]]
    assert not offer_queries.has_offers()


def test_a_code_that_exists_is_a_problem(api: Any, make_offer: MakeOffer) -> None:
    make_offer("SUMMER25")

    answer = api.post("/api/v1/offers", json=SUMMER)

    assert (answer.status_code, answer.json["errors"][0]["code"]) == (422, "code_taken")


def test_an_audience_is_named(api: Any) -> None:
    db.session.add(Audience(name="Regulars"))
    db.session.commit()

    api.post("/api/v1/offers", json=SUMMER | {"audience": "Regulars"})

    assert api.get("/api/v1/offers/summer-25").json["audience"] == "Regulars"


@pytest.mark.parametrize("code", ["SUMMER25", "summer 25", "Summer-25"])
def test_an_offer_is_read_by_its_code_in_any_spelling(api: Any, make_offer: MakeOffer, code: str) -> None:
    make_offer()

    assert api.get(f"/api/v1/offers/{code}").json["name"] == "Summer"


@pytest.mark.parametrize("code", ["WINTER", "SÜSS", "%00", "x" * 300])
def test_an_offer_that_is_not_there_is_not_found(api: Any, code: str) -> None:
    answer = api.get(f"/api/v1/offers/{code}")

    assert (answer.status_code, answer.json["code"]) == (404, "not_found")


def test_pages_are_linked_and_go_through_all(api: Any, make_offer: MakeOffer) -> None:
    made = [make_offer(f"CODE{n}").code for n in range(5)]
    seen: list[str] = []
    address: str | None = "/api/v1/offers?limit=2"

    while address and len(seen) < 10:
        answer = api.get(address)
        seen += [item["code"] for item in answer.json["offers"]]
        link = answer.headers.get("Link")
        address = link[1 : link.index(">")] if link else None

    assert seen == made[::-1]


def test_the_list_is_filtered_by_state(api: Any, make_offer: MakeOffer) -> None:
    offer_actions.pause_offer(make_offer().id, by="ann")
    make_offer("OTHER")

    assert [item["code"] for item in api.get("/api/v1/offers?state=paused").json["offers"]] == ["SUMMER25"]


@pytest.mark.parametrize(
    "query", ["state=mine", "limit=0", "limit=101", "limit=x", "cursor=x", "cursor=MS4y", "sort=name"]
)
def test_a_query_that_makes_no_sense_is_refused(api: Any, query: str) -> None:
    assert api.get(f"/api/v1/offers?{query}").status_code == 422


def test_what_is_sent_is_changed_and_the_rest_stays(api: Any, make_offer: MakeOffer) -> None:
    offer = make_offer(max_redemptions=5)

    answer = api.patch("/api/v1/offers/SUMMER25", json={"name": "Autumn", "max_redemptions": None})

    db.session.refresh(offer)
    assert (answer.status_code, answer.headers["ETag"]) == (200, '"2"')
    assert (offer.name, offer.max_redemptions, offer.percent) == ("Autumn", None, Decimal(25))


@pytest.mark.parametrize(("tag", "status"), [('"1"', 200), ('W/"1"', 200), ("*", 200), ('"7"', 412), ("nonsense", 412)])
def test_a_change_with_if_match_wants_the_version_it_was_made_from(
    api: Any, make_offer: MakeOffer, tag: str, status: int
) -> None:
    offer = make_offer()

    answer = api.patch("/api/v1/offers/SUMMER25", json={"name": "Autumn"}, headers={"If-Match": tag})

    db.session.refresh(offer)
    assert answer.status_code == status
    assert offer.name == ("Autumn" if status == 200 else "Summer")
    assert status == 200 or answer.json["code"] == "conflict"


def test_pausing_by_a_change(api: Any, make_offer: MakeOffer) -> None:
    make_offer()

    paused = api.patch("/api/v1/offers/SUMMER25", json={"paused": True}).json["state"]
    resumed = api.patch("/api/v1/offers/SUMMER25", json={"paused": False}).json["state"]

    assert (paused, resumed) == ("paused", "live")


@pytest.mark.parametrize("change", [{"name": None}, {"code": None}, {"discount": None}, {"paused": None}])
def test_what_an_offer_must_have_can_not_be_taken_away(api: Any, make_offer: MakeOffer, change: dict[str, Any]) -> None:
    make_offer()

    assert api.patch("/api/v1/offers/SUMMER25", json=change).status_code == 422


def test_a_frozen_discount_is_refused_with_a_pointer(api: Any, make_offer: MakeOffer) -> None:
    offer_actions.freeze_offer(make_offer().id)
    db.session.commit()

    answer = api.patch("/api/v1/offers/SUMMER25", json={"discount": {"type": "percent", "percent": "30"}})

    assert (answer.status_code, answer.json["errors"][0]["code"]) == (422, "frozen")


def test_reading_needs_no_right_to_manage_and_changing_does(api: Any, make_offer: MakeOffer) -> None:
    make_offer()
    key = api_key_actions.create_api_key("reader", ["read"], by="tests")
    headers = {"Authorization": f"Bearer {key}"}

    assert api.get("/api/v1/offers/SUMMER25", headers=headers).status_code == 200
    assert api.patch("/api/v1/offers/SUMMER25", json={"name": "x"}, headers=headers).status_code == 403
    assert api.post("/api/v1/offers", json=SUMMER, headers=headers).status_code == 403


@pytest.mark.parametrize("zone", ["localtime", "posixrules", "Nowhere/Land", "../etc/passwd", "\0"])
def test_a_zone_that_no_database_knows_is_refused(api: Any, zone: str) -> None:
    answer = api.post("/api/v1/offers", json={**SUMMER, "time_zone": zone})

    assert answer.status_code == 422
