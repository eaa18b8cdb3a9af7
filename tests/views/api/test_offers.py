from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, get_args

import pytest
from sqlalchemy import select

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.accounts import api_key_actions
from webapp.accounts.models import AuditEntry
from webapp.campaigns import queries as campaign_queries
from webapp.core.extensions import db
from webapp.core.settings import ROOT
from webapp.customers.models import Audience, AudienceMember
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import OfferState
from webapp.redemptions import group_commit
from webapp.redemptions.rules import RedemptionRequest

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


def test_creating_an_offer_returns_its_location(api: Any) -> None:
    response = api.post("/api/v1/offers", json=SUMMER)

    assert response.status_code == 201
    assert response.headers["Location"] == "/api/v1/offers/SUMMER25"
    assert response.headers["ETag"] == '"1"'
    assert response.json.items() >= (SUMMER | {"frozen": False, "redeemed": 0, "time_zone": "UTC"}).items()


def test_offer_and_email_are_created_together_or_not_at_all(api: Any) -> None:
    mail = {"subject": "For you", "text": "Use {{ offer.code }}: {{ link }}"}
    invalid_mail = {"subject": "For you", "text": "{{ nonsense }}"}

    refused = api.post("/api/v1/offers", json=SUMMER | {"mail": invalid_mail})
    no_offer_exists = not offer_queries.list_offers()
    created = api.post("/api/v1/offers", json=SUMMER | {"mail": mail})

    offer = offer_queries.find_offer_by_code("SUMMER25")
    assert (refused.status_code, no_offer_exists, created.status_code) == (422, True, 201)
    assert offer is not None
    draft = campaign_queries.find_announcement(offer.id)
    assert draft is not None
    assert draft.subject == "For you"


def test_name_and_discount_are_enough_for_an_offer(api: Any) -> None:
    discount = {"type": "amount", "amount": 500, "currency": "EUR"}

    response = api.post("/api/v1/offers", json={"name": "Five", "discount": discount})

    assert response.status_code == 201
    assert response.json["discount"] == discount
    assert response.json["state"] == "live"
    assert len(response.json["code"]) == 9


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
def test_invalid_values_are_reported_with_a_pointer(api: Any, changes: dict[str, Any], pointer: str) -> None:
    response = api.post("/api/v1/offers", json=SUMMER | changes)

    assert response.status_code == 422
    assert response.mimetype == "application/problem+json"
    assert pointer in [error["pointer"] for error in response.json["errors"]]
    assert not offer_queries.list_offers()


@pytest.mark.parametrize(("percent", "shown"), [("10", "10"), ("100.00", "100"), ("012.50", "12.5"), ("0.01", "0.01")])
def test_a_percentage_is_returned_without_trailing_zeros(api: Any, percent: str, shown: str) -> None:
    created = api.post("/api/v1/offers", json=SUMMER | {"discount": {"type": "percent", "percent": percent}})

    discounts = [created.json["discount"], api.get("/api/v1/offers/SUMMER25").json["discount"]]
    assert discounts == [{"type": "percent", "percent": shown}] * 2


@pytest.mark.parametrize("path", ["offers", "redemptions"])
def test_a_page_has_fifty_rows_and_at_most_a_hundred(api: Any, path: str) -> None:
    document = api.get("/api/v1/openapi.json").json

    parameters = {item["name"]: item["schema"] for item in document["paths"][f"/api/v1/{path}"]["get"]["parameters"]}
    assert parameters["limit"].items() >= {"default": 50, "minimum": 1, "maximum": 100}.items()


def test_an_existing_code_is_rejected(api: Any, make_offer: MakeOffer) -> None:
    make_offer("SUMMER25")

    response = api.post("/api/v1/offers", json=SUMMER)

    assert (response.status_code, response.json["errors"][0]["code"]) == (422, "code_taken")


def test_an_audience_is_given_by_name(api: Any) -> None:
    db.session.add(Audience(name="Regulars"))
    db.session.commit()

    api.post("/api/v1/offers", json=SUMMER | {"audience": "Regulars"})

    assert api.get("/api/v1/offers/summer-25").json["audience"] == "Regulars"


def test_the_audience_is_changed_by_name_and_removed_by_null(api: Any, make_offer: MakeOffer) -> None:
    make_offer()
    db.session.add(Audience(name="Regulars"))
    db.session.commit()

    audiences = [
        api.patch("/api/v1/offers/SUMMER25", json=change).json["audience"]
        for change in ({"audience": "Regulars"}, {"name": "Autumn"}, {"audience": None})
    ]

    assert audiences == ["Regulars", "Regulars", None]


