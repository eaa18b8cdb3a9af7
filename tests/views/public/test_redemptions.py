from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import segno
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.rejected_writes import rejected_writes
from tests.support.sql_statements import recorded_statements
from webapp.core.extensions import db
from webapp.customers.models import Audience, Customer
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, personal_codes, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import RedemptionRequest
from webapp.shop import actions as shop_actions
from webapp.shop import queries as shop_queries

PAST, FUTURE = datetime(2020, 5, 1, tzinfo=UTC), datetime(2099, 5, 1, tzinfo=UTC)


def post(client: FlaskClient, code: str = "SUMMER25", email: str = "ada@example.com", **headers: str) -> Any:
    return client.post("/redeem", data={"code": code, "email": email}, headers=headers)


def count_redemptions() -> int:
    return int(db.session.execute(text("select count(*) from redemption")).scalar_one())


def personal_token(offer: Offer, customer: Customer) -> str:
    return personal_links.build_personal_url(offer.id, customer.id).rpartition("/")[2]


def test_the_form_is_filled_with_the_code_of_the_url(client: FlaskClient) -> None:
    assert 'value="SUMMER25"' in client.get("/redeem?code=SUMMER25").text


@pytest.mark.parametrize("code", ["SUMMER25", " summer-25", "Summer 25", "ｓｕｍｍｅｒ２５"])
def test_code_and_email_are_accepted_in_any_spelling(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, code: str
) -> None:
    make_offer(), make_customer()

    response = post(client, code, " ADA@Example.com ")

    assert response.status_code == 200
    assert "25%" in response.text
    assert redemption_queries.list_latest_redemptions(None, 1)[0].public_id in response.text


