"""Counts of failed sign-ins, refused requests and views of personal data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import Text, cast, delete, func, insert, literal, select, text

from tests.support.sql_statements import recorded_statements
from webapp.accounts import access_counts, api_key_actions
from webapp.accounts.access_counts import Access, count_accesses
from webapp.accounts.models import AccessCount, StaffUser
from webapp.core.extensions import db

ADDRESS = "203.0.113.7"


NOW = datetime.now(UTC)


def count(*accesses: Access) -> None:
    """Count accesses, all in one minute."""
    count_accesses(accesses, NOW)


def counts(*columns: str) -> list[tuple[object, ...]]:
    rows = db.session.execute(select(*(getattr(AccessCount, name) for name in columns)).order_by(AccessCount.id)).all()
    db.session.rollback()
    return [tuple(row) for row in rows]


def failed_sign_in(email: str | None, address: str = ADDRESS) -> Access:
    return Access("sign_in.failed", address, entered_email=email)


def view(customer_id: int, account: str = "ann@example.com") -> Access:
    return Access("customer.viewed", ADDRESS, account=account, staff_session_id=4, subject=f"customer {customer_id}")


def test_failures_of_an_account_and_address_in_a_minute_are_one_row(make_staff_user: Callable[..., StaffUser]) -> None:
    make_staff_user(email="ann@example.com")

    count(*[failed_sign_in("ann@example.com")] * 3)
    count(failed_sign_in("ann@example.com", "198.51.100.1"))

    assert counts("kind", "account", "address", "n") == [
        ("sign_in.failed", "ann@example.com", ADDRESS, 3),
        ("sign_in.failed", "ann@example.com", "198.51.100.1", 1),
    ]


@pytest.mark.parametrize(("kind", "unit"), [("sign_in.failed", "minute"), ("customer.viewed", "hour")])
def test_refusals_are_counted_by_minute_and_views_by_hour(app: Flask, kind: str, unit: str) -> None:
    count(Access(kind, ADDRESS))

    assert db.session.scalar(select(AccessCount.period == func.date_trunc(unit, NOW)))


def test_what_strangers_enter_is_not_stored(make_staff_user: Callable[..., StaffUser]) -> None:
    make_staff_user(email="ann@example.com")

    count(failed_sign_in("eve@example.com"), failed_sign_in("mallory@example.com"), failed_sign_in(None))

    assert counts("account", "n") == [("", 3)]


def test_known_and_unknown_accounts_take_the_same_statement(make_staff_user: Callable[..., StaffUser]) -> None:
    make_staff_user(email="ann@example.com")

    with recorded_statements() as recorded:
        count(failed_sign_in("ann@example.com"))
        count(failed_sign_in("eve@example.com"))

    statements = [statement for statement, _values in recorded]
    assert len(statements) == 2
    assert statements[0] == statements[1]


@pytest.mark.parametrize(("public_id", "account"), [("known", "API key Till"), ("unknown", ""), (None, "")])
def test_a_refused_key_is_named_if_it_exists(app: Flask, public_id: str | None, account: str) -> None:
    key = api_key_actions.create_api_key("Till", ["read"], by="tests")
    if public_id == "known":
        public_id = api_key_actions.parse_public_id(f"Bearer {key}")

    count(Access("api_key.refused", ADDRESS, public_id=public_id))

    assert counts("account") == [(account,)]


def test_many_addresses_in_a_minute_share_a_row(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_counts, "MAX_REFUSAL_ROWS", 3)

    count(*(failed_sign_in(None, f"2001:db8:{n}::/64") for n in range(10)))
    # Another kind, and an address that has a row already.
    count(Access("rate_limit.exceeded", ADDRESS), failed_sign_in(None, "2001:db8:1::/64"))

    assert counts("kind", "address", "n") == [
        ("sign_in.failed", "2001:db8:0::/64", 1),
        ("sign_in.failed", "2001:db8:1::/64", 2),
        ("sign_in.failed", "2001:db8:2::/64", 1),
        ("sign_in.failed", "", 7),
        ("rate_limit.exceeded", ADDRESS, 1),
    ]


def test_each_minute_has_a_bound_of_its_own(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_counts, "MAX_REFUSAL_ROWS", 2)
    count_accesses([failed_sign_in(None, address) for address in ("a", "b", "c")], NOW - timedelta(minutes=1))

    # The last address has a row of the minute before only.
    count(*(failed_sign_in(None, address) for address in ("c", "d", "a")))

    assert counts("address") == [("a",), ("b",), ("",), ("c",), ("d",), ("",)]


def test_views_are_bounded_for_each_account(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_counts, "MAX_VIEW_ROWS", 2)

    count(*(view(n) for n in range(5)))
    count(*(view(n, "bob@example.com") for n in (9, 8, 0)), replace(view(9, "bob@example.com"), staff_session_id=5))

    assert counts("account", "subject", "staff_session_id", "n") == [
        ("ann@example.com", "customer 0", 4, 1),
        ("ann@example.com", "customer 1", 4, 1),
        ("ann@example.com", "", 0, 3),
        ("bob@example.com", "customer 9", 4, 1),
        ("bob@example.com", "customer 8", 4, 1),
        # What Ann has viewed, and another session.
        ("bob@example.com", "", 0, 2),
    ]


@pytest.mark.parametrize(
    ("access", "unit", "bound"),
    [(failed_sign_in(None), "minute", 100), (view(1), "hour", 1000)],
    ids=["refusals", "views"],
)
def test_the_bounds_are_those_of_the_documentation(app: Flask, access: Access, unit: str, bound: int) -> None:
    for rows in (bound - 1, bound):
        db.session.execute(delete(AccessCount))
        db.session.execute(
            insert(AccessCount).from_select(
                ["period", "kind", "account", "address", "staff_session_id", "subject", "n"],
                select(
                    func.date_trunc(unit, NOW), literal(access.kind), literal(access.account), literal(""), literal(0),
                    cast(func.generate_series(1, rows), Text), literal(1),
                ),
            )
        )  # fmt: skip
        db.session.commit()

        count(access)

        last = db.session.scalars(select(AccessCount.address).order_by(AccessCount.id.desc()).limit(1)).one()
        assert last == (ADDRESS if rows < bound else "")


def test_old_counts_are_deleted_a_few_at_a_time(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_counts, "CLEANUP_CHUNK_SIZE", 2)
    db.session.add_all(
        AccessCount(
            period=NOW - timedelta(days=days), kind="csrf.refused", account="", address="", staff_session_id=0,
            subject=str(days), n=1,
        )
        for days in (89.9, 90.1, 91, 92)
    )  # fmt: skip
    db.session.commit()

    count(failed_sign_in(None))
    assert counts("subject") == [("89.9",), ("90.1",), ("",)]

    count(failed_sign_in(None))
    assert counts("subject") == [("89.9",), ("",)]


def test_old_counts_that_another_transaction_has_locked_are_skipped(app: Flask) -> None:
    db.session.add(
        AccessCount(
            period=NOW - timedelta(days=91), kind="csrf.refused", account="", address="", staff_session_id=0,
            subject="old", n=1,
        )
    )  # fmt: skip
    db.session.commit()

    with db.engine.connect() as other:
        other.execute(select(AccessCount.id).with_for_update())
        count(failed_sign_in(None))

    assert counts("subject", "n") == [("old", 1), ("", 1)]


def test_a_failure_is_logged_and_not_raised(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    with db.engine.begin() as connection:
        connection.execute(text("alter table access_count rename to hidden"))
    try:
        count(failed_sign_in("ann@example.com"))
    finally:
        with db.engine.begin() as connection:
            connection.execute(text("alter table hidden rename to access_count"))

    assert "accesses were not counted" in caplog.text
    assert "ann@example.com" not in caplog.text
