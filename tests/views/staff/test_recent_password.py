"""The password is asked for again before certain actions."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from tests.support.accounts import PASSWORD
from tests.support.sessions import start_session
from webapp.accounts.models import ApiKey, AuditEntry, StaffSession, StaffUser
from webapp.core.extensions import db

MakeUser = Callable[..., StaffUser]
# The actions that need it, for a viewer with id 2 and a customer with id 1.
PROTECTED = [
    ("/settings/api-keys", {"name": "Till", "scopes": "read"}, "/settings/api-keys"),
    ("/settings/people", {"role": "viewer"}, "/settings/people"),
    ("/settings/people/2", {"role": "manager"}, "/settings/people/2"),
    ("/settings/people/2/new-password", {}, "/settings/people/2"),
    ("/settings/people/2/disable", {}, "/settings/people/2"),
    ("/settings/people/2/enable", {}, "/settings/people/2"),
    ("/settings/people/2/erase", {}, "/settings/people/2/erase"),
    ("/settings/keys/personal_code/renew", {}, "/settings/keys"),
    ("/settings/keys/personal_code/1/retire", {}, "/settings/keys"),
    ("/customers/1/erase", {}, "/customers/1/erase"),
    ("/settings/profile/sessions/1/end", {}, "/settings/profile/sessions"),
    ("/settings/profile/sessions/end-others", {}, "/settings/profile/sessions"),
]
# Tested with the second factors that they show or change.
FACTOR_VIEWS = {
    f"staff.accounts.{name}"
    for name in (
        "add_passkey",
        "app_setup",
        "create_recovery_codes",
        "link_identity",
        "new_passkey",
        "remove_app",
        "remove_passkey",
        "reset_second_factor",
        "start_app_setup",
        "start_link",
        "two_step",
        "unlink_identities",
        "unlink_identity",
    )
}


@pytest.fixture
def admin(client: FlaskClient, make_user_with_password: MakeUser) -> FlaskClient:
    """A client in which an administrator signed in an hour ago."""
    start_session(client, make_user_with_password("admin"))
    db.session.execute(update(StaffSession).values(authenticated_at=func.now() - timedelta(hours=1)))
    db.session.commit()
    return client


def count_keys() -> int:
    return db.session.scalar(select(func.count()).select_from(ApiKey)) or 0


@pytest.mark.parametrize(("path", "values", "page"), PROTECTED)
def test_the_password_is_asked_for_and_the_action_continues(
    admin: FlaskClient, make_staff_user: MakeUser, make_customer: Callable[..., object],
    path: str, values: dict[str, str], page: str,
) -> None:  # fmt: skip
    # Only a disabled user can be enabled or erased.
    disabled_at = datetime.now(UTC) if path.endswith(("2/enable", "2/erase")) else None
    make_staff_user("viewer", disabled_at=disabled_at), make_customer()
    assert admin.get(page).status_code == 200

    response = admin.post(path, data=values)

    assert response.status_code == 403
    assert "Confirm your password" in response.text
    assert f'href="{page}"' in response.text
    assert not db.session.scalars(select(AuditEntry.id)).all()
    for name, value in values.items():
        assert f'<input type="hidden" name="{name}" value="{value}">' in response.text
    assert 'action="/sign-out"' in response.text

    confirmed = admin.post(path, data={**values, "recent_password": PASSWORD})

    actions = db.session.scalars(select(AuditEntry.action).order_by(AuditEntry.id)).all()
    assert actions[0] == "password.confirmed"
    if path.endswith(("/retire", "/1/end")):
        # Whether the key has another version, and the session this number, depends on other tests.
        assert confirmed.status_code in (302, 404)
    else:
        assert confirmed.status_code in (200, 302)
        assert len(actions) == 2


def test_every_protected_view_is_in_this_list(app: Flask) -> None:
    urls = app.url_map.bind("")
    tested = {urls.match(path, "POST")[0] for path, _values, _page in PROTECTED}
    protected = {name for name, view in app.view_functions.items() if getattr(view, "requires_recent_password", False)}
    assert protected == tested | FACTOR_VIEWS


def test_the_password_is_asked_for_once_in_fifteen_minutes(admin: FlaskClient) -> None:
    values = {"name": "Till", "scopes": "read"}
    assert admin.post("/settings/api-keys", data={**values, "recent_password": PASSWORD}).status_code == 200
    assert admin.post("/settings/api-keys", data={**values, "name": "Shop"}).status_code == 200
    assert count_keys() == 2
    db.session.execute(update(StaffSession).values(authenticated_at=func.now() - timedelta(minutes=16)))
    db.session.commit()
    assert admin.post("/settings/api-keys", data=values).status_code == 403


def test_confirming_replaces_the_cookie(app: Flask, admin: FlaskClient) -> None:
    former = admin.get_cookie(app.config["SESSION_COOKIE_NAME"])
    assert former is not None
    admin.post("/settings/api-keys", data={"name": "Till", "scopes": "read", "recent_password": PASSWORD})
    thief = app.test_client()
    thief.set_cookie(former.key, former.value)
    assert [client.get("/settings/profile").status_code for client in (admin, thief)] == [200, 302]


def test_signing_in_counts_as_recent(client: FlaskClient, make_user_with_password: MakeUser) -> None:
    client.post("/sign-in", data={"email": make_user_with_password().email, "password": PASSWORD})
    assert client.post("/settings/api-keys", data={"name": "Till", "scopes": "read"}).status_code == 200


@pytest.mark.parametrize("password", ["wrong", "", "\0", "x" * 100_000])
def test_after_a_wrong_password_nothing_is_done_or_lost(admin: FlaskClient, password: str) -> None:
    values = {"name": '"Till" & <co>', "scopes": ["read", "redeem"]}
    response = admin.post("/settings/api-keys", data={**values, "recent_password": password})
    assert response.status_code == 422
    assert "invalid-feedback" in response.text
    assert re.findall('<input type="hidden" name="(name|scopes)" value="([^"]*)">', response.text) == [
        ("name", "&#34;Till&#34; &amp; &lt;co&gt;"),
        ("scopes", "read"),
        ("scopes", "redeem"),
    ]
    assert "x" * 100 not in response.text
    # The field of the page for password managers is not sent again.
    again = admin.post("/settings/api-keys", data={**values, "recent_password": password, "username": "admin"})
    assert again.text.count('name="username"') == 1
    assert count_keys() == 0


def test_wrong_passwords_are_limited_in_each_session(
    app: Flask, admin: FlaskClient, make_user_with_password: MakeUser
) -> None:
    values = {"name": "Till", "scopes": "read", "recent_password": "wrong"}
    statuses = [admin.post("/settings/api-keys", data=values).status_code for _ in range(11)]
    assert statuses == [422] * 10 + [429]
    response = admin.post("/settings/api-keys", data={**values, "recent_password": PASSWORD})
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0
    assert '<input type="hidden" name="name" value="Till">' in response.text
    # The form that changes the password shares the limit.
    change = {"current": "wrong", "password": "a brand new one", "confirm": "a brand new one"}
    assert admin.post("/settings/profile/password", data=change).status_code == 429
    assert count_keys() == 0
    other = app.test_client()
    start_session(other, db.session.scalars(select(StaffUser)).one())
    assert other.post("/settings/api-keys", data={"name": "Till", "scopes": "read"}).status_code == 200


def test_a_session_that_ends_meanwhile_leads_to_the_sign_in_page(admin: FlaskClient) -> None:
    db.session.execute(update(StaffSession).values(last_used_at=func.now() - timedelta(days=1)))
    db.session.commit()
    values = {"name": "Till", "scopes": "read", "recent_password": PASSWORD}
    assert admin.post("/settings/api-keys", data=values).location == "/sign-in"
    assert count_keys() == 0


def test_the_role_is_checked_first(client: FlaskClient, make_user_with_password: MakeUser) -> None:
    start_session(client, make_user_with_password("manager"))
    db.session.execute(update(StaffSession).values(authenticated_at=func.now() - timedelta(hours=1)))
    db.session.commit()
    assert "Confirm your password" not in client.post("/settings/api-keys").text


def test_the_confirmation_needs_the_csrf_token(csrf_client: FlaskClient, make_user_with_password: MakeUser) -> None:
    start_session(csrf_client, make_user_with_password("admin"))
    db.session.execute(update(StaffSession).values(authenticated_at=func.now() - timedelta(hours=1)))
    db.session.commit()
    values = {"name": "Till", "scopes": "read", "recent_password": PASSWORD}
    assert csrf_client.post("/settings/api-keys", data=values).status_code == 400
    page = csrf_client.get("/settings/api-keys").text
    token = page.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    asked = csrf_client.post("/settings/api-keys", data={"name": "Till", "scopes": "read", "csrf_token": token})
    # The other one is that of the button that signs out.
    assert asked.text.partition('action="/sign-out"')[0].count('name="csrf_token"') == 1
    assert csrf_client.post("/settings/api-keys", data={**values, "csrf_token": token}).status_code == 200
