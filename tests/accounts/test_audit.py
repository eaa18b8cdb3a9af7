"""The audit log: what entries record, and that they cannot be changed."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from flask import Flask, g
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import ProgrammingError

from webapp.accounts.audit import CUSTOMER_ACTOR, record_audit_entry
from webapp.accounts.models import AuditEntry
from webapp.core.extensions import db

ORIGIN = (AuditEntry.address, AuditEntry.staff_session_id, AuditEntry.api_key_id)


def recorded_origin() -> tuple[object, ...]:
    db.session.commit()
    return tuple(db.session.execute(select(*ORIGIN)).one())


@pytest.mark.parametrize(
    ("remote_address", "address"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("unix:", None),
        ("", None),
    ],
)
def test_an_entry_records_the_address_of_the_client(app: Flask, remote_address: str, address: str | None) -> None:
    with app.test_request_context(environ_base={"REMOTE_ADDR": remote_address}):
        record_audit_entry("ann@example.com", "offer.paused", "SUMMER25")

        assert recorded_origin() == (address, None, None)


def test_an_entry_records_the_session_and_the_api_key(app: Flask) -> None:
    with app.test_request_context():
        g.staff_session_id, g.api_key = 12, SimpleNamespace(id=7)
        record_audit_entry("ann@example.com", "offer.paused", "SUMMER25")

        assert recorded_origin() == (None, 12, 7)


def test_commands_and_workers_have_no_origin(app: Flask) -> None:
    record_audit_entry("command line", "invitation.created")

    assert recorded_origin() == (None, None, None)


def test_the_address_of_a_customer_is_not_recorded(app: Flask) -> None:
    with app.test_request_context(environ_base={"REMOTE_ADDR": "203.0.113.7"}):
        record_audit_entry(CUSTOMER_ACTOR, "customer.unsubscribed", "customer 1")

        assert recorded_origin() == (None, None, None)


@pytest.fixture
def entry_ages(app: Flask) -> list[int]:
    """Entries that are 1, 29 and 31 days old."""
    ages = [1, 29, 31]
    db.session.add_all(
        AuditEntry(actor="ann", action="offer.paused", subject=str(days), at=func.now() - timedelta(days=days))
        for days in ages
    )
    db.session.commit()
    return ages


@pytest.mark.parametrize(
    "statement",
    [
        "update audit_entry set actor = 'eve' where subject = '31'",
        "delete from audit_entry where subject = '29'",
        "delete from audit_entry",
        "truncate audit_entry",
    ],
)
def test_entries_are_neither_changed_nor_deleted(entry_ages: list[int], statement: str) -> None:
    with pytest.raises(ProgrammingError, match="append-only"):
        db.session.execute(text(statement))
    db.session.rollback()

    assert db.session.execute(select(AuditEntry.actor, AuditEntry.subject).order_by(AuditEntry.id)).all() == [
        ("ann", "1"),
        ("ann", "29"),
        ("ann", "31"),
    ]


def test_entries_older_than_thirty_days_can_be_deleted(entry_ages: list[int]) -> None:
    db.session.execute(text("delete from audit_entry where at < now() - interval '30 days'"))
    db.session.commit()

    assert db.session.scalars(select(AuditEntry.subject).order_by(AuditEntry.id)).all() == ["1", "29"]


def test_an_object_of_the_program_cannot_change_an_entry(entry_ages: list[int]) -> None:
    with pytest.raises(ProgrammingError, match="append-only"):
        db.session.execute(update(AuditEntry).values(action="nothing"))
    db.session.rollback()
