"""The migration for retention periods and erased staff accounts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import flask_migrate
from sqlalchemy import text

from webapp.accounts import staff_erasure_actions
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db
from webapp.customers.models import Customer


def test_existing_customers_are_active_at_the_upgrade_and_erased_users_stay_erased(
    make_customer: Callable[..., Customer], make_staff_user: Callable[..., StaffUser]
) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=1000)
    make_customer("ada@example.com", created_at=long_ago, active_at=long_ago)
    eve = make_staff_user("viewer", email="eve@example.com", disabled_at=long_ago)
    label = staff_erasure_actions.erase_staff_user(eve.id, by="tests")
    db.session.remove()
    flask_migrate.downgrade(revision="0018-1")
    try:
        with db.engine.connect() as connection:
            kept = connection.execute(text("select email, password_hash from staff_user")).one()
    finally:
        flask_migrate.upgrade()

    is_recent = db.session.scalar(text("select active_at > now() - interval '1 hour' from customer"))
    assert tuple(kept) == (label, "")
    assert is_recent is True
    assert db.session.scalar(text("select erased_at is not null from staff_user")) is True
