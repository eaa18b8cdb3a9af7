"""Lists of staff users, invitations and API keys."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask import Flask
from sqlalchemy import func, select, update

from webapp.accounts import api_key_actions, invitation_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.models import ApiKey, Invitation, StaffUser
from webapp.core.extensions import db

StaffUserFactory = Callable[..., StaffUser]
PAST = datetime(2026, 1, 1, tzinfo=UTC)


def test_active_users_come_first_sorted_by_name(make_staff_user: StaffUserFactory) -> None:
    for name, disabled_at in (("bob", None), ("Ann", PAST), ("Zoe", None), ("Cid", None), ("ada", PAST)):
        make_staff_user("viewer", email=f"{name}@example.com", disabled_at=disabled_at).name = name
    db.session.commit()

    assert [user.name for user in account_queries.list_staff_users()] == ["bob", "Cid", "Zoe", "ada", "Ann"]


def test_active_api_keys_come_first_newest_first(app: Flask) -> None:
    for name in "ABCD":
        api_key_actions.create_api_key(name, ["read"], by="tests")
    db.session.execute(update(ApiKey).where(ApiKey.name.in_(("C", "D"))).values(revoked_at=func.now()))

    assert [key.name for key in account_queries.list_api_keys()] == ["B", "A", "D", "C"]


def test_the_working_api_keys_of_a_user_are_listed_by_name(app: Flask) -> None:
    for name, by in (("Zoo", "eve"), ("app", "eve"), ("Kiosk", "ann"), ("Expired", "eve"), ("Revoked", "eve")):
        api_key_actions.create_api_key(name, ["read"], by=f"{by}@example.com")
    db.session.execute(update(ApiKey).where(ApiKey.name == "Expired").values(expires_at=func.now()))
    db.session.execute(update(ApiKey).where(ApiKey.name == "Revoked").values(revoked_at=func.now()))

    assert account_queries.list_working_api_keys_of("eve@example.com") == ["app", "Zoo"]


def test_the_invitations_that_can_be_used_are_listed_newest_first(app: Flask) -> None:
    for name in "abcd":
        invitation_actions.create_invitation("viewer", f"{name}@example.com", by="tests")
    db.session.execute(update(Invitation).where(Invitation.email == "b@example.com").values(used_at=func.now()))
    db.session.execute(update(Invitation).where(Invitation.email == "c@example.com").values(expires_at=func.now()))

    emails = [invitation.email for invitation in account_queries.list_unused_invitations()]

    assert emails == ["d@example.com", "a@example.com"]


def test_locked_users_are_reloaded_and_stay_locked_until_the_transaction_ends(
    make_staff_user: StaffUserFactory,
) -> None:
    admin, other_admin, viewer = (
        make_staff_user(role, email=f"{n}@example.com") for n, role in enumerate(("admin", "admin", "viewer"))
    )
    make_staff_user("admin", email="gone@example.com", disabled_at=PAST)
    ids = admin.id, other_admin.id, viewer.id
    assert viewer.name == "Viewer"
    with db.engine.begin() as other:
        other.execute(update(StaffUser).values(name="Changed"))

    locked = account_queries.lock_staff_user(ids[2])

    assert locked is not None
    assert locked.name == "Changed"
    with db.engine.connect() as other:
        unlocked = select(StaffUser.id).where(StaffUser.disabled_at.is_(None)).with_for_update(skip_locked=True)
        assert set(other.scalars(unlocked)) == {ids[0], ids[1]}
        other.rollback()
        assert account_queries.lock_active_admins() == [ids[0], ids[1]]
        assert other.scalars(unlocked).all() == []


def test_names_of_several_users_are_omitted(make_staff_user: StaffUserFactory) -> None:
    for name, email in (("Ann", "a@example.com"), ("Bob", "b@example.com"), ("Ann", "c@example.com")):
        make_staff_user("viewer", email=email).name = name
    db.session.commit()

    assert account_queries.load_staff_names() == {"b@example.com": "Bob"}


@pytest.mark.parametrize(
    "name", ["ann lee", "ANN  LEE", "Annlee", "Ａnn Lee", "a@example.com", "API key Till", "api key"]
)
def test_names_that_could_be_mistaken_for_another_are_omitted(make_staff_user: StaffUserFactory, name: str) -> None:
    make_staff_user("admin", email="a@example.com").name = "Ann Lee"
    make_staff_user("manager", email="eve@example.com").name = name
    db.session.commit()

    assert "eve@example.com" not in account_queries.load_staff_names()


@pytest.mark.parametrize(
    ("role", "disabled_at", "expected"), [("admin", None, True), ("admin", PAST, False), ("manager", None, False)]
)
def test_only_an_active_administrator_counts(
    make_staff_user: StaffUserFactory, role: str, disabled_at: datetime | None, expected: bool
) -> None:
    make_staff_user(role, disabled_at=disabled_at)

    assert account_queries.has_active_admin() is expected