def test_each_offer_of_the_list_has_its_own_values(
    api: Any, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.flush()
    ada = make_customer()
    db.session.add(AudienceMember(audience_id=audience.id, customer_id=ada.id))
    offer = make_offer("OLD", audience_id=audience.id, time_zone="Asia/Tokyo", max_redemptions=9)
    make_offer("PLAIN", name="Plain", discount_type="amount", amount=500, currency="EUR", ends_at=None)
    group_commit.redeem(RedemptionRequest(channel="api", code="OLD", email="ada@example.com"))
    code_actions.renew_code(offer.id, "New-1", by="ann")
    offer_actions.pause_offer(offer.id, by="ann")
    db.session.refresh(offer)

    plain, old = api.get("/api/v1/offers").json["offers"]

    def to_text(at: datetime) -> str:
        return at.astimezone(UTC).isoformat().replace("+00:00", "Z")

    assert old == {
        "code": "New-1",
        "aliases": ["OLD"],
        "name": "Summer",
        "discount": {"type": "percent", "percent": "25"},
        "starts_at": to_text(offer.starts_at),
        "ends_at": to_text(offer.ends_at) if offer.ends_at else None,
        "time_zone": "Asia/Tokyo",
        "state": "paused",
        "paused": True,
        "audience": "Regulars",
        "personal_code_required": False,
        "max_redemptions": 9,
        "redeemed": 1,
        "frozen": True,
        "created_at": to_text(offer.created_at),
    }
    assert plain.items() >= {
        "code": "PLAIN", "aliases": [], "name": "Plain", "audience": None, "redeemed": 0, "frozen": False,
        "paused": False, "state": "live", "time_zone": "UTC", "max_redemptions": None, "ends_at": None,
    }.items()  # fmt: skip


@pytest.mark.parametrize("code", ["SUMMER25", "summer 25", "Summer-25"])
def test_an_offer_is_found_by_its_code_in_any_spelling(api: Any, make_offer: MakeOffer, code: str) -> None:
    make_offer()

    assert api.get(f"/api/v1/offers/{code}").json["name"] == "Summer"


@pytest.mark.parametrize("code", ["WINTER", "SÜSS", "%00", "x" * 300])
def test_an_unknown_offer_is_not_found(api: Any, code: str) -> None:
    response = api.get(f"/api/v1/offers/{code}")

    assert (response.status_code, response.json["code"]) == (404, "not_found")


def test_linked_pages_contain_every_offer(api: Any, make_offer: MakeOffer) -> None:
    codes = [make_offer(f"CODE{n}").code for n in range(5)]
    listed: list[str] = []
    url: str | None = "/api/v1/offers?limit=2"

    while url and len(listed) < 10:
        response = api.get(url)
        listed += [item["code"] for item in response.json["offers"]]
        link = response.headers.get("Link")
        url = link[1 : link.index(">")] if link else None

    assert listed == codes[::-1]


def test_a_full_last_page_of_offers_has_no_next_page(api: Any, make_offer: MakeOffer) -> None:
    for n in range(2):
        make_offer(f"CODE{n}")

    response = api.get("/api/v1/offers?limit=2")

    assert (len(response.json["offers"]), response.json["next_cursor"]) == (2, None)
    assert "Link" not in response.headers


def test_the_list_is_filtered_by_state(api: Any, make_offer: MakeOffer) -> None:
    offer_actions.pause_offer(make_offer().id, by="ann")
    make_offer("OTHER")

    assert [item["code"] for item in api.get("/api/v1/offers?state=paused").json["offers"]] == ["SUMMER25"]


@pytest.mark.parametrize(
    "query", ["state=mine", "limit=0", "limit=101", "limit=x", "cursor=x", "cursor=MS4y", "sort=name"]
)
def test_invalid_query_parameters_are_rejected(api: Any, query: str) -> None:
    assert api.get(f"/api/v1/offers?{query}").status_code == 422


def test_a_patch_changes_only_the_given_fields(api: Any, make_offer: MakeOffer) -> None:
    offer = make_offer(max_redemptions=5)

    response = api.patch("/api/v1/offers/SUMMER25", json={"name": "Autumn", "max_redemptions": None})

    db.session.refresh(offer)
    assert (response.status_code, response.headers["ETag"]) == (200, '"2"')
    assert (offer.name, offer.max_redemptions, offer.percent) == ("Autumn", None, Decimal(25))


@pytest.mark.parametrize(("tag", "status"), [('"1"', 200), ('W/"1"', 200), ("*", 200), ('"7"', 412), ("nonsense", 412)])
def test_if_match_must_be_the_current_version(api: Any, make_offer: MakeOffer, tag: str, status: int) -> None:
    offer = make_offer()

    response = api.patch("/api/v1/offers/SUMMER25", json={"name": "Autumn"}, headers={"If-Match": tag})

    db.session.refresh(offer)
    assert response.status_code == status
    assert offer.name == ("Autumn" if status == 200 else "Summer")
    assert status == 200 or response.json["code"] == "conflict"
    assert status == 200 or "since the version in `If-Match`. Fetch it again" in response.json["detail"]


def test_an_offer_is_paused_and_resumed_by_patch(api: Any, make_offer: MakeOffer) -> None:
    make_offer()

    paused = api.patch("/api/v1/offers/SUMMER25", json={"paused": True}).json["state"]
    resumed = api.patch("/api/v1/offers/SUMMER25", json={"paused": False}).json["state"]

    assert (paused, resumed) == ("paused", "live")


@pytest.mark.parametrize(
    "field", ["name", "code", "discount", "paused", "starts_at", "time_zone", "personal_code_required"]
)
def test_required_fields_cannot_be_set_to_null(api: Any, make_offer: MakeOffer, field: str) -> None:
    make_offer()

    response = api.patch("/api/v1/offers/SUMMER25", json={field: None})

    assert (response.status_code, response.json["errors"][0]["pointer"]) == (422, f"/{field}")


def test_a_patch_can_change_every_field(api: Any, make_offer: MakeOffer) -> None:
    make_offer()
    changes = {
        "name": "Autumn",
        "discount": {"type": "amount", "amount": 500, "currency": "EUR"},
        "code": "Autumn-26",
        "starts_at": "2026-09-01T00:00:00Z",
        "ends_at": "2098-12-01T00:00:00Z",
        "time_zone": "Asia/Tokyo",
        "max_redemptions": 7,
        "personal_code_required": True,
        "paused": True,
    }

    changed = api.patch("/api/v1/offers/SUMMER25", json=changes).json
    without_end = api.patch("/api/v1/offers/AUTUMN26", json={"ends_at": None}).json

    assert changed.items() >= changes.items()
    assert without_end == changed | {"ends_at": None}


def test_the_audit_log_names_the_key_of_each_change(api: Any, make_offer: MakeOffer) -> None:
    api.post("/api/v1/offers", json=SUMMER)
    offer_actions.freeze_offer(offer_queries.list_offers()[0].id)
    db.session.commit()
    for change in ({"name": "Autumn"}, {"paused": True}, {"paused": False}):
        api.patch("/api/v1/offers/SUMMER25", json=change)
    api.post("/api/v1/offers/SUMMER25/codes", json={"code": "AUTUMN26"})
    for action in ("close", "reopen"):
        api.post(f"/api/v1/offers/AUTUMN26/codes/SUMMER25/{action}")

    entries = db.session.execute(select(AuditEntry.action, AuditEntry.actor).order_by(AuditEntry.id)).all()
    of_offers = [(action, actor) for action, actor in entries if action.startswith("offer.")]
    names = ("created", "changed", "paused", "resumed", "code_renewed", "code_closed", "code_reopened")
    assert of_offers == [(f"offer.{name}", "API key tests") for name in names]


def test_a_frozen_discount_cannot_be_changed(api: Any, make_offer: MakeOffer) -> None:
    offer_actions.freeze_offer(make_offer().id)
    db.session.commit()

    response = api.patch("/api/v1/offers/SUMMER25", json={"discount": {"type": "percent", "percent": "30"}})

    assert (response.status_code, response.json["errors"][0]["code"]) == (422, "frozen")


def test_reading_needs_scope_read_and_changing_needs_manage(api: Any, make_offer: MakeOffer) -> None:
    make_offer()
    key = api_key_actions.create_api_key("reader", ["read"], by="tests")
    headers = {"Authorization": f"Bearer {key}"}

    assert api.get("/api/v1/offers/SUMMER25", headers=headers).status_code == 200
    assert api.patch("/api/v1/offers/SUMMER25", json={"name": "x"}, headers=headers).status_code == 403
    assert api.post("/api/v1/offers", json=SUMMER, headers=headers).status_code == 403


@pytest.mark.parametrize("zone", ["localtime", "posixrules", "Nowhere/Land", "../etc/passwd", "\0"])
def test_an_unknown_time_zone_is_rejected(api: Any, zone: str) -> None:
    response = api.post("/api/v1/offers", json={**SUMMER, "time_zone": zone})

    assert response.status_code == 422


def test_the_guide_lists_every_state_of_an_offer() -> None:
    section = (ROOT / "docs" / "api.md").read_text().partition("\n## Offers\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == set(get_args(OfferState))
