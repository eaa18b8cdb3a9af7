from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask.testing import FlaskClient

from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.customers.models import Audience, Customer
from webapp.offers import actions as offer_actions
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer
from webapp.redemptions import group_commit
from webapp.redemptions.rules import RedemptionRequest

MakeOffer = Callable[..., Offer]
SUMMER = {
    "name": "Summer",
    "code": "Summer-25",
    "discount_type": "percent",
    "discount_percent": "25",
    "discount_currency": "EUR",
    "time_zone": "Europe/Berlin",
    "starts_at": "2026-06-01",
    "ends_at": "2026-08-31",
    "max_redemptions": "",
    "audience": "",
}


def made() -> Offer:
    return offer_queries.list_offers()[0]


def test_an_empty_list_says_what_to_do_first(staff: FlaskClient) -> None:
    assert "Create the first offer" in staff.get("/offers").text


def test_a_viewer_may_look_and_not_set_up(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("viewer")

    assert client.get("/offers").status_code == 200
    assert client.post("/offers/new", data=SUMMER).status_code == 403
    assert "New offer" not in client.get("/offers").text


def test_setting_up_an_offer_leads_to_it(staff: FlaskClient) -> None:
    answer = staff.post("/offers/new", data=SUMMER)

    offer = made()
    assert answer.status_code == 302
    assert answer.location == f"/offers/{offer.id}"
    assert (offer.code, offer.code_as_written, offer.percent) == ("SUMMER25", "Summer-25", Decimal(25))


def test_days_are_those_of_the_offers_zone_and_the_last_one_is_whole(staff: FlaskClient) -> None:
    staff.post("/offers/new", data=SUMMER)

    offer = made()
    assert offer.starts_at == datetime(2026, 5, 31, 22, tzinfo=UTC)
    assert offer.ends_at == datetime(2026, 8, 31, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("typed", "discount"),
    [
        ({"discount_percent": "12,5 %"}, Discount("percent", percent=Decimal("12.5"))),
        (
            {"discount_type": "amount", "discount_amount": "5,00", "discount_currency": "eur"},
            Discount("amount", amount=500, currency="EUR"),
        ),
        (
            {"discount_type": "amount", "discount_amount": "500", "discount_currency": "JPY"},
            Discount("amount", amount=500, currency="JPY"),
        ),
    ],
)
def test_numbers_are_read_as_people_write_them(staff: FlaskClient, typed: dict[str, str], discount: Discount) -> None:
    staff.post("/offers/new", data=SUMMER | typed)

    assert made().discount == discount


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"name": ""}, "name"),
        ({"code": "SÜSS"}, "code"),
        ({"discount_percent": "500"}, "discount_percent"),
        ({"discount_percent": "a quarter"}, "discount_percent"),
        ({"discount_percent": ""}, "discount_percent"),
        ({"discount_type": "amount", "discount_amount": "5.005"}, "discount_amount"),
        ({"discount_type": "amount", "discount_amount": "-5"}, "discount_amount"),
        ({"discount_type": "amount", "discount_amount": "5", "discount_currency": "EURO"}, "discount_currency"),
        ({"starts_at": ""}, "starts_at"),
        ({"starts_at": "31.12.2026"}, "starts_at"),
        ({"ends_at": "2026-05-01"}, "ends_at"),
        ({"ends_at": "", "ends_at_time": "12:00"}, "ends_at"),
        ({"ends_at_time": "noon"}, "ends_at_time"),
        ({"starts_at": "2026-03-29", "starts_at_time": "02:30"}, "starts_at"),
        ({"max_redemptions": "-5"}, "max_redemptions"),
        ({"max_redemptions": "many"}, "max_redemptions"),
        ({"time_zone": "Mars/Base"}, "time_zone"),
        ({"audience": "12345"}, "audience"),
    ],
)
def test_an_error_stands_at_its_field_and_what_was_typed_stays(
    staff: FlaskClient, typed: dict[str, str], field: str
) -> None:
    answer = staff.post("/offers/new", data=SUMMER | {"name": "<b>My offer</b>"} | typed)

    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.text
    assert 'value="Summer-25"' in answer.text or "code" in typed
    assert "&lt;b&gt;My offer&lt;/b&gt;" in answer.text or "name" in typed
    assert not offer_queries.has_offers()


