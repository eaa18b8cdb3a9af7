"""A sign-in whose second factor is still missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
import time_machine
from sqlalchemy import select

from webapp.accounts.factors.pending_sign_in import create_pending_sign_in, find_pending_user
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db


@pytest.fixture
def user(make_staff_user: Callable[..., StaffUser]) -> StaffUser:
    make_staff_user("admin")
    return make_staff_user("viewer")


@pytest.mark.parametrize(("seconds", "is_found"), [(-1, False), (0, True), (600, True), (601, False)])
def test_it_works_for_ten_minutes(user: StaffUser, seconds: int, is_found: bool) -> None:
    pending = create_pending_sign_in(user)

    with time_machine.travel(pending.started_at + seconds, tick=False):
        found = find_pending_user(json.loads(json.dumps(pending.dump())))

    assert found == (user if is_found else None)


@pytest.mark.parametrize(
    "values", [{"password_hash": "another"}, {"disabled_at": datetime(2026, 5, 1, tzinfo=UTC)}], ids=str
)
def test_a_changed_password_or_a_disabled_account_ends_it(user: StaffUser, values: dict[str, object]) -> None:
    data = create_pending_sign_in(user).dump()
    for name, value in values.items():
        setattr(user, name, value)
    db.session.commit()

    assert find_pending_user(data) is None


def test_it_belongs_to_its_user(user: StaffUser) -> None:
    data = create_pending_sign_in(user).dump()
    other_id = db.session.scalars(select(StaffUser.id).where(StaffUser.id != user.id)).one()

    assert [find_pending_user([user_id, *data[1:]]) for user_id in (other_id, 999, str(user.id))] == [None] * 3
    assert [find_pending_user(value) for value in (None, [], data[:2])] == [None] * 3


@pytest.mark.parametrize("is_locked", [False, True])
def test_the_user_is_locked_on_request(user: StaffUser, is_locked: bool) -> None:
    data = create_pending_sign_in(user).dump()

    assert find_pending_user(data, **({"is_locked": True} if is_locked else {})) == user

    with db.engine.connect() as other:
        rows = select(StaffUser.role).order_by(StaffUser.role).with_for_update(skip_locked=True)
        unlocked = other.scalars(rows).all()
    assert unlocked == (["admin"] if is_locked else ["admin", "viewer"])
