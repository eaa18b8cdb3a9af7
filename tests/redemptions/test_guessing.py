"""Guessing of codes: throttled, reported to staff, and without information leaks."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import live_server
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.sql_statements import recorded_statements
from webapp.core import signing_keys
from webapp.core.extensions import db
from webapp.customers.models import Audience, Customer
from webapp.offers.models import Offer, OfferCode
from webapp.redemptions import guessing, personal_codes, personal_links
from webapp.redemptions.guessing import ALERT_MIN_ATTEMPTS, ALERT_REDEMPTIONS_PER_ATTEMPT, BLOCK_MIN_ATTEMPTS
from webapp.redemptions.models import FailedCodeAttempt

PAST = datetime(2020, 5, 1, tzinfo=UTC)
EMAIL_LIMIT = "100/10/minute"
OVER_AN_HOUR = timedelta(minutes=61)


def post(client: FlaskClient, code: str = "SUMMER25", email: str = "ada@example.com", host: str = "192.0.2.1") -> Any:
    return client.post("/redeem", data={"code": code, "email": email}, environ_base={"REMOTE_ADDR": host})


def add_failed_attempts(offer: Offer, n: int, ago: timedelta = timedelta()) -> None:
    """Add `n` failed attempts in one minute."""
    at = (datetime.now(UTC) - ago).replace(second=0, microsecond=0)
    db.session.add(FailedCodeAttempt(offer_id=offer.id, slot=at.minute, minute=at, n=n))
    db.session.commit()


def add_redemptions(offer: Offer, n: int, ago: timedelta = timedelta()) -> None:
    db.session.execute(
        text(
            "insert into redemption (customer_id, offer_id, redeemed_at, channel)"
            " select n, :offer, :at, 'form' from generate_series(1, :n) n"
        ),
        {"offer": offer.id, "at": datetime.now(UTC) - ago, "n": n},
    )
    db.session.commit()


def erase(customer: Customer) -> Customer:
    db.session.execute(
        text(
            "update customer set erased_at = now(), email = 'erased ' || id, email_as_given = 'erased customer',"
            " name = '' where id = :id"
        ),
        {"id": customer.id},
    )
    db.session.commit()
    return customer


def leave_one_attempt(limit: str) -> None:
    """Set the counters of a limit so that one attempt is left."""
    n = int(limit.split("/")[0]) - 1
    db.session.execute(text("update rate_hit set n = :n where key like :like"), {"n": n, "like": f"%/{limit}"})
    db.session.commit()


def count_failed_attempts() -> int:
    return int(db.session.execute(text("select coalesce(sum(n), 0) from code_miss")).scalar_one())


def failed_attempts_by_offer() -> dict[int, int]:
    return {row[0]: row[1] for row in db.session.execute(text("select offer_id, sum(n) from code_miss group by 1"))}


def shape(value: Any) -> Any:
    """Return the structure and types of a parameter without its values."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, str) and value.startswith("[{"):
        return shape(json.loads(value))
    if isinstance(value, list | tuple):
        return [shape(item) for item in value]
    return type(value).__name__


@pytest.fixture
def customer_emails(make_offer: MakeOffer, make_customer: MakeCustomer) -> dict[str, str]:
    """Emails of one customer of each kind that cannot use any of the codes."""
    empty_audience = Audience(name="Nobody")
    db.session.add(empty_audience)
    db.session.flush()
    make_offer("CLOSED", audience_id=empty_audience.id)
    make_offer("PERSONAL", personal_code_required=True)
    make_customer("known@example.com")
    erase(make_customer("erased@example.com"))
    make_customer("unsubscribed@example.com", suppressed="unsubscribed")
    return {
        "unknown": "stranger@example.com",
        "known": "known@example.com",
        "erased": "erased@example.com",
        "unsubscribed": "unsubscribed@example.com",
    }


def observe(client: FlaskClient, code: str, email: str) -> dict[str, Any]:
    """Return everything that a visitor sees, and the statements that were run.

    All counters are reset before the request.
    """
    db.session.execute(text("truncate rate_hit, code_miss"))
    db.session.commit()
    signing_keys.clear_key_cache()
    with recorded_statements() as recorded:
        response = post(client, code, email)
    headers = {name: value for name, value in response.headers if name not in ("X-Request-Id", "Content-Length")}
    page = response.text.replace(email, "EMAIL")
    return {
        "status": response.status_code,
        "headers": headers,
        "page": page,
        "statements": [(statement, shape(values)) for statement, values in recorded],
    }


@pytest.mark.parametrize("kind", ["known", "erased", "unsubscribed"])
@pytest.mark.parametrize("typed", ["CLOSED", "PERSONAL", "PERSONAL-7KQ4XM2T", "CLOSED-7KQ4XM2T", "MISSING"])
def test_response_and_statements_are_the_same_as_for_an_unknown_email(
    client: FlaskClient, customer_emails: dict[str, str], typed: str, kind: str
) -> None:
    observe(client, typed, customer_emails["unknown"])
    unknown = observe(client, typed, customer_emails["unknown"])

    observed = observe(client, typed, customer_emails[kind])

    assert unknown["status"] == (404 if typed == "MISSING" else 409)
    assert len(unknown["statements"]) > 3
    assert any("rate_hit" in statement for statement, _ in unknown["statements"])
    assert observed == unknown


def test_the_link_of_an_erased_customer_is_not_found(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, erased = make_offer(), erase(make_customer())
    token = personal_links.build_personal_url(offer.id, erased.id).rpartition("/")[2]

    for send in (client.get, client.post):
        response, unknown = send(f"/r/{token}"), send("/r/nonsense")
        assert (response.status_code, response.text) == (unknown.status_code, unknown.text)
        assert response.status_code == 404


def test_attempts_from_another_address_do_not_count_for_a_customer(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    attacker = [post(client, "WINTER", host="203.0.113.9").status_code for _ in range(21)]

    assert attacker == [404] * 20 + [429]
    assert post(client, host="192.0.2.7").status_code == 200


def test_attempts_for_one_email_are_limited_across_addresses(client: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer()
    statuses = [post(client, host=f"203.0.113.{n}").status_code for n in range(2)]
    leave_one_attempt(EMAIL_LIMIT)

    statuses += [post(client, host=f"198.51.100.{n}").status_code for n in range(2)]

    assert statuses == [409, 409, 409, 429]


def test_a_redemption_resets_the_limit_of_the_email(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()

    statuses = [post(client, host=f"203.0.113.{n}").status_code for n in range(2)]

    keys = db.session.execute(text("select key from rate_hit")).scalars().all()
    assert statuses == [200, 409]
    assert not [key for key in keys if key.endswith(EMAIL_LIMIT)]


def test_the_personal_link_works_while_the_form_is_throttled(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(), make_customer()
    post(client, "WINTER", host="203.0.113.1")
    leave_one_attempt(EMAIL_LIMIT)
    for _ in range(2):
        response = post(client, "WINTER", host="203.0.113.2")
    add_failed_attempts(offer, BLOCK_MIN_ATTEMPTS)
    assert response.status_code == 429
    assert "use the link in our email to you" in response.text

    assert (
        client.post(f"/r/{personal_links.build_personal_url(offer.id, ada.id).rpartition('/')[2]}").status_code == 200
    )


def test_attempts_with_a_link_are_limited(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, other, ada, bob = make_offer(), make_offer("OTHER"), make_customer(), make_customer("bob@example.com")
    address, *others = (
        personal_links.build_personal_url(*ids).removeprefix("http://localhost")
        for ids in ((offer.id, ada.id), (other.id, ada.id), (offer.id, bob.id))
    )

    responses = [client.post(address, environ_base={"REMOTE_ADDR": f"203.0.113.{n}"}) for n in range(21)]

    assert [response.status_code for response in responses] == [200] * 20 + [429]
    assert int(responses[-1].headers["Retry-After"]) > 0
    assert "Too many attempts" in responses[-1].text
    assert [client.get(address).status_code, *(client.post(link).status_code for link in others)] == [200, 200, 200]


def test_a_throttled_form_keeps_its_input(client: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer()
    for _ in range(21):
        response = post(client, "summer 25", "<ada>@example.com")

    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    assert 'value="summer 25"' in response.text
    assert 'value="&lt;ada&gt;@example.com"' in response.text
    assert "Please wait 5 minutes and try again" in response.text


@pytest.mark.parametrize("typed", ["SUMMER25", "summer-25", "OLDER25", "SUMMER25-7KQ4XM2T", "older25 7kq4xm2t"])
def test_a_guessed_code_is_blocked_in_all_spellings(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, typed: str
) -> None:
    offer, _ = make_offer(), make_customer()
    db.session.add(OfferCode(code="OLDER25", offer_id=offer.id, code_as_written="OLDER25"))
    add_failed_attempts(offer, BLOCK_MIN_ATTEMPTS)

    response = post(client, typed)

    assert response.status_code == 429
    assert response.headers["Retry-After"] == "60"
    assert "Please wait a minute and try again, or use the link in our email to you" in response.text


def test_a_closed_code_is_unknown_and_not_blocked(client: FlaskClient, make_offer: MakeOffer) -> None:
    row = make_offer()
    db.session.add(OfferCode(code="OLDER25", offer_id=row.id, code_as_written="OLDER25", closed_at=datetime.now(UTC)))
    add_failed_attempts(row, BLOCK_MIN_ATTEMPTS)

    assert (post(client).status_code, post(client, "OLDER25").status_code) == (429, 404)


@pytest.mark.parametrize(
    ("n", "successes", "ago"),
    [
        (BLOCK_MIN_ATTEMPTS - 1, 0, timedelta()),
        (BLOCK_MIN_ATTEMPTS, 0, timedelta(minutes=11)),
        (BLOCK_MIN_ATTEMPTS, BLOCK_MIN_ATTEMPTS, timedelta()),
    ],
    ids=["too few", "over", "a launch"],
)
def test_a_popular_code_is_not_blocked(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, n: int, successes: int, ago: timedelta
) -> None:
    offer, other = make_offer(), make_offer("OTHER25")
    add_redemptions(offer, successes)
    db.session.execute(text("select setval(pg_get_serial_sequence('customer', 'id'), 10000)"))
    make_customer()
    add_failed_attempts(offer, n, ago)
    add_failed_attempts(other, BLOCK_MIN_ATTEMPTS)

    assert post(client).status_code == 200


def test_blocking_an_offer_does_not_block_a_code_that_starts_with_its_code(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    short, _ = make_offer("ABC"), make_offer("ABC7KQ4XM2T")
    make_customer()
    add_failed_attempts(short, BLOCK_MIN_ATTEMPTS)

    assert post(client, "ABC-7KQ4XM2T").status_code == 200


@pytest.mark.parametrize("typed", ["SUMMER25", "SUMMER25-7KQ4XM2T"])
def test_a_failed_attempt_is_counted_for_the_offer(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer, typed: str
) -> None:
    offer, _ = make_offer(personal_code_required=True), make_customer()

    for _ in range(3):
        post(client, typed)

    assert failed_attempts_by_offer() == {offer.id: 3}


@pytest.mark.parametrize(
    ("values", "typed", "email"),
    [
        ({}, "WINTER", "bob@example.com"),
        ({"paused_at": PAST}, "SUMMER25", "bob@example.com"),
        ({"max_redemptions": 1, "redeemed": 1}, "SUMMER25", "bob@example.com"),
        ({}, "SUMMER25", "ada@example.com"),
        ({}, "SUMMER25", "ada@"),
    ],
    ids=["no such code", "paused", "used up", "redeemed before", "no email"],
)
def test_refusals_that_reveal_nothing_are_not_failed_attempts(
    client: FlaskClient,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    values: dict[str, Any],
    typed: str,
    email: str,
) -> None:
    offer, ada = make_offer(**values), make_customer()
    db.session.execute(
        text("insert into redemption (customer_id, offer_id, channel) values (:ada, :row, 'form')"),
        {"ada": ada.id, "row": offer.id},
    )
    db.session.commit()

    assert post(client, typed, email).status_code >= 400
    assert count_failed_attempts() == 0


def test_api_requests_are_not_failed_attempts(api: FlaskClient, make_offer: MakeOffer) -> None:
    make_offer()

    response = api.post("/api/v1/redemptions", json={"code": "SUMMER25", "customer": {"email": "bob@example.com"}})

    assert (response.status_code, count_failed_attempts()) == (409, 0)


def test_a_correct_personal_code_is_not_a_failed_attempt(
    client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer()

    assert post(client, personal_codes.derive_personal_code("SUMMER25", offer.id, ada.id)).status_code == 200
    assert count_failed_attempts() == 0


def test_failed_attempts_take_at_most_sixty_rows(make_offer: MakeOffer) -> None:
    offer = make_offer()
    db.session.execute(
        text("insert into code_miss select :id, n, now() - interval '2 hours', 7 from generate_series(0, 59) n"),
        {"id": offer.id},
    )
    db.session.commit()

    guessing.record_failed_attempt(offer.id)

    assert db.session.execute(text("select count(*), min(n) from code_miss")).one() == (60, 1)
    assert count_failed_attempts() == 59 * 7 + 1


@pytest.mark.parametrize(
    ("n", "ago", "successes", "raised"),
    [
        (ALERT_MIN_ATTEMPTS, timedelta(), 0, True),
        (ALERT_MIN_ATTEMPTS - 1, timedelta(), 0, False),
        (ALERT_MIN_ATTEMPTS, timedelta(minutes=58), 0, True),
        (ALERT_MIN_ATTEMPTS, OVER_AN_HOUR, 0, False),
        (ALERT_MIN_ATTEMPTS, timedelta(), ALERT_MIN_ATTEMPTS * ALERT_REDEMPTIONS_PER_ATTEMPT - 1, True),
        (ALERT_MIN_ATTEMPTS, timedelta(), ALERT_MIN_ATTEMPTS * ALERT_REDEMPTIONS_PER_ATTEMPT, False),
    ],
)
def test_a_burst_of_failed_attempts_raises_an_alert_for_an_hour(
    make_offer: MakeOffer, n: int, ago: timedelta, successes: int, raised: bool
) -> None:
    offer = make_offer()
    add_failed_attempts(offer, n, ago)
    add_redemptions(offer, successes)

    assert (
        guessing.find_guessing_alerts([offer.id])
        == guessing.list_top_guessing_alerts(10)
        == ({offer.id: n} if raised else {})
    )


def test_alerts_are_sorted_by_failed_attempts(make_offer: MakeOffer) -> None:
    rows = [make_offer(f"CODE{n}") for n in range(4)]
    for offer, n in zip(rows, (31, 33, 30, 32), strict=True):
        add_failed_attempts(offer, n)

    assert list(guessing.list_top_guessing_alerts(3).items()) == [(rows[1].id, 33), (rows[3].id, 32), (rows[0].id, 31)]


def test_staff_see_the_alert_on_three_pages(staff: FlaskClient, make_offer: MakeOffer) -> None:
    offer, quiet = make_offer(name="Leaked"), make_offer("QUIET", name="Quiet")
    add_failed_attempts(offer, 1234)
    add_failed_attempts(quiet, ALERT_MIN_ATTEMPTS - 1)

    assert "1,234 failed redemption attempts in the last hour" in staff.get(f"/offers/{offer.id}").text
    assert "require personal codes, or replace the code" in staff.get(f"/offers/{offer.id}").text
    assert "failed attempts" not in staff.get(f"/offers/{quiet.id}").text
    assert staff.get("/offers").text.count("failed attempts") == 1
    assert staff.get("/").text.count("1,234 failed redemption attempts") == 1


def test_the_alert_has_other_advice_where_personal_codes_are_required(
    staff: FlaskClient, make_offer: MakeOffer
) -> None:
    offer = make_offer(personal_code_required=True)
    add_failed_attempts(offer, ALERT_MIN_ATTEMPTS)

    page = staff.get(f"/offers/{offer.id}").text

    assert "The shared code alone is not accepted" in page
    assert "Require personal codes" not in page


@pytest.mark.slow
def test_two_web_servers_share_the_counters(app: Flask, make_offer: MakeOffer) -> None:
    offer = make_offer()
    with ExitStack() as stack:
        servers = [stack.enter_context(live_server.web_server(app.config["SETTINGS"])) for _ in range(2)]
        responses = [_post_to(servers[n % 2].url) for n in range(22)]

    assert [status for status, _ in responses] == [409] * 20 + [429] * 2
    assert all(0 < int(wait) <= 300 for _, wait in responses[20:])
    assert failed_attempts_by_offer() == {offer.id: 20}


def _post_to(url: str) -> tuple[int, str]:
    body = urllib.parse.urlencode({"code": "SUMMER25", "email": "ada@example.com"}).encode()
    try:
        with urllib.request.urlopen(f"{url}/redeem", body) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Retry-After", "")
