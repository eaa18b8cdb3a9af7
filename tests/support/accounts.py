"""Staff users with passwords, and invitations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from webapp.accounts import invitation_actions, passwords
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db

PASSWORD = "correct horse battery"


@pytest.fixture
def make_user_with_password(make_staff_user: Callable[..., StaffUser]) -> Callable[..., StaffUser]:
    """Makes staff who can sign in with PASSWORD: `make_user_with_password("admin")`."""

    def make(role: str = "admin", **values: Any) -> StaffUser:
        user = make_staff_user(role, **values)
        user.password_hash = passwords.hash_password(PASSWORD)
        db.session.commit()
        return user

    return make


@pytest.fixture
def make_invitation_token(app: object) -> Callable[..., str]:
    """Creates invitations and returns the token of their link."""

    def make(role: str = "admin", email: str | None = None) -> str:
        return invitation_actions.create_invitation(role, email, by="tests").rpartition("/")[2]

    return make
