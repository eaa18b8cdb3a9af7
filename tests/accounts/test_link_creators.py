"""Invitations and password reset links work only as long as their creator is an active administrator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text

from webapp.accounts import actions as account_actions
from webapp.accounts import invitation_actions, links
from webapp.accounts import queries as account_queries
from webapp.accounts.models import Invitation, StaffUser
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db

MakeUser = Callable[..., StaffUser]
PASSWORD = "correct horse battery"


@pytest.fixture
def creator(make_staff_user: MakeUser) -> StaffUser:
    """An administrator; another one remains when they are disabled."""
    make_staff_user("admin", email="other@example.com")
    return make_staff_user("admin", email="ann@example.com")


def token_of(link: str) -> str:
    return link.rpartition("/")[2]


def accept(token: str) -> StaffUser:
    return invitation_actions.accept_invitation(token, "Eve", "eve@example.com", PASSWORD, "UTC")


def disable(user_id: int) -> None:
    account_actions.disable_staff_user(user_id, by="other@example.com")


def lower_role(user_id: int) -> None:
    account_actions.change_staff_role(user_id, "manager", by="other@example.com")


def enable(user_id: int) -> None:
    account_actions.enable_staff_user(user_id, by="other@example.com")


def raise_role(user_id: int) -> None:
    account_actions.change_staff_role(user_id, "admin", by="other@example.com")


def disable_and_enable(user_id: int) -> None:
    disable(user_id)
    enable(user_id)


def lower_and_raise_role(user_id: int) -> None:
    lower_role(user_id)
    raise_role(user_id)


@pytest.mark.parametrize("change", [disable, lower_role, disable_and_enable, lower_and_raise_role])
def test_links_die_with_the_account_that_made_them(
    creator: StaffUser, make_staff_user: MakeUser, change: Callable[[int], None]
) -> None:
    viewer = make_staff_user("viewer")
    invitation = token_of(invitation_actions.create_invitation("admin", None, by=creator.email))
    reset = token_of(invitation_actions.create_password_reset_link(viewer.id, by=creator.email))

    change(creator.id)

    with pytest.raises(NotFound):
        accept(invitation)
    with pytest.raises(NotFound):
        invitation_actions.reset_password(reset, PASSWORD)
    assert account_queries.list_unused_invitations() == []


@pytest.mark.parametrize("column", ["disabled_at = now()", "role = 'manager'"])
def test_a_link_created_at_the_moment_of_the_change_does_not_work(creator: StaffUser, column: str) -> None:
    token = token_of(invitation_actions.create_invitation("admin", None, by=creator.email))
    # As if the link had been committed just after the links of the creator were deleted.
    db.session.execute(text(f"update staff_user set {column} where email = 'ann@example.com'"))
    db.session.commit()

    with pytest.raises(NotFound):
        links.consume_link(token, is_reset=False)
    with pytest.raises(NotFound):
        accept(token)
    assert account_queries.list_unused_invitations() == []


@pytest.mark.parametrize(
    ("column", "restore"),
    [
        ("disabled_at = now()", lambda user_id: account_actions.enable_staff_user(user_id, by="other@example.com")),
        (
            "role = 'manager'",
            lambda user_id: account_actions.change_staff_role(user_id, "admin", by="other@example.com"),
        ),
    ],
)
def test_such_a_link_does_not_come_back_with_the_account(
    creator: StaffUser, column: str, restore: Callable[[int], object]
) -> None:
    token = token_of(invitation_actions.create_invitation("admin", None, by=creator.email))
    db.session.execute(text(f"update staff_user set {column} where email = 'ann@example.com'"))
    db.session.commit()

    restore(creator.id)

    with pytest.raises(NotFound):
        accept(token)


def test_links_of_others_and_of_commands_stay(creator: StaffUser) -> None:
    of_other = token_of(invitation_actions.create_invitation("viewer", "eve@example.com", by="other@example.com"))
    invitation_actions.create_first_admin_invitation(by="command line")

    disable(creator.id)

    assert len(account_queries.list_unused_invitations()) == 2
    assert accept(of_other).role == "viewer"


def test_a_user_who_joined_stays_when_the_creator_is_disabled(creator: StaffUser) -> None:
    user = accept(token_of(invitation_actions.create_invitation("viewer", None, by=creator.email)))

    disable(creator.id)

    assert account_queries.find_staff_user_by_email("eve@example.com") == user
    assert db.session.scalars(select(Invitation.created_by)).all() == [creator.id]


@pytest.mark.parametrize("change", [disable, lower_role])
def test_a_former_administrator_creates_no_links(
    creator: StaffUser, make_staff_user: MakeUser, change: Callable[[int], None]
) -> None:
    viewer = make_staff_user("viewer")
    change(creator.id)

    with pytest.raises(DomainError, match="administrator"):
        invitation_actions.create_invitation("admin", None, by=creator.email)
    with pytest.raises(DomainError, match="administrator"):
        invitation_actions.create_password_reset_link(viewer.id, by=creator.email)


@pytest.mark.parametrize("lock", [account_queries.lock_active_admins, lambda: account_queries.lock_staff_user(2)])
def test_the_lock_of_a_user_does_not_block_their_links(creator: StaffUser, lock: Callable[[], object]) -> None:
    # Otherwise two administrators who reset each other's passwords could wait for each other.
    assert creator.id == 2
    lock()

    with db.engine.begin() as other:
        other.execute(text("set local lock_timeout = '100ms'"))
        other.execute(
            text(
                "insert into invitation (token_hash, role, created_by, expires_at)"
                " values ('x', 'viewer', 2, now() + interval '1 day')"
            )
        )


def test_the_list_shows_creator_and_time(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    invitation_actions.create_invitation("viewer", "eve@example.com", by="admin@example.com")
    invitation_actions.create_invitation("viewer", "bob@example.com", by="command line")
    db.session.execute(text("update invitation set created_at = '2026-05-01 12:00Z'"))
    db.session.commit()

    page = client.get("/settings/people").text

    assert "Created by Admin, 1 May 2026, 12:00 UTC" in page
    assert "Created 1 May 2026, 12:00 UTC" in page
