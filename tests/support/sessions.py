"""Sessions of staff in tests."""

from __future__ import annotations

from flask.testing import FlaskClient

from webapp.accounts import session_actions
from webapp.accounts.models import StaffUser
from webapp.accounts.session_actions import SessionClient

TEST_CLIENT = SessionClient("192.0.2.1", "tests")


def start_session(client: FlaskClient, user: StaffUser) -> str:
    """Sign a user in, without the form; return the token of the session."""
    token = session_actions.start_staff_session(user.id, TEST_CLIENT, is_new_device_expected=True).token
    with client.session_transaction() as session:
        session["_user_id"] = token
    return token
