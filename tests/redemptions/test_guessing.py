"""Guessing at a code: slowed down, told of, and met with one answer whoever is asked about."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import live_server
from tests.support.sql_statements import statements
from webapp.core import signing_keys
from webapp.core.extensions import db
from webapp.customers.models import Audience, Customer
from webapp.offers.models import Offer, OfferCode
from webapp.redemptions import guessing, personal_codes, personal_links
from webapp.redemptions.guessing import ALERT_MIN_ATTEMPTS, ALERT_REDEMPTIONS_PER_ATTEMPT, BLOCK_MIN_ATTEMPTS
from webapp.redemptions.models import FailedCodeAttempt

MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]
PAST = datetime(2020, 5, 1, tzinfo=UTC)
EMAIL_MISSES = "100/10/minute"
LONG_AGO = timedelta(minutes=61)


def post(client: FlaskClient, code: str = "SUMMER25", email: str = "ada@example.com", host: str = "192.0.2.1") -> Any:
    return client.post("/redeem", data={"code": code, "email": email}, environ_base={"REMOTE_ADDR": host})


def missed(offer: Offer, n: int, ago: timedelta = timedelta()) -> None:
    """So many wrong tries, all in one minute."""
    at = (datetime.now(UTC) - ago).replace(second=0, microsecond=0)
    db.session.add(FailedCodeAttempt(offer_id=offer.id, slot=at.minute, minute=at, n=n))
    db.session.commit()


def redeemed(offer: Offer, n: int, ago: timedelta = timedelta()) -> None:
    db.session.execute(
        text(
            "insert into redemption (customer_id, offer_id, redeemed_at, channel)"
            " select n, :offer, :at, 'form' from generate_series(1, :n) n"
        ),
        {"offer": offer.id, "at": datetime.now(UTC) - ago, "n": n},
    )
    db.session.commit()


def erased(customer: Customer) -> Customer:
    db.session.execute(
        text(
            "update customer set erased_at = now(), email = 'erased ' || id, email_as_given = 'erased customer',"
            " name = '' where id = :id"
        ),
        {"id": customer.id},
    )
    db.session.commit()
    return customer


def nearly_used_up(limit: str) -> None:
    """As if all tries of a limit but one were used up."""
    n = int(limit.split("/")[0]) - 1
    db.session.execute(text("update rate_hit set n = :n where key like :like"), {"n": n, "like": f"%/{limit}"})
    db.session.commit()


def counted() -> int:
    return int(db.session.execute(text("select coalesce(sum(n), 0) from code_miss")).scalar_one())


def misses_by_offer() -> dict[int, int]:
    return {row[0]: row[1] for row in db.session.execute(text("select offer_id, sum(n) from code_miss group by 1"))}


def shape(value: Any) -> Any:
    """What a parameter looks like, without what it says."""
    if isinstance(value, dict):
        return {name: shape(held) for name, held in value.items()}
    if isinstance(value, str) and value.startswith("[{"):
        return shape(json.loads(value))
    if isinstance(value, list | tuple):
        return [shape(held) for held in value]
    return type(value).__name__


@pytest.fixture
def people(offer: MakeOffer, customer: MakeCustomer) -> dict[str, str]:
    """One of each kind of person who can't use any of the codes, by their e-mails."""
    nobody = Audience(name="Nobody")
    db.session.add(nobody)
    db.session.flush()
    offer("CLOSED", audience_id=nobody.id)
    offer("PERSONAL", personal_code_required=True)
    customer("known@example.com")
    erased(customer("erased@example.com"))
    customer("unsubscribed@example.com", suppressed="unsubscribed")
    return {
        "unknown": "stranger@example.com",
        "known": "known@example.com",
        "erased": "erased@example.com",
        "unsubscribed": "unsubscribed@example.com",
    }


