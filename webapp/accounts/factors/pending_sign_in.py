"""A sign-in whose first factor was right and whose second factor is still missing.

Browsers keep it in their signed session, so there is no row and nothing to clean up.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass

from flask import current_app

from webapp.accounts import queries as account_queries
from webapp.accounts.models import StaffUser

PENDING_SECONDS = 600


@dataclass(frozen=True)
class PendingSignIn:
    """A pending sign-in.

    :ivar started_at: seconds since 1970.
    :ivar binding: a hash of the password hash, so that changing the password ends the sign-in.
    """

    user_id: int
    started_at: int
    binding: str

    def dump(self) -> list[str | int]:
        """Return the pending sign-in as JSON values."""
        return [self.user_id, self.started_at, self.binding]


def create_pending_sign_in(user: StaffUser) -> PendingSignIn:
    """Return the pending sign-in of a user whose first factor was right."""
    return PendingSignIn(user.id, int(time.time()), _compute_binding(user))


def find_pending_user(data: object, *, is_locked: bool = False) -> StaffUser | None:
    """Return the active user of a pending sign-in; None if it is malformed or has ended.

    :param data: what `PendingSignIn.dump` has returned.
    :param is_locked: whether to lock the user until the transaction ends. A concurrent change of the password then
        ends the session that the caller starts.
    """
    match data:
        case [int(user_id), int(started_at), str(binding)]:
            find_user = account_queries.lock_staff_user if is_locked else account_queries.find_staff_user
            user = find_user(user_id)
        case _:
            return None
    is_recent = 0 <= time.time() - started_at <= PENDING_SECONDS
    if user is None or not user.is_active or not is_recent:
        return None
    return user if hmac.compare_digest(_compute_binding(user), binding) else None


def _compute_binding(user: StaffUser) -> str:
    key = f"pending sign-in {current_app.config['SECRET_KEY']}".encode()
    return hmac.new(key, f"{user.id} {user.password_hash}".encode(), hashlib.sha256).hexdigest()  # no translation