def test_a_code_that_exists_is_told_at_its_field(staff: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer("SUMMER25")

    answer = staff.post("/offers/new", data=SUMMER)

    assert answer.status_code == 422
    assert "This code belongs to another offer" in answer.text


def test_a_time_that_comes_twice_is_asked_about_and_then_taken(staff: FlaskClient) -> None:
    twice = SUMMER | {"ends_at": "2026-10-25", "ends_at_time": "02:30"}

    asked = staff.post("/offers/new", data=twice)
    staff.post("/offers/new", data=twice | {"ends_at_fold": "1"})

    assert asked.status_code == 422
    assert 'name="ends_at_fold"' in asked.text
    assert made().ends_at == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


def test_an_offer_may_be_for_one_audience(staff: FlaskClient) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.commit()

    staff.post("/offers/new", data=SUMMER | {"audience": str(audience.id), "personal_code_required": "y"})

    assert (made().audience_id, made().personal_code_required) == (audience.id, True)


def test_without_a_code_one_is_given(staff: FlaskClient) -> None:
    staff.post("/offers/new", data=SUMMER | {"code": ""})

    assert len(made().code) == 8


@pytest.mark.parametrize(
    "window",
    [
        {},
        {"starts_at_time": "09:30", "ends_at_time": "18:00:30"},
        {"ends_at": "2026-10-25", "ends_at_time": "02:30", "ends_at_fold": "0"},
        {"ends_at": "", "time_zone": "Asia/Kolkata", "max_redemptions": "1000"},
        {"discount_type": "amount", "discount_amount": "5.00", "discount_percent": ""},
    ],
)
def test_saving_the_form_as_it_is_shown_changes_nothing(staff: FlaskClient, window: dict[str, str]) -> None:
    staff.post("/offers/new", data=SUMMER | window)
    before = made().values()

    answer = staff.post(f"/offers/{made().id}/edit", data=_shown(staff.get(f"/offers/{made().id}/edit").text))

    db.session.expire_all()
    assert answer.status_code == 302
    assert (made().values(), made().version) == (before, 1)


def _shown(page: str) -> dict[str, str]:
    """What a browser would send of the form of a page."""
    from html.parser import HTMLParser

    sent: dict[str, str] = {}

    class Reader(HTMLParser):
        select = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            name, value = given.get("name") or "", given.get("value") or ""
            if tag == "select":
                self.select = name
            elif tag == "option" and "selected" in given:
                sent[self.select] = value
            elif (tag == "input" and given.get("type") not in ("radio", "checkbox")) or "checked" in given:
                sent[name] = value

    Reader().feed(page)
    return sent


def test_a_start_below_the_second_survives_a_save(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(starts_at=datetime(2026, 6, 1, 10, 0, 0, 123456, tzinfo=UTC), ends_at=None)

    staff.post(f"/offers/{offer.id}/edit", data=_shown(staff.get(f"/offers/{offer.id}/edit").text) | {"name": "New"})

    db.session.refresh(offer)
    assert (offer.name, offer.starts_at.microsecond) == ("New", 123456)


def test_the_second_of_two_tabs_is_told_and_keeps_what_was_typed(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer()
    tab = _shown(staff.get(f"/offers/{offer.id}/edit").text)
    staff.post(f"/offers/{offer.id}/edit", data=tab | {"name": "From the first tab"})

    told = staff.post(f"/offers/{offer.id}/edit", data=tab | {"name": "From the second tab"})
    db.session.refresh(offer)
    stands = offer.name
    staff.post(f"/offers/{offer.id}/edit", data=_shown(told.text))
    db.session.refresh(offer)

    assert told.status_code == 409
    assert "Another user has changed this offer" in told.text
    assert "From the second tab" in told.text
    assert (stands, offer.name) == ("From the first tab", "From the second tab")


def test_a_frozen_offer_shows_what_stays_and_lets_the_rest_change(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer(frozen_at=datetime(2026, 1, 1, tzinfo=UTC))

    page = staff.get(f"/offers/{offer.id}/edit").text
    answer = staff.post(f"/offers/{offer.id}/edit", data=_shown(page) | {"name": "Longer summer"})

    db.session.refresh(offer)
    assert answer.status_code == 302
    assert 'name="discount_percent"' not in page
    assert 'name="code"' not in page
    assert 'name="max_redemptions"' not in page
    assert (offer.name, offer.code, offer.percent) == ("Longer summer", "SUMMER25", Decimal(25))


def test_an_offer_frozen_meanwhile_refuses_a_new_discount(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer()
    tab = _shown(staff.get(f"/offers/{offer.id}/edit").text)
    offer_actions.freeze_offer(offer.id)
    db.session.commit()

    answer = staff.post(f"/offers/{offer.id}/edit", data=tab | {"discount_percent": "30"})

    assert answer.status_code == 422
    assert "can&#39;t be changed after the launch" in answer.text
    assert 'value="30"' in answer.text


def test_pausing_and_resuming(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer = make_offer()

    staff.post(f"/offers/{offer.id}/pause")
    paused = staff.get(f"/offers/{offer.id}").text
    staff.post(f"/offers/{offer.id}/resume")

    db.session.refresh(offer)
    assert "Paused" in paused
    assert offer.paused_at is None


def test_the_page_of_an_offer_shows_code_link_and_last_redemptions(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: Callable[..., Customer]
) -> None:
    offer = make_offer(max_redemptions=10)
    make_customer()
    group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))

    page = staff.get(f"/offers/{offer.id}").text

    assert "http://localhost/redeem?code=SUMMER25" in page
    assert "<svg" in page
    assert "style=" not in page
    assert "ada@example.com" in page
    assert 'value="1"' in page[page.index("<progress") :]
    assert f"/offers/{offer.id}/mail" in page


def test_the_live_piece_stops_asking_when_the_offer_is_over(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer, over = make_offer(), make_offer("OVER", ends_at=datetime.now(UTC) - timedelta(hours=1))

    assert "hx-trigger" in staff.get(f"/offers/{offer.id}/live").text
    assert "hx-trigger" not in staff.get(f"/offers/{over.id}/live").text


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("q=wint", ["Winter"]),
        ("q=SUMMER-2", ["Summer"]),
        ("state=paused", ["Winter"]),
        ("q=%00&before=x&after=-1", ["Winter", "Summer"]),
        ("state=nonsense&before=99999999999999999999", ["Winter", "Summer"]),
    ],
)
def test_the_list_is_searched_and_filtered(
    staff: FlaskClient, make_offer: MakeOffer, query: str, names: list[str]
) -> None:
    make_offer()
    make_offer("COLD", name="Winter", paused_at=datetime(2026, 1, 1, tzinfo=UTC))

    page = staff.get(f"/offers?{query}").text

    assert [name for name in ("Winter", "Summer") if f">{name}</a>" in page] == names


def test_the_list_has_pages_in_both_directions(staff: FlaskClient, make_offer: MakeOffer) -> None:
    rows = [make_offer(f"CODE{n:02}", name=f"Offer {n:02}") for n in range(60)]

    second = staff.get(f"/offers?before={rows[35].id}").text
    last = staff.get(f"/offers?before={rows[10].id}").text
    first = staff.get("/offers").text

    assert [">Offer 34<" in second, ">Offer 10<" in second, ">Offer 09<" in second] == [True, True, False]
    assert f"after={rows[34].id}" in second
    assert f"before={rows[10].id}" in second
    assert 'rel="next"' not in last
    assert 'rel="prev"' not in first


@pytest.mark.parametrize("path", ["/offers/99", "/offers/99/edit", "/offers/99/live", "/offers/99999999999999999999"])
def test_an_offer_that_is_not_there_is_not_found(staff: FlaskClient, path: str) -> None:
    assert staff.get(path).status_code == 404


def test_every_write_wants_a_token(csrf_client: Any, client: FlaskClient, make_staff_user: Callable[..., Any]) -> None:
    user = make_staff_user("manager")
    with csrf_client.session_transaction() as session:
        session["_user_id"] = user.get_id()
        session["_fresh"] = True
    client.application.config["WTF_CSRF_ENABLED"] = True

    assert csrf_client.post("/offers/new", data=SUMMER).status_code == 400
    assert not offer_queries.has_offers()
