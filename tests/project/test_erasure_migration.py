"""Migrations of erased customers, the audit log and suppressions."""

from __future__ import annotations

from collections.abc import Callable

import flask_migrate
from sqlalchemy import text

from webapp.core.extensions import db
from webapp.customers.models import Customer


def test_the_migration_empties_erased_rows_and_removes_emails_from_the_audit_log(
    make_customer: Callable[..., Customer],
) -> None:
    make_customer("ada@example.com"), make_customer("bob@example.com", source_id="C1")
    db.session.remove()
    flask_migrate.downgrade(revision="0002")
    try:
        with db.engine.begin() as connection:
            connection.execute(text("update customer set erased_at = now() where id = 2"))
            connection.execute(
                text(
                    "insert into audit_entry (actor, action, subject, detail) values "
                    """('x', 'customer.changed', 'bob@example.com', '{"id": 2, "was": "old@example.com"}'), """
                    """('x', 'audience.created', 'VIP', '{"id": 1}')"""
                )
            )
    finally:
        flask_migrate.upgrade()

    rows = db.session.execute(text("select email, name, source_id from customer order by id")).all()
    audit_entries = db.session.execute(text("select subject, detail from audit_entry order by id")).all()

    assert rows == [("ada@example.com", "Ada Lovelace", None), ("erased 2", "", None)]
    assert audit_entries == [("customer 2", None), ("VIP", {"id": 1})]


def test_upgrade_and_downgrade_keep_unsubscriptions(
    make_customer: Callable[..., Customer],
) -> None:
    make_customer("ada@example.com", suppressed="unsubscribed"), make_customer("bob@example.com", suppressed="bounced")
    make_customer("eve@example.com")
    since = db.session.execute(text("select at from suppression where email like 'ada%'")).scalar_one()
    db.session.remove()
    flask_migrate.downgrade(revision="0006")
    try:
        with db.engine.connect() as connection:
            before = connection.execute(text("select email, unsubscribed_at is null from customer order by id")).all()
    finally:
        flask_migrate.upgrade()

    after = db.session.execute(text("select email, reason, at, source from suppression order by email")).all()

    assert before == [("ada@example.com", False), ("bob@example.com", False), ("eve@example.com", True)]
    assert [(row.email, row.reason, row.source) for row in after] == [
        ("ada@example.com", "unsubscribed", "earlier"),
        ("bob@example.com", "unsubscribed", "earlier"),
    ]
    assert after[0].at == since
