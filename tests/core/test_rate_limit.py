"""Rate limits: counted in one table for all processes, and reset on success."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, insert, select, text, update
from werkzeug.test import TestResponse

from webapp import create_app
from webapp.accounts import passwords
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db
from webapp.core.rate_limit import (
    CLEANUP_CHUNK_SIZE,
    RateLimit,
    RateLimitCounter,
    TableStorage,
    TooManyRequests,
    _delete_expired,
    allow_again,
    client_address,
    email_attempt_key,
    use_once,
)
from webapp.core.settings import Settings


@pytest.fixture
def second_app(test_settings: Settings) -> Iterator[Flask]:
    """An app that stands for another process: it shares only the database."""
    app = create_app(test_settings)
    app.config.update(TESTING=True, WTF_CSRF_ENABLED=False, ARGON2={"time_cost": 1, "memory_cost": 8, "parallelism": 1})
    yield app
    with app.app_context():
        db.engine.dispose()


def guess(
    client: FlaskClient, email: str = "ann@example.com", password: str = "a guess", host: str = ""
) -> TestResponse:
    return client.post(
        "/sign-in",
        data={"email": email, "password": password},
        environ_base={"REMOTE_ADDR": host},
    )


def count_rows() -> int:
    return db.session.scalar(select(func.count()).select_from(RateLimitCounter)) or 0


def test_the_eleventh_guess_at_one_email_is_throttled(client: FlaskClient) -> None:
    statuses = [guess(client, host=f"192.0.2.{n}").status_code for n in range(11)]
    assert statuses == [422] * 10 + [429]


def test_spellings_of_one_email_share_a_counter(client: FlaskClient) -> None:
    spellings = ["ann@example.com", "ANN@example.com", " ann@EXAMPLE.com"] * 4
    assert guess(client, spellings[0]).status_code == 422
    assert [guess(client, spelling).status_code for spelling in spellings][-1] == 429


def test_the_thirty_first_guess_from_one_address_is_throttled(client: FlaskClient) -> None:
    statuses = [guess(client, f"n{n}@example.com").status_code for n in range(31)]
    assert (statuses[-2:], guess(client, "x@example.com", host="192.0.2.1").status_code) == ([422, 429], 422)


def test_a_throttled_response_says_how_long_to_wait(client: FlaskClient) -> None:
    for _ in range(10):
        guess(client)
    response = guess(client)
    assert 240 < int(response.headers["Retry-After"]) <= 300
    assert "Please wait 5 minutes and try again." in response.text


def test_processes_share_a_counter(client: FlaskClient, second_app: Flask) -> None:
    statuses = [guess(c).status_code for _ in range(6) for c in (client, second_app.test_client())]
    assert statuses == [422] * 10 + [429] * 2


def test_a_successful_sign_in_resets_the_counter(
    client: FlaskClient, make_staff_user: Callable[..., StaffUser]
) -> None:
    make_staff_user("admin", email="ann@example.com").password_hash = passwords.hash_password("the password")
    db.session.commit()
    passwords_tried = ["a guess"] * 9 + ["the password"] + ["a guess"] * 9
    statuses = [guess(client, password=password).status_code for password in passwords_tried]
    assert statuses == [422] * 9 + [302] + [422] * 9


def test_the_counter_restarts_after_its_window(client: FlaskClient) -> None:
    for _ in range(11):
        guess(client)
    db.session.execute(update(RateLimitCounter).values(expires_at=func.now()))
    db.session.commit()
    assert guess(client).status_code == 422


def test_a_further_attempt_does_not_extend_the_window(client: FlaskClient) -> None:
    guess(client)
    db.session.execute(update(RateLimitCounter).values(expires_at=func.now() + timedelta(minutes=1)))
    db.session.commit()
    before = db.session.scalars(select(RateLimitCounter.expires_at).order_by(RateLimitCounter.key)).all()
    db.session.rollback()

    guess(client)

    after = db.session.scalars(select(RateLimitCounter.expires_at).order_by(RateLimitCounter.key)).all()
    assert after == before


def test_each_request_deletes_some_expired_counters(app: Flask) -> None:
    storage = TableStorage()
    for n in range(25):
        storage.incr(f"old {n}", 60)
    db.session.execute(update(RateLimitCounter).values(expires_at=func.now() - timedelta(seconds=1)))
    db.session.commit()
    remaining = []
    for n in range(3):
        storage.incr(f"new {n}", 60)
        remaining.append(count_rows())
    assert remaining == [16, 7, 3]


def test_an_expired_counter_is_zero(app: Flask) -> None:
    storage = TableStorage()
    storage.incr("key", 60)
    assert storage.get("key") == 1
    db.session.execute(update(RateLimitCounter).values(expires_at=func.now()))
    db.session.commit()
    assert (storage.get("key"), storage.get("unknown")) == (0, 0)


def test_the_expired_rows_are_deleted_oldest_first(app: Flask) -> None:
    for n in range(CLEANUP_CHUNK_SIZE + 2):
        expires_at = func.now() - timedelta(hours=n + 1)
        db.session.execute(insert(RateLimitCounter).values(key=f"key {n}", n=1, expires_at=expires_at))
    db.session.commit()
    TableStorage().incr("new", 60)
    assert set(db.session.scalars(select(RateLimitCounter.key))) == {"key 0", "key 1", "new"}


def test_expired_rows_that_another_transaction_has_locked_are_skipped(app: Flask) -> None:
    storage = TableStorage()
    for key in ("locked", "free"):
        storage.incr(key, 60)
    db.session.execute(update(RateLimitCounter).values(expires_at=func.now() - timedelta(seconds=1)))
    db.session.commit()
    db.session.execute(select(RateLimitCounter).where(RateLimitCounter.key == "locked").with_for_update())
    with db.engine.connect() as connection:
        # Without SKIP LOCKED the cleanup would wait, and this makes it fail instead.
        connection.exec_driver_sql("set lock_timeout = '100ms'")
        _delete_expired(connection)
        connection.commit()
    db.session.rollback()
    assert db.session.scalars(select(RateLimitCounter.key)).all() == ["locked"]


def test_a_counter_can_be_cleared_alone_or_with_all_others(app: Flask) -> None:
    storage = TableStorage()
    for key in ("one", "two", "three"):
        storage.incr(key, 60)
    storage.clear("one")
    assert [storage.get(key) for key in ("one", "two", "three")] == [0, 1, 1]
    assert (storage.reset(), count_rows(), storage.check()) == (2, 0, True)


def test_a_limit_counts_each_key_until_it_is_reset(app: Flask) -> None:
    limit, other_limit = RateLimit("a limit", "2 per 5 minutes"), RateLimit("another limit", "2 per 5 minutes")
    for _ in range(2):
        limit.check("ann")
        limit.count("ann")

    for attempt in (limit.check, limit.count):
        with pytest.raises(TooManyRequests) as raised:
            attempt("ann")
        assert 290 < raised.value.retry_after_seconds <= 300
    limit.check("bob")
    other_limit.check("ann")
    limit.reset("ann")
    limit.check("ann")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "a minute"), (60, "a minute"), (61, "2 minutes"), (300, "5 minutes")]
)
def test_the_time_to_wait_is_in_whole_minutes(app: Flask, seconds: int, text: str) -> None:
    error = TooManyRequests(seconds)

    assert (error.message, error.wait_text) == (f"Please wait {text} and try again.", text)
    assert (error.key, error.status, error.retry_after_seconds) == ("rate_limited", 429, seconds)


def test_the_wait_is_at_least_a_second(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window may end between counting an attempt and asking for its end."""
    limit = RateLimit("a limit", "1 per minute")
    limit.count("ann")
    monkeypatch.setattr(TableStorage, "get_expiry", lambda *_key: 0.0)

    with pytest.raises(TooManyRequests) as raised:
        limit.count("ann")

    assert raised.value.retry_after_seconds == 1


