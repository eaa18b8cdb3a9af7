"""The migration that stores sessions as rows."""

from __future__ import annotations

from collections.abc import Callable

import flask_migrate
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support.sessions import start_session
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db


def test_sessions_end_with_the_downgrade_and_the_upgrade(
    client: FlaskClient, make_staff_user: Callable[..., StaffUser]
) -> None:
    start_session(client, make_staff_user("viewer"))
    db.session.remove()
    flask_migrate.downgrade(revision="0014")
    try:
        with db.engine.connect() as connection:
            versions = connection.execute(text("select session_version from staff_user")).scalars().all()
    finally:
        flask_migrate.upgrade()

    # Browsers may still have cookies from before the upgrade, with a low version.
    assert [version > 1_000_000 for version in versions] == [True]
    assert client.get("/").location == "/sign-in?next=/"
