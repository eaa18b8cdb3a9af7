from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support.sql_statements import recorded_statements
from webapp.core.extensions import db
from webapp.customers.models import Audience, Customer
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, personal_codes, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import RedemptionRequest

MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]
PAST, FUTURE = datetime(2020, 5, 1, tzinfo=UTC), datetime(2099, 5, 1, tzinfo=UTC)


def post(client: FlaskClient, code: str = "SUMMER25", email: str = "ada@example.com", **headers: str) -> Any:
    return client.post("/redeem", data={"code": code, "email": email}, headers=headers)


def rows() -> int:
    return int(db.session.execute(text("select count(*) from redemption")).scalar_one())


def token_of(offer: Offer, customer: Customer) -> str:
    return personal_links.build_personal_url(offer.id, customer.id).rpartition("/")[2]


def test_the_form_takes_the_code_from_the_address(client: FlaskClient) -> None:
    assert 'value="SUMMER25"' in client.get("/redeem?code=SUMMER25").text


@pytest.mark.parametrize("code", ["SUMMER25", " summer-25", "Summer 25", "ｓｕｍｍｅｒ２５"])
def test_a_customer_gets_the_discount_however_sloppily_it_was_typed(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, code: str
) -> None:
    make_offer(), make_customer()

    answer = post(client, code, " ADA@Example.com ")

    assert answer.status_code == 200
    assert "25%" in answer.text
    assert redemption_queries.list_latest_redemptions(None, 1)[0].public_id in answer.text


def test_the_answer_sets_no_cookie_and_is_kept_by_nobody(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()

    answer = post(client)

    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "same-origin"


def test_the_day_on_the_receipt_is_that_of_the_offers_zone(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(time_zone="Pacific/Kiritimati"), make_customer()
    post(client)
    db.session.execute(text("update redemption set redeemed_at = '2026-05-31T12:00:00Z'"))
    db.session.commit()

    assert "1 June 2026, 02:00 +14" in client.get(f"/r/{token_of(offer, ada)}").text


def test_typing_it_again_says_so_and_shows_no_receipt(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    post(client)
    reference = redemption_queries.list_latest_redemptions(None, 1)[0].public_id

    answer = post(client)

    assert answer.status_code == 409
    assert "already redeemed" in answer.text
    assert reference not in answer.text
    assert rows() == 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"starts_at": FUTURE, "ends_at": None}, "This offer starts on 1 May 2099"),
        ({"starts_at": FUTURE, "ends_at": None, "time_zone": "Europe/Berlin"}, "starts on 1 May 2099 at 02:00"),
        ({"starts_at": PAST, "ends_at": datetime(2020, 6, 1, tzinfo=UTC)}, "This offer ended on 31 May 2020"),
        ({"paused_at": PAST}, "paused at the moment"),
        ({"max_redemptions": 1, "redeemed": 1}, "reached its limit"),
    ],
)
def test_a_refusal_is_one_plain_sentence(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, values: dict[str, Any], sentence: str
) -> None:
    make_offer(**values), make_customer()

    answer = post(client)

    assert answer.status_code == 409
    assert sentence in answer.text


def test_an_unknown_code_is_not_found(client: FlaskClient) -> None:
    answer = post(client, "WINTER")

    assert answer.status_code == 404
    assert "don't know this code" in answer.text.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("code", "email", "field"),
    [
        ("", "ada@example.com", "code"),
        ("SÜSS!", "ada@example.com", "code"),
        ("SUMMER25", "ada@", "email"),
        ("A" * 900, "ada@example.com", "code"),
    ],
)
def test_what_can_not_be_read_is_told_at_its_field(client: FlaskClient, code: str, email: str, field: str) -> None:
    answer = post(client, code, email)

    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.text


@pytest.mark.parametrize(("code", "email", "status"), [("<b>x</b>", "ada@", 422), ("WINTER", "bob@example.com", 404)])
def test_everything_typed_stays_in_the_form(client: FlaskClient, code: str, email: str, status: int) -> None:
    answer = post(client, code, email)

    escaped = code.replace("<", "&lt;").replace(">", "&gt;")
    assert answer.status_code == status
    assert f'value="{escaped}"' in answer.text
    assert f'value="{email}"' in answer.text