def test_reading_a_page_is_not_counted(client: FlaskClient) -> None:
    for method in ("GET", "HEAD", "OPTIONS"):
        client.open("/sign-in", method=method)
    assert count_rows() == 0


def test_a_text_that_is_no_email_counts_without_the_spaces_around_it() -> None:
    assert email_attempt_key(" x\n") == email_attempt_key("x") != email_attempt_key("X")


def test_a_token_is_used_once_until_it_is_allowed_again(app: Flask) -> None:
    assert [use_once(token, 60) for token in ("a", "b", "a", "a")] == [True, True, False, False]
    allow_again("a")
    assert [use_once(token, 60) for token in ("a", "b")] == [True, False]
    remaining = select(func.max(func.extract("epoch", RateLimitCounter.expires_at - func.now())))
    assert 50 < db.session.execute(remaining).scalar_one() <= 60
    assert not [key for key in db.session.scalars(select(RateLimitCounter.key)) if len(key) < 64]


def test_the_table_stores_no_email(client: FlaskClient) -> None:
    guess(client, "ann@example.com")
    assert not [key for key in db.session.scalars(select(RateLimitCounter.key)) if "ann" in key]


def test_a_very_long_value_is_counted(client: FlaskClient) -> None:
    statuses = [guess(client, "x" * 100_000).status_code for _ in range(11)]
    assert statuses[-1] == 429


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("192.0.2.7:49152", "192.0.2.7"),
        ("[2001:db8:1:2::1]:49152", "2001:db8:1:2::/64"),
        ("unix:", "unknown"),
        ("203.0.113.7<script>", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_port_is_ignored_and_an_ipv6_network_is_one_address(app: Flask, given: str, counted: str) -> None:
    with app.test_request_context(environ_base={"REMOTE_ADDR": given}):
        assert client_address() == counted


def test_without_the_table_requests_are_not_limited(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    db.session.execute(text("alter table rate_hit rename to rate_hit_away"))
    db.session.commit()
    try:
        assert guess(client).status_code == 422
        assert not TableStorage().check()
        assert "a rate limit was not applied: " in caplog.text
        caplog.clear()
        RateLimit("a limit", "1 per minute").reset("key")
        assert "a rate limit was not applied: " in caplog.text
    finally:
        db.session.execute(text("alter table rate_hit_away rename to rate_hit"))
        db.session.commit()


def test_without_the_database_the_response_is_503(test_settings: Settings) -> None:
    settings = replace(test_settings, database_url="postgresql://nobody@127.0.0.1:1/nothing")
    app = create_app(settings)
    app.config["WTF_CSRF_ENABLED"] = False
    response = guess(app.test_client())
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
