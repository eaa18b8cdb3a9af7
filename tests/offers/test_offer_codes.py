"""The codes of an offer: renewed, closed, opened again, and never given twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.customers.models import Customer
from webapp.offers import actions as offer_actions
from webapp.offers import code_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, OfferValues

MakeOffer = Callable[..., Offer]
LAUNCHED = {"frozen_at": datetime(2026, 1, 1, tzinfo=UTC)}


def key_of(error: pytest.ExceptionInfo[InvalidInput]) -> tuple[str, str]:
    return error.value.errors[0].field, error.value.errors[0].key


def codes(offer: Offer) -> dict[str, bool]:
    """Every code with whether it works, newest first."""
    return {row.code: row.closed_at is None for row in offer_queries.list_codes_by_offer([offer.id])[offer.id]}


def test_a_renewed_code_leaves_the_old_one_working_for_the_same_offer(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)

    changed = code_actions.renew_code(row.id, "Winter-26", by="ann")

    assert (changed.code, changed.code_as_written, changed.version) == ("WINTER26", "Winter-26", 2)
    assert [found.id for found in map(offer_queries.find_offer_by_code, ("WINTER26", "SUMMER25")) if found] == [
        row.id,
        row.id,
    ]
    assert codes(row) == {"WINTER26": True, "SUMMER25": True}


def test_without_a_wish_a_code_is_made_up(offer: MakeOffer) -> None:
    changed = code_actions.renew_code(offer(**LAUNCHED).id, None, by="ann")

    assert len(changed.code) == 8
    assert set(changed.code) <= set(code_actions.GENERATED_ALPHABET)


def test_before_anybody_was_given_it_a_code_is_replaced_and_free_again(offer: MakeOffer) -> None:
    row = offer()

    code_actions.renew_code(row.id, "WINTER26", by="ann")

    assert codes(row) == {"WINTER26": True}
    assert offer("SUMMER25").code == "SUMMER25"


def test_an_edit_before_the_first_launch_frees_the_code_too(offer: MakeOffer) -> None:
    row = offer()

    offer_actions.update_offer(row.id, {"code": "WINTER26"}, version=None, by="ann")

    assert codes(row) == {"WINTER26": True}


def test_another_spelling_of_the_code_is_no_other_code(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)

    changed = code_actions.renew_code(row.id, "summer-25", by="ann")

    assert (changed.code_as_written, codes(row)) == ("summer-25", {"SUMMER25": True})


def test_asking_for_the_code_that_it_has_changes_nothing(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)

    assert code_actions.renew_code(row.id, "SUMMER25", by="ann").version == 1


@pytest.mark.parametrize("taken", ["NOW", "EARLIER", "CLOSED"])
def test_no_code_is_ever_given_to_a_second_offer(offer: MakeOffer, taken: str) -> None:
    first, second = offer("CLOSED", **LAUNCHED), offer("SECOND", **LAUNCHED)
    for code in ("EARLIER", "NOW"):
        code_actions.renew_code(first.id, code, by="ann")
    code_actions.close_code(first.id, "CLOSED", by="ann")
    values = OfferValues("Third", first.discount, first.starts_at, code=taken)

    with pytest.raises(InvalidInput) as renewed:
        code_actions.renew_code(second.id, taken, by="ann")
    db.session.rollback()
    with pytest.raises(InvalidInput) as created:
        offer_actions.create_offer(values, by="ann")

    assert key_of(renewed) == key_of(created) == ("code", "code_taken")
    assert offer_queries.find_offers([second.id])[second.id].code == "SECOND"


def test_of_several_who_renew_to_one_code_at_once_one_gets_it(app: Flask, offer: MakeOffer) -> None:
    ids = [offer(f"CODE{n}", **LAUNCHED).id for n in range(8)]
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
def test_a_new_code_is_held_to_the_same_rules(offer: MakeOffer, code: str, key: str) -> None:
    with pytest.raises(InvalidInput) as error:
        code_actions.renew_code(offer(**LAUNCHED).id, code, by="ann")
    assert key_of(error) == ("code", key)


def test_an_earlier_code_can_come_back(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)
    code_actions.renew_code(row.id, "WINTER26", by="ann")

    changed = code_actions.renew_code(row.id, "summer25", by="ann")

    assert (changed.code, changed.code_as_written) == ("SUMMER25", "summer25")
    assert codes(row) == {"WINTER26": True, "SUMMER25": True}


def test_a_closed_code_finds_nothing_and_does_not_come_back_by_a_renewal(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)
    code_actions.renew_code(row.id, "WINTER26", by="ann")
    code_actions.close_code(row.id, "summer-25", by="ann")

    with pytest.raises(InvalidInput) as error:
        code_actions.renew_code(row.id, "SUMMER25", by="ann")

    assert key_of(error) == ("code", "code_closed")
    assert offer_queries.find_offer_by_code("SUMMER25") is None
    assert [found.id for found in offer_queries.list_offers("summer-2")] == [row.id]


def test_a_closed_code_can_be_opened_again(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)
    code_actions.renew_code(row.id, "WINTER26", by="ann")
    code_actions.close_code(row.id, "SUMMER25", by="ann")

    code_actions.reopen_code(row.id, "SUMMER25", by="ann")

    assert codes(row) == {"WINTER26": True, "SUMMER25": True}


def test_closing_and_opening_twice_is_as_good_as_once(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)
    code_actions.renew_code(row.id, "WINTER26", by="ann")

    acts = (code_actions.close_code, code_actions.close_code, code_actions.reopen_code, code_actions.reopen_code)

    assert [act(row.id, "SUMMER25", by="ann").version for act in acts] == [3, 3, 4, 4]


def test_the_code_of_now_is_not_closed(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)

    with pytest.raises(DomainError) as error:
        code_actions.close_code(row.id, "SUMMER25", by="ann")
    assert (error.value.key, codes(row)) == ("conflict", {"SUMMER25": True})


@pytest.mark.parametrize("code", ["NEVER", "OTHERS", "SÜSS", ""])
def test_a_code_that_the_offer_never_had_is_not_found(offer: MakeOffer, code: str) -> None:
    offer("OTHERS")

    with pytest.raises(NotFound):
        code_actions.close_code(offer(**LAUNCHED).id, code, by="ann")


def test_a_renewal_from_an_older_version_is_a_conflict(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)
    offer_actions.pause_offer(row.id, by="bob")

    with pytest.raises(DomainError) as error:
        code_actions.renew_code(row.id, "WINTER26", by="ann", version=1)
    assert error.value.key == "conflict"


def test_the_trail_tells_who_renewed_closed_and_opened(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)
    code_actions.renew_code(row.id, "WINTER26", by="ann")
    code_actions.close_code(row.id, "SUMMER25", by="bob")
    code_actions.reopen_code(row.id, "SUMMER25", by="cem")

    found = db.session.execute(text("select actor, action, subject from audit_entry order by id")).all()

    assert found == [
        ("ann", "offer.code_renewed", "WINTER26"),
        ("bob", "offer.code_closed", "SUMMER25"),
        ("cem", "offer.code_reopened", "SUMMER25"),
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
def test_the_database_lets_an_offer_and_its_codes_never_disagree(offer: MakeOffer, statement: str) -> None:
    offer()
    offer("SECOND")

    with pytest.raises(IntegrityError), db.engine.begin() as connection:
        connection.execute(text(statement))


# --- staff ----------------------------------------------------------------------------------------


def test_the_page_shows_the_code_and_earlier_ones_with_what_can_be_done(staff: FlaskClient, offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)
    staff.post(f"/offers/{row.id}/code", data={"code": "Winter-26"})
    renewed = staff.get(f"/offers/{row.id}").text
    staff.post(f"/offers/{row.id}/codes/SUMMER25/close")
    closed = staff.get(f"/offers/{row.id}").text

    assert "/redeem?code=WINTER26" in renewed
    assert f'action="/offers/{row.id}/codes/SUMMER25/close"' in renewed
    assert "SUMMER25 stays valid until you close it." in renewed
    assert f'action="/offers/{row.id}/codes/SUMMER25/reopen"' in closed
    assert "/codes/WINTER26/" not in closed


def test_a_code_that_can_not_be_taken_is_told_at_the_field(staff: FlaskClient, offer: MakeOffer) -> None:
    row, _ = offer(**LAUNCHED), offer("TAKEN")

    answer = staff.post(f"/offers/{row.id}/code", data={"code": "tak-en"})

    assert answer.status_code == 422
    assert "This code belongs to another offer" in answer.text
    assert 'value="tak-en"' in answer.text


def test_an_empty_field_has_a_code_made_up(staff: FlaskClient, offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)

    answer = staff.post(f"/offers/{row.id}/code", data={"code": " "})

    assert answer.location == f"/offers/{row.id}"
    assert len(codes(row)) == 2


def test_the_page_says_whether_the_old_code_will_go_on_working(staff: FlaskClient, offer: MakeOffer) -> None:
    fresh, launched = offer("FRESH"), offer("LAUNCHED", **LAUNCHED)

    assert "the new code replaces it" in staff.get(f"/offers/{fresh.id}/code").text
    assert "LAUNCHED stays valid" in staff.get(f"/offers/{launched.id}/code").text


def test_closing_the_code_of_now_says_what_to_do_first(staff: FlaskClient, offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)

    answer = staff.post(f"/offers/{row.id}/codes/SUMMER25/close", follow_redirects=True)

    assert "Renew the code first" in answer.text


@pytest.mark.parametrize("path", ["code", "codes/OLD/close", "codes/OLD/reopen", "personal-code"])
def test_a_viewer_sees_the_codes_and_changes_none(
    sign_in: Callable[..., FlaskClient], offer: MakeOffer, path: str
) -> None:
    row = offer("OLD", **LAUNCHED)
    code_actions.renew_code(row.id, "NEW", by="ann")
    client = sign_in("viewer")

    page = client.get(f"/offers/{row.id}").text
    answer = client.post(f"/offers/{row.id}/{path}", data={"code": "X99"})

    assert (answer.status_code, codes(row)) == (403, {"NEW": True, "OLD": True})
    assert "OLD" in page
    assert f"/offers/{row.id}/{path}" not in page


def test_personal_codes_are_required_and_not_by_a_button(staff: FlaskClient, offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)

    before = staff.get(f"/offers/{row.id}").text
    staff.post(f"/offers/{row.id}/personal-code", data={"required": "yes"})
    after = staff.get(f"/offers/{row.id}").text
    staff.post(f"/offers/{row.id}/personal-code", data={"required": "no"})

    assert (
        "can redeem the offer in that customer&#39;s name" in before
        or "can redeem the offer in that customer's name" in before
    )
    assert "Emails sent so far carry only the shared code" in before
    assert "alone is not accepted" in after
    assert not offer_queries.find_offers([row.id])[row.id].personal_code_required


def test_the_customers_form_takes_an_earlier_code(
    client: FlaskClient, offer: MakeOffer, customer: Callable[..., Customer]
) -> None:
    customer()
    code_actions.renew_code(offer(**LAUNCHED).id, "WINTER26", by="ann")

    answer = client.post("/redeem", data={"code": "summer 25", "email": "ada@example.com"})

    assert answer.status_code == 200


def test_lists_of_redemptions_are_filtered_by_an_earlier_code(
    staff: FlaskClient, api: FlaskClient, offer: MakeOffer, customer: Callable[..., Customer]
) -> None:
    customer()
    code_actions.renew_code(offer(**LAUNCHED).id, "WINTER26", by="ann")
    api.post("/api/v1/redemptions", json={"code": "SUMMER25", "customer": {"email": "ada@example.com"}})

    listed = api.get("/api/v1/redemptions?offer=SUMMER25").get_json()["redemptions"]

    assert [done["code"] for done in listed] == ["WINTER26"]
    assert "ada@example.com" in staff.get("/redemptions?code=summer25").text


# --- JSON -----------------------------------------------------------------------------------------


def test_a_code_is_renewed_closed_and_opened_by_json(api: FlaskClient, offer: MakeOffer) -> None:
    offer(**LAUNCHED)

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


def test_a_renewal_that_is_sent_again_changes_nothing(api: FlaskClient, offer: MakeOffer) -> None:
    offer(**LAUNCHED)
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
def test_a_renewal_that_makes_no_sense_is_refused_at_its_field(
    api: FlaskClient, offer: MakeOffer, body: dict[str, Any], status: int, code: str | None
) -> None:
    offer(**LAUNCHED)
    offer("TAKEN")

    answer = api.post("/api/v1/offers/SUMMER25/codes", json=body)

    assert answer.status_code == status
    assert code is None or answer.get_json()["errors"][0]["code"] == code


def test_a_renewal_of_something_that_changed_meanwhile_fails_its_precondition(
    api: FlaskClient, offer: MakeOffer
) -> None:
    row = offer(**LAUNCHED)
    offer_actions.pause_offer(row.id, by="bob")

    answer = api.post("/api/v1/offers/SUMMER25/codes", json={}, headers={"If-Match": '"1"'})

    assert (answer.status_code, len(codes(row))) == (412, 1)


@pytest.mark.parametrize("call", ["codes", "codes/SUMMER25/close", "codes/SUMMER25/reopen"])
def test_codes_need_the_manage_scope(app: Flask, offer: MakeOffer, call: str) -> None:
    from webapp.accounts.api_key_actions import create_api_key

    offer(**LAUNCHED)
    key = create_api_key("till", ["read", "redeem"], by="tests")

    answer = app.test_client().post(
        f"/api/v1/offers/SUMMER25/{call}", json={}, headers={"Authorization": f"Bearer {key}"}
    )

    assert answer.status_code == 403


def test_a_launch_and_the_list_take_an_earlier_code(
    api: FlaskClient, offer: MakeOffer, customer: Callable[..., Customer]
) -> None:
    customer()
    api.post(
        "/api/v1/offers", json={"name": "Autumn", "code": "AUTUMN", "discount": {"type": "percent", "percent": "5"}}
    )
    api.post("/api/v1/offers/AUTUMN/launch")
    api.post("/api/v1/offers/AUTUMN/codes", json={"code": "OCTOBER"})

    again = api.post("/api/v1/offers/AUTUMN/launch")
    listed = api.get("/api/v1/offers?q=autumn").get_json()["offers"]

    assert again.status_code == 202
    assert [(found["code"], found["aliases"]) for found in listed] == [("OCTOBER", ["AUTUMN"])]


def test_a_discount_is_worth_the_same_under_both_codes(offer: MakeOffer) -> None:
    row = offer(**LAUNCHED)
    code_actions.renew_code(row.id, "WINTER26", by="ann")

    with pytest.raises(InvalidInput) as error:
        offer_actions.update_offer(
            row.id, {"discount": Discount("amount", amount=1, currency="EUR")}, version=None, by="ann"
        )
    assert error.value.errors[0].key == "frozen"