def test_an_answer_has_the_piece_that_htmx_takes(client: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer()

    answer = post(client, **{"HX-Request": "true"})

    assert answer.status_code == 409
    assert '<main id="content">' in answer.text


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"personal_code_required": True},
        {"paused_at": PAST},
        {"max_redemptions": 1, "redeemed": 1},
        {"starts_at": PAST, "ends_at": datetime(2020, 6, 1, tzinfo=UTC)},
    ],
)
def test_refusals_never_tell_who_is_a_customer(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, values: dict[str, Any]
) -> None:
    audience = Audience(name="Nobody")
    db.session.add(audience)
    db.session.flush()
    offer = make_offer(**values)
    make_offer("CLOSED", **{**values, "audience_id": audience.id})
    make_customer(), make_customer("bob@example.com")
    # This reads the key of personal codes, as every process has that ever looked at one.
    others = personal_codes.derive_personal_code("SUMMER25", offer.id, offer.id + 77)
    asked = {
        "unknown e-mail": ("SUMMER25", "nobody@example.com"),
        "unknown e-mail, personal code": (others, "nobody@example.com"),
        "not in the audience": ("CLOSED", "ada@example.com"),
        "unknown e-mail, audience": ("CLOSED", "nobody@example.com"),
        "wrong personal code": (others, "bob@example.com"),
    }
    post(client, "WINTER")
    answers = {}
    for name, (code, email) in asked.items():
        # Each comes for the first time: the limits count who comes again, not who is known.
        db.session.execute(text("delete from rate_hit"))
        db.session.commit()
        with recorded_statements() as run:
            answer = post(client, code, email)
        page = answer.text.replace(code, "CODE").replace(email, "EMAIL")
        answers[name] = (answer.status_code, page, [(statement, len(values)) for statement, values in run])

    first = answers["unknown e-mail"]
    assert first[0] == 409
    assert len(first[2]) > 0
    for name, found in answers.items():
        assert found == first, name


def test_a_personal_link_is_filled_in_and_looking_changes_nothing(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(), make_customer()

    answer = client.get(f"/r/{token_of(offer, ada)}")

    assert answer.status_code == 200
    assert "a…a@example.com" in answer.text
    assert "ada@example.com" not in answer.text
    assert answer.text.count("<button") == 1
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert rows() == 0


def test_one_button_redeems_and_the_link_shows_the_receipt_again(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer()
    token = token_of(offer, ada)

    first = client.post(f"/r/{token}")
    reference = redemption_queries.list_latest_redemptions(None, 1)[0].public_id

    for answer in (first, client.post(f"/r/{token}"), client.get(f"/r/{token}")):
        assert answer.status_code == 200
        assert reference in answer.text
    assert rows() == 1


def test_what_was_typed_first_is_shown_by_the_link_too(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(), make_customer()
    done = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))

    assert done.public_id in client.post(f"/r/{token_of(offer, ada)}").text


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("token", ["nonsense", "WzEsMl0.abc", "%00"])
def test_a_broken_link_is_met_kindly(client: FlaskClient, method: str, token: str) -> None:
    answer = getattr(client, method)(f"/r/{token}")

    assert answer.status_code == 404
    assert "This link does not work" in answer.text


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_link_of_an_ended_offer_says_so_and_has_no_button(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, method: str
) -> None:
    offer, ada = make_offer(starts_at=PAST, ends_at=datetime(2020, 6, 1, tzinfo=UTC)), make_customer()

    answer = getattr(client, method)(f"/r/{token_of(offer, ada)}")

    assert answer.status_code == 409
    assert "ended on" in answer.text
    assert "<button" not in answer.text


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_form_of_another_site_is_refused(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, headers: dict[str, str]
) -> None:
    make_offer(), make_customer()

    assert post(client, **headers).status_code == 403
    assert rows() == 0


def test_guessing_one_persons_way_in_is_slowed_down(client: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer()

    answers = [post(client) for _ in range(21)]

    assert [answer.status_code for answer in answers] == [409] * 20 + [429]
    assert int(answers[-1].headers["Retry-After"]) > 0


def test_one_address_may_try_sixty_times_a_minute(client: FlaskClient) -> None:
    answers = [post(client, "WINTER", f"c{n}@example.com").status_code for n in range(61)]

    assert answers == [404] * 60 + [429]
