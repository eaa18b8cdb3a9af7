"""Limits on tries: counted in one table by everybody, forgiven on success, out of the way when the table is."""

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
from webapp.core.email_addresses import normalise_email
from webapp.core.extensions import db
from webapp.core.rate_limit import (
    CLEANUP_BATCH_SIZE,
    RateLimitCounter,
    TableStorage,
    _delete_expired,
    client_address,
    form_field_key,
)
from webapp.core.settings import Settings


@pytest.fixture
def second_app(test_settings: Settings) -> Iterator[Flask]:
    """Another process of the program, as far as the limits can tell: nothing in common but the database."""
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


def rows() -> int:
    return db.session.scalar(select(func.count()).select_from(RateLimitCounter)) or 0


def test_ten_guesses_at_one_email_are_enough(client: FlaskClient) -> None:
    statuses = [guess(client, host=f"192.0.2.{n}").status_code for n in range(11)]
    assert statuses == [422] * 10 + [429]


def test_the_same_email_spelled_otherwise_counts_as_the_same(client: FlaskClient) -> None:
    spellings = ["ann@example.com", "ANN@example.com", " ann@EXAMPLE.com"] * 4
    assert guess(client, spellings[0]).status_code == 422
    assert [guess(client, spelling).status_code for spelling in spellings][-1] == 429


def test_thirty_guesses_from_one_address_are_enough(client: FlaskClient) -> None:
    statuses = [guess(client, f"n{n}@example.com").status_code for n in range(31)]
    assert (statuses[-2:], guess(client, "x@example.com", host="192.0.2.1").status_code) == ([422, 429], 422)


def test_the_page_says_how_long_to_wait(client: FlaskClient) -> None:
    for _ in range(10):
        guess(client)
    answer = guess(client)
    assert 240 < int(answer.headers["Retry-After"]) <= 300
    assert "Please wait 5 minutes and try again." in answer.text


def test_two_processes_count_together(client: FlaskClient, second_app: Flask) -> None:
    statuses = [guess(c).status_code for _ in range(6) for c in (client, second_app.test_client())]
    assert statuses == [422] * 10 + [429] * 2


def test_whoever_knows_the_password_may_sign_in_often(
    client: FlaskClient, staff_user: Callable[..., StaffUser]
) -> None:
    staff_user("admin", email="ann@example.com").password_hash = passwords.hash_password("the password")
    db.session.commit()
    answers = [
        guess(client, password=word).status_code for word in ["a guess"] * 9 + ["the password"] + ["a guess"] * 9
    ]
    assert answers == [422] * 9 + [302] + [422] * 9


def test_a_window_that_is_over_begins_anew(client: FlaskClient) -> None:
    for _ in range(11):
        guess(client)
    db.session.execute(update(RateLimitCounter).values(expires_at=func.now()))
    db.session.commit()
    assert guess(client).status_code == 422


def test_what_is_over_is_cleared_away_by_whoever_comes_next(app: Flask) -> None:
    storage = TableStorage()
    for n in range(25):
        storage.incr(f"old {n}", 60)
    db.session.execute(update(RateLimitCounter).values(expires_at=func.now() - timedelta(seconds=1)))
    db.session.commit()
    left = []
    for n in range(3):
        storage.incr(f"new {n}", 60)
        left.append(rows())
    assert left == [16, 7, 3]


def test_the_counter_of_a_window_that_is_over_reads_as_zero(app: Flask) -> None:
    storage = TableStorage()
    storage.incr("key", 60)
    assert storage.get("key") == 1
    db.session.execute(update(RateLimitCounter).values(expires_at=func.now()))
    db.session.commit()
    assert (storage.get("key"), storage.get("unknown")) == (0, 0)


def test_the_expired_rows_are_deleted_oldest_first(app: Flask) -> None:
    for n in range(CLEANUP_BATCH_SIZE + 2):
        expires_at = func.now() - timedelta(hours=n + 1)
        db.session.execute(insert(RateLimitCounter).values(key=f"key {n}", n=1, expires_at=expires_at))
    db.session.commit()
    TableStorage().incr("new", 60)
    assert set(db.session.scalars(select(RateLimitCounter.key))) == {"key 0", "key 1", "new"}


def test_expired_rows_that_another_transaction_has_locked_are_left(app: Flask) -> None:
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
    assert (storage.reset(), rows(), storage.check()) == (2, 0, True)


def test_the_table_names_nobody(client: FlaskClient) -> None:
    guess(client, "ann@example.com")
    assert not [key for key in db.session.scalars(select(RateLimitCounter.key)) if "ann" in key]


def test_a_field_of_any_length_is_counted(client: FlaskClient) -> None:
    statuses = [guess(client, "x" * 100_000).status_code for _ in range(11)]
    assert statuses[-1] == 429


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
    ],
)
def test_a_network_that_one_customer_owns_is_one_address(app: Flask, given: str, counted: str) -> None:
    with app.test_request_context(environ_base={"REMOTE_ADDR": given}):
        assert client_address() == counted


def test_two_fields_with_the_same_value_are_counted_apart(app: Flask) -> None:
    with app.test_request_context(method="POST", data={"email": "a@example.com", "code": "a@example.com"}):
        assert form_field_key("email", normalise_email)() != form_field_key("code")()


def test_without_the_table_the_limit_stands_aside(client: FlaskClient) -> None:
    db.session.execute(text("alter table rate_hit rename to rate_hit_away"))
    db.session.commit()
    try:
        assert guess(client).status_code == 422
        assert not TableStorage().check()
    finally:
        db.session.execute(text("alter table rate_hit_away rename to rate_hit"))
        db.session.commit()


def test_without_the_database_the_answer_is_not_now_rather_than_an_error(test_settings: Settings) -> None:
    away = replace(test_settings, database_url="postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    lone = create_app(away)
    lone.config["WTF_CSRF_ENABLED"] = False
    answer = guess(lone.test_client())
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
