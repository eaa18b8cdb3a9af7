"""The codes of an offer: renew, close, reopen, and never reuse for another offer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from tests.support.factories import MakeOffer
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.customers.models import Customer
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferValues

LAUNCHED = {"frozen_at": datetime(2026, 1, 1, tzinfo=UTC)}


def first_error(error: pytest.ExceptionInfo[InvalidInput]) -> tuple[str, str]:
    return error.value.errors[0].field, error.value.errors[0].key


def codes(offer: Offer) -> dict[str, bool]:
    """Return every code and whether it is open, newest first."""
    return {row.code: row.closed_at is None for row in offer_queries.list_codes_by_offer([offer.id])[offer.id]}


def test_after_renewal_both_codes_find_the_offer(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)

    changed = code_actions.renew_code(offer.id, "Winter-26", by="ann")

    assert (changed.code, changed.code_as_written, changed.version) == ("WINTER26", "Winter-26", 2)
    assert [found.id for found in map(offer_queries.find_offer_by_code, ("WINTER26", "SUMMER25")) if found] == [
        offer.id,
        offer.id,
    ]
    assert codes(offer) == {"WINTER26": True, "SUMMER25": True}


def test_renewal_without_a_code_generates_one(make_offer: MakeOffer) -> None:
    changed = code_actions.renew_code(make_offer(**LAUNCHED).id, None, by="ann")

    assert len(changed.code) == 8
    assert set(changed.code) <= set(code_actions.GENERATED_ALPHABET)


def test_renewal_before_the_launch_frees_the_old_code(make_offer: MakeOffer) -> None:
    offer = make_offer()

    code_actions.renew_code(offer.id, "WINTER26", by="ann")

    assert codes(offer) == {"WINTER26": True}
    assert make_offer("SUMMER25").code == "SUMMER25"


def test_an_update_before_the_launch_frees_the_old_code(make_offer: MakeOffer) -> None:
    offer = make_offer()

    offer_actions.update_offer(offer.id, {"code": "WINTER26"}, version=None, by="ann")

    assert codes(offer) == {"WINTER26": True}


def test_another_spelling_of_the_code_is_the_same_code(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)

    changed = code_actions.renew_code(offer.id, "summer-25", by="ann")

    assert (changed.code_as_written, codes(offer)) == ("summer-25", {"SUMMER25": True})


def test_a_code_is_shown_in_plain_letters_with_single_spaces(make_offer: MakeOffer) -> None:
    changed = code_actions.renew_code(make_offer(**LAUNCHED).id, " Ｗinter  ２６ ", by="ann")

    assert (changed.code_as_written, changed.code) == ("Winter 26", "WINTER26")


@pytest.mark.parametrize(("dashes", "is_valid"), [(77, True), (78, False)])
def test_a_code_has_at_most_eighty_characters_with_its_dashes(
    make_offer: MakeOffer, dashes: int, is_valid: bool
) -> None:
    offer, typed = make_offer(**LAUNCHED), f"A{'-' * dashes}BC"

    if is_valid:
        assert code_actions.renew_code(offer.id, typed, by="ann").code_as_written == typed
    else:
        with pytest.raises(InvalidInput) as error:
            code_actions.renew_code(offer.id, typed, by="ann")
        assert first_error(error) == ("code", "code_length")


def test_renewal_to_the_current_code_changes_nothing(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)

    assert code_actions.renew_code(offer.id, "SUMMER25", by="ann").version == 1


@pytest.mark.parametrize("taken", ["NOW", "EARLIER", "CLOSED"])
def test_another_offer_cannot_take_a_code(make_offer: MakeOffer, taken: str) -> None:
    first, second = make_offer("CLOSED", **LAUNCHED), make_offer("SECOND", **LAUNCHED)
    for code in ("EARLIER", "NOW"):
        code_actions.renew_code(first.id, code, by="ann")
    code_actions.close_code(first.id, "CLOSED", by="ann")
    values = OfferValues("Third", first.discount, first.starts_at, code=taken)

    with pytest.raises(InvalidInput) as renewed:
        code_actions.renew_code(second.id, taken, by="ann")
    db.session.rollback()
    with pytest.raises(InvalidInput) as created:
        offer_actions.create_offer(values, by="ann")

    assert first_error(renewed) == first_error(created) == ("code", "code_taken")
    assert offer_queries.find_offers([second.id])[second.id].code == "SECOND"


def test_concurrent_renewals_to_one_code_succeed_once(app: Flask, make_offer: MakeOffer) -> None:
    ids = [make_offer(f"CODE{n}", **LAUNCHED).id for n in range(8)]
    ready = threading.Barrier(len(ids))
    outcomes: list[str] = []

    def renew(offer_id: int) -> None:
        with app.app_context():
            ready.wait()
            try:
                outcomes.append(code_actions.renew_code(offer_id, "NEW", by="ann").code)
            except InvalidInput as error:
                outcomes.append(error.errors[0].key)

    threads = [threading.Thread(target=renew, args=(offer_id,)) for offer_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["NEW"] + ["code_taken"] * 7


@pytest.mark.parametrize(("code", "key"), [("AB", "code_length"), ("A" * 41, "code_length"), ("SÜSS", "code_invalid")])
def test_a_new_code_is_validated(make_offer: MakeOffer, code: str, key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        code_actions.renew_code(make_offer(**LAUNCHED).id, code, by="ann")
    assert first_error(error) == ("code", key)


def test_an_earlier_code_can_become_current_again(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    code_actions.renew_code(offer.id, "WINTER26", by="ann")

    changed = code_actions.renew_code(offer.id, "summer25", by="ann")

    assert (changed.code, changed.code_as_written) == ("SUMMER25", "summer25")
    assert codes(offer) == {"WINTER26": True, "SUMMER25": True}


def test_a_closed_code_is_not_found_and_cannot_be_renewed_to(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    code_actions.renew_code(offer.id, "WINTER26", by="ann")
    code_actions.close_code(offer.id, "summer-25", by="ann")

    with pytest.raises(InvalidInput) as error:
        code_actions.renew_code(offer.id, "SUMMER25", by="ann")

    assert first_error(error) == ("code", "code_closed")
    assert offer_queries.find_offer_by_code("SUMMER25") is None
    assert [found.id for found in offer_queries.list_offers("summer-2")] == [offer.id]


def test_a_closed_code_can_be_reopened(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    code_actions.renew_code(offer.id, "WINTER26", by="ann")
    code_actions.close_code(offer.id, "SUMMER25", by="ann")

    code_actions.reopen_code(offer.id, "SUMMER25", by="ann")

    assert codes(offer) == {"WINTER26": True, "SUMMER25": True}


def test_closing_and_reopening_are_idempotent(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    code_actions.renew_code(offer.id, "WINTER26", by="ann")

    actions = (code_actions.close_code, code_actions.close_code, code_actions.reopen_code, code_actions.reopen_code)

    assert [action(offer.id, "SUMMER25", by="ann").version for action in actions] == [3, 3, 4, 4]


def test_the_current_code_cannot_be_closed(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)

    with pytest.raises(DomainError) as error:
        code_actions.close_code(offer.id, "SUMMER25", by="ann")
    assert (error.value.key, codes(offer)) == ("conflict", {"SUMMER25": True})


@pytest.mark.parametrize("code", ["NEVER", "OTHERS", "SÜSS", ""])
def test_a_code_that_the_offer_never_had_is_not_found(make_offer: MakeOffer, code: str) -> None:
    make_offer("OTHERS")

    with pytest.raises(NotFound):
        code_actions.close_code(make_offer(**LAUNCHED).id, code, by="ann")


def test_a_renewal_of_an_older_version_is_a_conflict(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    offer_actions.pause_offer(offer.id, by="bob")

    with pytest.raises(DomainError) as error:
        code_actions.renew_code(offer.id, "WINTER26", by="ann", version=1)
    assert error.value.key == "conflict"


def test_the_audit_log_has_renewals_closings_and_reopenings(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    code_actions.renew_code(offer.id, "WINTER26", by="ann")
    code_actions.close_code(offer.id, "SUMMER25", by="bob")
    code_actions.reopen_code(offer.id, "SUMMER25", by="cem")

    entries = db.session.execute(text("select actor, action, subject, detail from audit_entry order by id")).all()

    assert entries == [
        ("ann", "offer.code_renewed", "WINTER26", {"before": "SUMMER25"}),
        ("bob", "offer.code_closed", "SUMMER25", {"offer": "WINTER26"}),
        ("cem", "offer.code_reopened", "SUMMER25", {"offer": "WINTER26"}),
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "update offer set code = 'OTHER'",
        "update offer set code_as_written = 'Summer'",
        "delete from offer_code",
        "update offer_code set code = 'OTHER'",
        "update offer set code = 'SECOND', code_as_written = 'SECOND' where code = 'SUMMER25'",
        "insert into offer_code (code, offer_id, code_as_written) select 'SECOND', id, 'SECOND' from offer",
    ],
)
def test_the_database_keeps_an_offer_and_its_codes_consistent(make_offer: MakeOffer, statement: str) -> None:
    make_offer()
    make_offer("SECOND")

    with pytest.raises(IntegrityError), db.engine.begin() as connection:
        connection.execute(text(statement))


# --- staff ----------------------------------------------------------------------------------------


def test_the_page_shows_the_codes_and_their_actions(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    staff.post(f"/offers/{offer.id}/code", data={"code": "Winter-26"})
    renewed = staff.get(f"/offers/{offer.id}").text
    staff.post(f"/offers/{offer.id}/codes/SUMMER25/close")
    closed = staff.get(f"/offers/{offer.id}").text

    assert "/redeem?code=WINTER26" in renewed
    assert f'action="/offers/{offer.id}/codes/SUMMER25/close"' in renewed
    assert "SUMMER25 stays valid until you close it." in renewed
    assert f'action="/offers/{offer.id}/codes/SUMMER25/reopen"' in closed
    assert "/codes/WINTER26/" not in closed


def test_a_taken_code_is_an_error_at_its_field(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer, _ = make_offer(**LAUNCHED), make_offer("TAKEN")

    response = staff.post(f"/offers/{offer.id}/code", data={"code": "tak-en"})

    assert response.status_code == 422
    assert "This code belongs to another offer" in response.text
    assert 'value="tak-en"' in response.text


def test_an_empty_code_field_generates_a_code(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)

    response = staff.post(f"/offers/{offer.id}/code", data={"code": " "})

    assert response.location == f"/offers/{offer.id}"
    assert len(codes(offer)) == 2


def test_the_page_says_whether_the_old_code_stays_valid(staff: FlaskClient, make_offer: MakeOffer) -> None:
    draft, offer = make_offer("FRESH"), make_offer("LAUNCHED", **LAUNCHED)

    assert "it is no longer valid once it is replaced" in staff.get(f"/offers/{draft.id}/code").text
    assert "LAUNCHED stays valid" in staff.get(f"/offers/{offer.id}/code").text


def test_after_a_change_of_codes_the_page_says_which_are_valid(staff: FlaskClient, make_offer: MakeOffer) -> None:
    draft, offer = make_offer("FRESH"), make_offer("LAUNCHED", **LAUNCHED)

    def change(path: str, code: str = "") -> str:
        return unescape(staff.post(path, data={"code": code}, follow_redirects=True).text)

    assert "The code is now Newer." in change(f"/offers/{draft.id}/code", "Newer")
    path = f"/offers/{offer.id}/code"
    assert "LAUNCHED is already the code of this offer. Nothing was changed." in change(path, "LAUNCHED")
    assert "The code is now Winter-26. LAUNCHED stays valid until you close it." in change(path, "Winter-26")
    assert "LAUNCHED is closed and no longer valid." in change(f"/offers/{offer.id}/codes/LAUNCHED/close")
    assert "LAUNCHED is valid again." in change(f"/offers/{offer.id}/codes/LAUNCHED/reopen")


def test_closing_the_current_code_says_to_renew_it_first(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)

    response = staff.post(f"/offers/{offer.id}/codes/SUMMER25/close", follow_redirects=True)

    assert "Replace the code first" in response.text


@pytest.mark.parametrize("path", ["code", "codes/OLD/close", "codes/OLD/reopen", "personal-code"])
def test_a_viewer_sees_the_codes_but_cannot_change_them(
    sign_in: Callable[..., FlaskClient], make_offer: MakeOffer, path: str
) -> None:
    offer = make_offer("OLD", **LAUNCHED)
    code_actions.renew_code(offer.id, "NEW", by="ann")
    client = sign_in("viewer")

    page = client.get(f"/offers/{offer.id}").text
    response = client.post(f"/offers/{offer.id}/{path}", data={"code": "X99"})

    assert (response.status_code, codes(offer)) == (403, {"NEW": True, "OLD": True})
    assert "OLD" in page
    assert f"/offers/{offer.id}/{path}" not in page


def test_a_button_toggles_the_requirement_of_personal_codes(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)

    before = staff.get(f"/offers/{offer.id}").text
    path = f"/offers/{offer.id}/personal-code"
    after = staff.post(path, data={"required": "yes"}, follow_redirects=True).text
    incomplete = [staff.post(path, data=data) for data in ({}, {"required": "maybe"})]
    still_required = offer_queries.find_offers([offer.id])[offer.id].personal_code_required
    off = staff.post(path, data={"required": "no"}, follow_redirects=True).text

    assert (
        "can redeem the offer in that customer&#39;s name" in before
        or "can redeem the offer in that customer's name" in before
    )
    assert "Emails sent so far contain only the shared code" in before
    assert "alone is not accepted" in after
    assert "Personal codes are required now. The shared code alone is not accepted." in after
    assert ([response.status_code for response in incomplete], still_required) == ([422, 422], True)
    assert "Personal codes are no longer required. The shared code is accepted too." in off
    assert not offer_queries.find_offers([offer.id])[offer.id].personal_code_required


def test_the_public_form_accepts_an_earlier_code(
    client: FlaskClient, make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    make_customer()
    code_actions.renew_code(make_offer(**LAUNCHED).id, "WINTER26", by="ann")

    response = client.post("/redeem", data={"code": "summer 25", "email": "ada@example.com"})

    assert response.status_code == 200


def test_redemptions_are_filtered_by_an_earlier_code(
    staff: FlaskClient, api: FlaskClient, make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    make_customer()
    code_actions.renew_code(make_offer(**LAUNCHED).id, "WINTER26", by="ann")
    api.post("/api/v1/redemptions", json={"code": "SUMMER25", "customer": {"email": "ada@example.com"}})

    listed = api.get("/api/v1/redemptions?offer=SUMMER25").get_json()["redemptions"]

    assert [redemption["code"] for redemption in listed] == ["WINTER26"]
    assert "ada@example.com" in staff.get("/redemptions?code=summer25").text


# --- API ------------------------------------------------------------------------------------------


def test_a_code_is_renewed_closed_and_reopened_by_the_api(api: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer(**LAUNCHED)

    renewed = api.post("/api/v1/offers/summer25/codes", json={"code": "Winter-26"})
    by_alias = api.get("/api/v1/offers/SUMMER25")
    closed = api.post("/api/v1/offers/WINTER26/codes/SUMMER25/close")
    gone = api.get("/api/v1/offers/SUMMER25")
    reopened = api.post("/api/v1/offers/WINTER26/codes/SUMMER25/reopen")

    assert (renewed.status_code, renewed.get_json()["code"]) == (200, "Winter-26")
    assert by_alias.get_json() == renewed.get_json()
    assert renewed.get_json()["aliases"] == ["SUMMER25"]
    assert (closed.get_json()["aliases"], gone.status_code) == ([], 404)
    assert reopened.get_json()["aliases"] == ["SUMMER25"]


def test_a_repeated_renewal_changes_nothing(api: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer(**LAUNCHED)
    body = {"code": "WINTER26"}

    first, again = (api.post("/api/v1/offers/SUMMER25/codes", json=body) for _ in range(2))

    assert first.get_json() == again.get_json()
    assert first.headers["ETag"] == again.headers["ETag"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"code": "TAKEN"}, 422, "code_taken"),
        ({"code": "A"}, 422, "code_length"),
        ({"code": "Ä" * 9}, 422, "code_invalid"),
        ({"code": 25}, 422, None),
        ({"kode": "X99"}, 422, None),
    ],
)
def test_an_invalid_renewal_is_rejected(
    api: FlaskClient, make_offer: MakeOffer, body: dict[str, Any], status: int, code: str | None
) -> None:
    make_offer(**LAUNCHED)
    make_offer("TAKEN")

    response = api.post("/api/v1/offers/SUMMER25/codes", json=body)

    assert response.status_code == status
    assert code is None or response.get_json()["errors"][0]["code"] == code


def test_a_renewal_with_an_old_etag_fails_its_precondition(api: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    offer_actions.pause_offer(offer.id, by="bob")

    response = api.post("/api/v1/offers/SUMMER25/codes", json={}, headers={"If-Match": '"1"'})

    assert (response.status_code, len(codes(offer))) == (412, 1)


@pytest.mark.parametrize("call", ["codes", "codes/SUMMER25/close", "codes/SUMMER25/reopen"])
def test_changing_codes_requires_the_scope_manage(app: Flask, make_offer: MakeOffer, call: str) -> None:
    from webapp.accounts.api_key_actions import create_api_key

    make_offer(**LAUNCHED)
    key = create_api_key("till", ["read", "redeem"], by="tests")

    response = app.test_client().post(
        f"/api/v1/offers/SUMMER25/{call}", json={}, headers={"Authorization": f"Bearer {key}"}
    )

    assert response.status_code == 403


def test_launch_and_search_accept_an_earlier_code(api: FlaskClient, make_customer: Callable[..., Customer]) -> None:
    make_customer()
    api.post(
        "/api/v1/offers", json={"name": "Autumn", "code": "AUTUMN", "discount": {"type": "percent", "percent": "5"}}
    )
    api.post("/api/v1/offers/AUTUMN/launch")
    api.post("/api/v1/offers/AUTUMN/codes", json={"code": "OCTOBER"})

    again = api.post("/api/v1/offers/AUTUMN/launch")
    listed = api.get("/api/v1/offers?q=autumn").get_json()["offers"]

    assert again.status_code == 202
    assert [(found["code"], found["aliases"]) for found in listed] == [("OCTOBER", ["AUTUMN"])]


def test_the_discount_stays_frozen_after_a_renewal(make_offer: MakeOffer) -> None:
    offer = make_offer(**LAUNCHED)
    code_actions.renew_code(offer.id, "WINTER26", by="ann")

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(
            offer.id, {"discount": Discount("amount", amount=1, currency="EUR")}, version=None, by="ann"
        )
    assert error.value.errors[0].key == "frozen"