def test_the_response_sets_no_cookie_and_is_not_cached(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()

    response = post(client)

    assert "Set-Cookie" not in response.headers
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "same-origin"


def test_the_receipt_shows_the_time_in_the_offers_time_zone(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(time_zone="Pacific/Kiritimati"), make_customer()
    post(client)
    db.session.execute(text("update redemption set redeemed_at = '2026-05-31T12:00:00Z'"))
    db.session.commit()

    assert "1 June 2026, 02:00 +14" in client.get(f"/r/{personal_token(offer, ada)}").text


def test_the_receipt_is_in_the_customers_locale(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer("Summer-25", time_zone="Asia/Tokyo"), make_customer(locale="de")

    responses = [post(client), client.get(f"/r/{personal_token(offer, ada)}")]

    # German puts a no-break space before the percent sign.
    assert ["25\N{NO-BREAK SPACE}%" in response.text for response in responses] == [True, True]
    first, again = (response.text.partition('<div class="qr">')[2].partition("</article>")[0] for response in responses)
    assert " JST" in first
    assert first == again


def test_customers_do_not_read_about_the_disk(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(frozen_at=text("now()")), make_customer()

    with rejected_writes("redemption", "disk_full"):
        response = post(client)

    assert response.status_code == 503
    assert "for some time. This attempt redeemed nothing. Please try again later." in response.text
    assert "disk" not in response.text


def test_redeeming_again_is_refused_without_showing_the_receipt(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    post(client)
    reference = redemption_queries.list_latest_redemptions(None, 1)[0].public_id

    response = post(client)

    assert response.status_code == 409
    assert "already been redeemed" in response.text
    assert reference not in response.text
    assert count_redemptions() == 1


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
def test_a_refusal_shows_its_reason(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, values: dict[str, Any], sentence: str
) -> None:
    make_offer(**values), make_customer()

    response = post(client)

    assert response.status_code == 409
    assert sentence in response.text


@pytest.mark.parametrize(
    ("values", "days"),
    [
        ({"starts_at": FUTURE, "ends_at": None}, ("1. Mai 2099", "1 mai 2099")),
        ({"starts_at": PAST, "ends_at": datetime(2020, 6, 1, tzinfo=UTC)}, ("31. Mai 2020", "31 mai 2020")),
    ],
    ids=["not started", "ended"],
)
def test_days_are_in_the_locale_of_the_shop_or_of_the_owner_of_the_link(
    client: FlaskClient,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    values: dict[str, Any],
    days: tuple[str, str],
) -> None:
    """The form must not show by its locale whether an email address is known."""
    shop_actions.save_shop(replace(shop_queries.get_shop(), locale="de"), by="tests")
    offer, ada = make_offer(**values), make_customer(locale="fr")
    path = f"/r/{personal_token(offer, ada)}"

    pages = [response.text for response in (post(client), client.get(path), client.post(path))]

    assert [[day in page for day in days] for page in pages] == [[True, False], [False, True], [False, True]]


def test_an_unknown_code_is_not_found(client: FlaskClient) -> None:
    response = post(client, "WINTER")

    assert response.status_code == 404
    assert "don&#39;t recognise this code" in response.text


@pytest.mark.parametrize(
    ("code", "email", "field"),
    [
        ("", "ada@example.com", "code"),
        ("SÜSS!", "ada@example.com", "code"),
        ("SUMMER25", "ada@", "email"),
        ("A" * 900, "ada@example.com", "code"),
    ],
)
def test_invalid_input_is_reported_at_its_field(client: FlaskClient, code: str, email: str, field: str) -> None:
    response = post(client, code, email)

    assert response.status_code == 422
    assert f'id="{field}-error"' in response.text


def test_both_missing_fields_are_reported_with_what_to_enter(client: FlaskClient) -> None:
    page = post(client, " ", "").text

    assert "Enter the code from our email." in page
    assert "Enter the email address that received our email." in page


@pytest.mark.parametrize(("code", "email", "status"), [("<b>x</b>", "ada@", 422), ("WINTER", "bob@example.com", 404)])
def test_typed_values_are_kept_in_the_form(client: FlaskClient, code: str, email: str, status: int) -> None:
    response = post(client, code, email)

    escaped = code.replace("<", "&lt;").replace(">", "&gt;")
    assert response.status_code == status
    assert f'value="{escaped}"' in response.text
    assert f'value="{email}"' in response.text


def test_the_response_contains_the_element_for_htmx(client: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer()

    response = post(client, **{"HX-Request": "true"})

    assert response.status_code == 409
    assert '<main id="content">' in response.text


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
def test_refusals_do_not_reveal_who_is_a_customer(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, values: dict[str, Any]
) -> None:
    audience = Audience(name="Empty")
    db.session.add(audience)
    db.session.flush()
    offer = make_offer(**values)
    make_offer("CLOSED", **{**values, "audience_id": audience.id})
    make_customer(), make_customer("bob@example.com")
    # This caches the signing key of personal codes, as in every process that has used it once.
    other_code = personal_codes.derive_personal_code("SUMMER25", offer.id, offer.id + 77)
    requests = {
        "unknown e-mail": ("SUMMER25", "nobody@example.com"),
        "unknown e-mail, personal code": (other_code, "nobody@example.com"),
        "not in the audience": ("CLOSED", "ada@example.com"),
        "unknown e-mail, audience": ("CLOSED", "nobody@example.com"),
        "wrong personal code": (other_code, "bob@example.com"),
    }
    post(client, "WINTER")
    responses = {}
    for name, (code, email) in requests.items():
        # Clear the rate limits, which count repeated requests, not known customers.
        db.session.execute(text("delete from rate_hit"))
        db.session.commit()
        with recorded_statements() as executed:
            response = post(client, code, email)
        page = response.text.replace(code, "CODE").replace(email, "EMAIL")
        responses[name] = (response.status_code, page, [(statement, len(values)) for statement, values in executed])

    first = responses["unknown e-mail"]
    assert first[0] == 409
    assert len(first[2]) > 0
    for name, result in responses.items():
        assert result[:2] == first[:2], name
        # Only shared codes count towards the limit of customers. Visitors know which kind they have entered.
        unknown = "unknown e-mail, personal code" if "personal code" in name else "unknown e-mail"
        assert result[2] == responses[unknown][2], name


def test_opening_a_personal_link_redeems_nothing(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(), make_customer()

    response = client.get(f"/r/{personal_token(offer, ada)}")

    assert response.status_code == 200
    assert "a…a@example.com" in response.text
    assert "ada@example.com" not in response.text
    assert response.text.count("<button") == 1
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "same-origin"
    assert count_redemptions() == 0


def test_a_personal_link_redeems_once_and_then_shows_the_receipt(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer()
    token = personal_token(offer, ada)

    first = client.post(f"/r/{token}")
    reference = redemption_queries.list_latest_redemptions(None, 1)[0].public_id

    for response in (first, client.post(f"/r/{token}"), client.get(f"/r/{token}")):
        assert response.status_code == 200
        assert reference in response.text
        assert segno.make(reference, error="m").svg_inline(scale=4, border=2, omitsize=True) in response.text
        assert ("You have already redeemed this offer" in response.text) is (response is not first)
    assert count_redemptions() == 1


def test_a_personal_link_shows_the_receipt_of_a_form_redemption(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(), make_customer()
    redemption = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))

    assert redemption.public_id in client.post(f"/r/{personal_token(offer, ada)}").text


@pytest.mark.parametrize("method", ["get", "post"])
@pytest.mark.parametrize("token", ["nonsense", "WzEsMl0.abc", "%00"])
def test_a_broken_link_shows_an_explanation(client: FlaskClient, method: str, token: str) -> None:
    response = getattr(client, method)(f"/r/{token}")

    assert response.status_code == 404
    assert "This link does not work" in response.text


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_link_of_an_ended_offer_has_no_button(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, method: str
) -> None:
    offer, ada = make_offer(starts_at=PAST, ends_at=datetime(2020, 6, 1, tzinfo=UTC)), make_customer()

    response = getattr(client, method)(f"/r/{personal_token(offer, ada)}")

    assert response.status_code == 409
    assert "ended on" in response.text
    assert "<button" not in response.text


@pytest.mark.parametrize("method", ["get", "post"])
def test_the_link_of_a_preview_explains_itself_and_redeems_nothing(
    client: FlaskClient, make_offer: MakeOffer, method: str
) -> None:
    link = personal_links.build_personal_url(make_offer().id, personal_links.PREVIEW_CUSTOMER_ID)

    response = getattr(client, method)(link.removeprefix("http://localhost"))

    assert response.status_code == 200
    assert "Preview of a personal link" in response.text
    assert count_redemptions() == 0


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_a_same_origin_form_is_accepted(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, headers: dict[str, str]
) -> None:
    make_offer(), make_customer()

    assert post(client, **headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://localhost", "Sec-Fetch-Site": "cross-site"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_a_cross_site_request_is_refused(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, headers: dict[str, str]
) -> None:
    make_offer(), make_customer()

    assert post(client, **headers).status_code == 403
    assert count_redemptions() == 0


@pytest.mark.parametrize(
    ("origin", "status"), [("https://shop.example", 200), ("http://localhost", 200), ("http://shop.example", 403)]
)
def test_the_public_url_and_the_host_of_the_request_are_the_same_origin(
    client: FlaskClient,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    with_settings: Any,
    origin: str,
    status: int,
) -> None:
    """A proxy may pass on another host than the one that customers see."""
    with_settings(public_url="https://shop.example/offers")
    make_offer(), make_customer()

    assert post(client, Origin=origin).status_code == status


def test_repeated_attempts_for_one_email_are_throttled(client: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer()

    responses = [post(client) for _ in range(21)]

    assert [response.status_code for response in responses] == [409] * 20 + [429]
    assert int(responses[-1].headers["Retry-After"]) > 0


def test_one_ip_address_has_sixty_attempts_per_minute(client: FlaskClient) -> None:
    status_codes = [post(client, "WINTER", "c@example.com").status_code]
    # So that the minute does not end before the last attempt, however slow the machine is.
    db.session.execute(text("update rate_hit set expires_at = expires_at + interval '1 hour'"))
    db.session.commit()
    status_codes += [post(client, "WINTER", f"c{n}@example.com").status_code for n in range(60)]

    assert status_codes == [404] * 60 + [429]


def test_one_ip_address_has_sixty_attempts_per_minute_with_links(client: FlaskClient, make_offer: MakeOffer) -> None:
    """Each link has a limit of its own, and links that do not work share one for each client address."""
    offer_id = make_offer().id
    links = [personal_links.build_personal_url(offer_id, n).removeprefix("http://localhost") for n in range(1, 61)]

    def send(path: str, address: str) -> int:
        return client.post(path, environ_base={"REMOTE_ADDR": address}).status_code

    statuses = [send(links[0], "192.0.2.1")]
    # So that the minute does not end before the last attempt, however slow the machine is.
    db.session.execute(text("update rate_hit set expires_at = expires_at + interval '1 hour'"))
    db.session.commit()
    statuses += [send(link, "192.0.2.1") for link in (*links[1:], links[0])]
    broken = [send(f"/r/broken{n}", "192.0.2.2") for n in range(21)]

    assert statuses == [404] * 60 + [429]
    assert broken == [404] * 20 + [429]
    assert send("/r/broken", "192.0.2.3") == 404


def test_a_large_throttled_form_is_not_shown_again(client: FlaskClient) -> None:
    for _ in range(20):
        post(client, "WINTER")

    responses = [
        client.post("/redeem", data={"code": "WINTER", "email": "ada@example.com", "more": "x" * length})
        for length in (1000, 20_000)
    ]

    assert [response.status_code for response in responses] == [429, 429]
    assert ['value="WINTER"' in response.text for response in responses] == [True, False]