def look(client: FlaskClient, code: str, email: str) -> dict[str, Any]:
    """All that somebody can see of an answer, and what was run for it, as for the first try of a day."""
    db.session.execute(text("truncate rate_hit, code_miss"))
    db.session.commit()
    signing_keys.clear_key_cache()
    with statements() as run:
        answer = post(client, code, email)
    headers = {name: value for name, value in answer.headers if name not in ("X-Request-Id", "Content-Length")}
    page = answer.text.replace(email, "EMAIL")
    return {
        "status": answer.status_code,
        "headers": headers,
        "page": page,
        "statements": [(statement, shape(values)) for statement, values in run],
    }


@pytest.mark.parametrize("kind", ["known", "erased", "unsubscribed"])
@pytest.mark.parametrize("typed", ["CLOSED", "PERSONAL", "PERSONAL-7KQ4XM2T", "CLOSED-7KQ4XM2T", "MISSING"])
def test_the_answer_and_the_statements_are_those_for_an_unknown_person(
    client: FlaskClient, people: dict[str, str], typed: str, kind: str
) -> None:
    look(client, typed, people["unknown"])
    unknown = look(client, typed, people["unknown"])

    asked = look(client, typed, people[kind])

    assert unknown["status"] == (404 if typed == "MISSING" else 409)
    assert len(unknown["statements"]) > 3
    assert any("rate_hit" in statement for statement, _ in unknown["statements"])
    assert asked == unknown


def test_an_erased_customers_link_is_no_link(client: FlaskClient, offer: MakeOffer, customer: MakeCustomer) -> None:
    row, gone = offer(), erased(customer())
    token = personal_links.build_personal_url(row.id, gone.id).rpartition("/")[2]

    for send in (client.get, client.post):
        ours, made_up = send(f"/r/{token}"), send("/r/nonsense")
        assert (ours.status_code, ours.text) == (made_up.status_code, made_up.text)
        assert ours.status_code == 404


def test_one_persons_tries_are_not_used_up_by_somebody_elsewhere(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer(), customer()
    attacker = [post(client, "WINTER", host="203.0.113.9").status_code for _ in range(21)]

    assert attacker == [404] * 20 + [429]
    assert post(client, host="192.0.2.7").status_code == 200


def test_many_addresses_do_not_help_to_guess_at_one_person(client: FlaskClient, offer: MakeOffer) -> None:
    offer()
    answers = [post(client, host=f"203.0.113.{n}").status_code for n in range(2)]
    nearly_used_up(EMAIL_MISSES)

    answers += [post(client, host=f"198.51.100.{n}").status_code for n in range(2)]

    assert answers == [409, 409, 409, 429]


def test_whoever_succeeds_is_no_guesser(client: FlaskClient, offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()

    answers = [post(client, host=f"203.0.113.{n}").status_code for n in range(2)]

    kept = db.session.execute(text("select key from rate_hit")).scalars().all()
    assert answers == [200, 409]
    assert not [key for key in kept if key.endswith(EMAIL_MISSES)]


def test_the_link_goes_on_working_when_the_form_is_closed_to_its_owner(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer
) -> None:
    row, ada = offer(), customer()
    post(client, "WINTER", host="203.0.113.1")
    nearly_used_up(EMAIL_MISSES)
    for _ in range(2):
        answer = post(client, "WINTER", host="203.0.113.2")
    missed(row, BLOCK_MIN_ATTEMPTS)
    assert answer.status_code == 429
    assert "use the link in our email to you" in answer.text

    assert client.post(f"/r/{personal_links.build_personal_url(row.id, ada.id).rpartition('/')[2]}").status_code == 200


def test_a_link_is_pressed_only_so_often(client: FlaskClient, offer: MakeOffer, customer: MakeCustomer) -> None:
    row, ada = offer(), customer()
    address = f"/r/{personal_links.build_personal_url(row.id, ada.id).rpartition('/')[2]}"

    answers = [client.post(address, environ_base={"REMOTE_ADDR": f"203.0.113.{n}"}) for n in range(21)]

    assert [answer.status_code for answer in answers] == [200] * 20 + [429]
    assert int(answers[-1].headers["Retry-After"]) > 0
    assert "Too many attempts" in answers[-1].text
    assert client.get(address).status_code == 200


def test_what_was_typed_is_still_there_when_it_was_too_often(client: FlaskClient, offer: MakeOffer) -> None:
    offer()
    for _ in range(21):
        answer = post(client, "summer 25", "<ada>@example.com")

    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert 'value="summer 25"' in answer.text
    assert 'value="&lt;ada&gt;@example.com"' in answer.text
    assert "Please wait 5 minutes and try again" in answer.text


@pytest.mark.parametrize("typed", ["SUMMER25", "summer-25", "OLDER25", "SUMMER25-7KQ4XM2T", "older25 7kq4xm2t"])
def test_a_code_that_is_guessed_at_is_closed_in_all_its_spellings(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer, typed: str
) -> None:
    row, _ = offer(), customer()
    db.session.add(OfferCode(code="OLDER25", offer_id=row.id, code_as_written="OLDER25"))
    missed(row, BLOCK_MIN_ATTEMPTS)

    answer = post(client, typed)

    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert "use the link in our email to you" in answer.text


@pytest.mark.parametrize(
    ("n", "successes", "ago"),
    [
        (BLOCK_MIN_ATTEMPTS - 1, 0, timedelta()),
        (BLOCK_MIN_ATTEMPTS, 0, timedelta(minutes=11)),
        (BLOCK_MIN_ATTEMPTS, BLOCK_MIN_ATTEMPTS, timedelta()),
    ],
    ids=["too few", "over", "a launch"],
)
def test_a_popular_code_stays_open(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer, n: int, successes: int, ago: timedelta
) -> None:
    row, other = offer(), offer("OTHER25")
    redeemed(row, successes)
    db.session.execute(text("select setval(pg_get_serial_sequence('customer', 'id'), 10000)"))
    customer()
    missed(row, n, ago)
    missed(other, BLOCK_MIN_ATTEMPTS)

    assert post(client).status_code == 200


def test_the_personal_code_of_one_offer_is_not_closed_by_another_that_is_called_so(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer
) -> None:
    short, _ = offer("ABC"), offer("ABC7KQ4XM2T")
    customer()
    missed(short, BLOCK_MIN_ATTEMPTS)

    assert post(client, "ABC-7KQ4XM2T").status_code == 200


@pytest.mark.parametrize("typed", ["SUMMER25", "SUMMER25-7KQ4XM2T"])
def test_a_wrong_try_is_counted_for_the_offer(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer, typed: str
) -> None:
    row, _ = offer(personal_code_required=True), customer()

    for _ in range(3):
        post(client, typed)

    assert misses_by_offer() == {row.id: 3}


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
def test_what_tells_nothing_about_a_person_is_no_wrong_try(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer, values: dict[str, Any], typed: str, email: str
) -> None:
    row, ada = offer(**values), customer()
    db.session.execute(
        text("insert into redemption (customer_id, offer_id, channel) values (:ada, :row, 'form')"),
        {"ada": ada.id, "row": row.id},
    )
    db.session.commit()

    assert post(client, typed, email).status_code >= 400
    assert counted() == 0


def test_what_a_shop_asks_is_no_wrong_try(api: FlaskClient, offer: MakeOffer) -> None:
    offer()

    answer = api.post("/api/v1/redemptions", json={"code": "SUMMER25", "customer": {"email": "bob@example.com"}})

    assert (answer.status_code, counted()) == (409, 0)


def test_a_personal_code_that_is_right_is_no_wrong_try(
    client: FlaskClient, offer: MakeOffer, customer: MakeCustomer
) -> None:
    row, ada = offer(personal_code_required=True), customer()

    assert post(client, personal_codes.derive_personal_code("SUMMER25", row.id, ada.id)).status_code == 200
    assert counted() == 0


def test_wrong_tries_never_take_more_than_sixty_rows(offer: MakeOffer) -> None:
    row = offer()
    db.session.execute(
        text("insert into code_miss select :id, n, now() - interval '2 hours', 7 from generate_series(0, 59) n"),
        {"id": row.id},
    )
    db.session.commit()

    guessing.record_failed_attempt(row.id)

    assert db.session.execute(text("select count(*), min(n) from code_miss")).one() == (60, 1)
    assert counted() == 59 * 7 + 1


@pytest.mark.parametrize(
    ("n", "ago", "successes", "raised"),
    [
        (ALERT_MIN_ATTEMPTS, timedelta(), 0, True),
        (ALERT_MIN_ATTEMPTS - 1, timedelta(), 0, False),
        (ALERT_MIN_ATTEMPTS, timedelta(minutes=58), 0, True),
        (ALERT_MIN_ATTEMPTS, LONG_AGO, 0, False),
        (ALERT_MIN_ATTEMPTS, timedelta(), ALERT_MIN_ATTEMPTS * ALERT_REDEMPTIONS_PER_ATTEMPT - 1, True),
        (ALERT_MIN_ATTEMPTS, timedelta(), ALERT_MIN_ATTEMPTS * ALERT_REDEMPTIONS_PER_ATTEMPT, False),
    ],
)
def test_the_alarm_is_raised_by_a_burst_and_goes_away_by_itself(
    offer: MakeOffer, n: int, ago: timedelta, successes: int, raised: bool
) -> None:
    row = offer()
    missed(row, n, ago)
    redeemed(row, successes)

    assert (
        guessing.find_guessing_alerts([row.id])
        == guessing.list_top_guessing_alerts(10)
        == ({row.id: n} if raised else {})
    )


def test_staff_see_the_alarm_at_the_offer_in_the_list_and_on_the_first_page(
    staff: FlaskClient, offer: MakeOffer
) -> None:
    row, quiet = offer(name="Leaked"), offer("QUIET", name="Quiet")
    missed(row, 1234)
    missed(quiet, ALERT_MIN_ATTEMPTS - 1)

    assert "1,234 failed redemption attempts in the last hour" in staff.get(f"/offers/{row.id}").text
    assert "require personal codes, or renew the code" in staff.get(f"/offers/{row.id}").text
    assert "failed attempts" not in staff.get(f"/offers/{quiet.id}").text
    assert staff.get("/offers").text.count("failed attempts") == 1
    assert staff.get("/").text.count("1,234 failed redemption attempts") == 1


def test_the_advice_is_another_one_where_personal_codes_are_asked_for(staff: FlaskClient, offer: MakeOffer) -> None:
    row = offer(personal_code_required=True)
    missed(row, ALERT_MIN_ATTEMPTS)

    page = staff.get(f"/offers/{row.id}").text

    assert "The shared code alone is not accepted" in page
    assert "Require personal codes" not in page


def test_two_web_servers_count_tries_and_misses_together(app: Flask, offer: MakeOffer) -> None:
    row = offer()
    with ExitStack() as running:
        servers = [running.enter_context(live_server.web_server(app.config["SETTINGS"], workers=1)) for _ in range(2)]
        answers = [_typed_at(servers[n % 2].url) for n in range(22)]

    assert [status for status, _ in answers] == [409] * 20 + [429] * 2
    assert all(0 < int(wait) <= 300 for _, wait in answers[20:])
    assert misses_by_offer() == {row.id: 20}


def _typed_at(url: str) -> tuple[int, str]:
    body = urllib.parse.urlencode({"code": "SUMMER25", "email": "ada@example.com"}).encode()
    try:
        with urllib.request.urlopen(f"{url}/redeem", body) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Retry-After", "")
