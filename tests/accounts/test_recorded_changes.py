"""Every change of an account is in the audit log, and the emails about it are sent at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from flask import Flask
from sqlalchemy import delete, select

from tests.support.accounts import PASSWORD
from tests.support.authenticator import SoftwareAuthenticator
from tests.support.factors import add_app, code_now
from tests.support.sessions import TEST_CLIENT
from webapp.accounts import (
    actions,
    api_key_actions,
    invitation_actions,
    password_reset_actions,
    session_actions,
    sign_in_actions,
)
from webapp.accounts.factors import actions as factor_actions
from webapp.accounts.factors import passkey_actions, passkeys, recovery_code_actions, totp_actions
from webapp.accounts.factors import queries as factor_queries
from webapp.accounts.models import AccountEmail, AuditEntry, StaffUser
from webapp.accounts.oidc import actions as oidc_actions
from webapp.accounts.oidc.provider import OidcClaims
from webapp.core.extensions import db, huey

PAST = datetime(2026, 1, 1, tzinfo=UTC)
ADMIN, USER = "admin@example.com", "viewer@example.com"
CLAIMS = OidcClaims("https://id.example.com", "7", USER, True, "Viewer", False)
IDENTITY = {"issuer": CLAIMS.issuer, "account": CLAIMS.subject}


class Change(NamedTuple):
    """A change of a user in two steps, with the audit entry and the emails of the second one.

    :ivar emails: recipient, kind and detail of each email.
    """

    prepare: Callable[[StaffUser], Any]
    act: Callable[[StaffUser, Any], object]
    entry: tuple[str, str, str, dict[str, Any] | None] | None
    emails: list[tuple[str, str, dict[str, Any] | None]]


def add_passkey(user: StaffUser, _prepared: object = None) -> None:
    options, challenge = passkeys.build_registration_options(user.email, user.name, [])
    passkey_actions.add_passkey(user.id, "Laptop", SoftwareAuthenticator().create(options), challenge)


def nothing(_user: StaffUser) -> None:
    return None


def factor_change(change: str) -> list[tuple[str, str, dict[str, Any] | None]]:
    return [(USER, "second_factor_changed", {"change": change})]


def invite(role: str) -> str:
    return invitation_actions.create_invitation(role, None, by=ADMIN).rpartition("/")[2]


NEW_ADMIN = {"user_id": 4, "name": "New", "email": "new@example.com", "by": "new@example.com"}
CHANGES = {
    "app added": Change(
        lambda user: totp_actions.start_totp_setup(user.id),
        lambda user, secret: totp_actions.confirm_totp(user.id, code_now(secret)),
        (USER, "totp.added", USER, None),
        factor_change("totp.added"),
    ),
    "app removed": Change(
        add_app,
        lambda user, _: factor_actions.remove_totp(user.id),
        (USER, "totp.removed", USER, None),
        factor_change("totp.removed"),
    ),
    "no app removed": Change(nothing, lambda user, _: factor_actions.remove_totp(user.id), None, []),
    "passkey added": Change(
        nothing, add_passkey, (USER, "passkey.added", USER, {"name": "Laptop"}), factor_change("passkey.added")
    ),
    "passkey removed": Change(
        add_passkey,
        lambda user, _: factor_actions.remove_passkey(user.id, factor_queries.list_passkeys(user.id)[0].id),
        (USER, "passkey.removed", USER, {"name": "Laptop"}),
        factor_change("passkey.removed"),
    ),
    "factors reset": Change(
        add_app,
        lambda user, _: factor_actions.reset_second_factor(user.id, by=ADMIN),
        (ADMIN, "second_factor.reset", USER, None),
        factor_change("second_factor.reset"),
    ),
    "recovery codes created": Change(
        nothing,
        lambda user, _: recovery_code_actions.replace_recovery_codes(user.id),
        (USER, "recovery_codes.created", USER, None),
        factor_change("recovery_codes.created"),
    ),
    "recovery code used": Change(
        lambda user: recovery_code_actions.replace_recovery_codes(user.id),
        lambda user, codes: recovery_code_actions.use_recovery_code(user.id, codes[0]),
        (USER, "recovery_code.used", USER, {"left": 9}),
        factor_change("recovery_code.used"),
    ),
    "identity linked": Change(
        nothing,
        lambda user, _: oidc_actions.link_identity(user.id, CLAIMS),
        (USER, "identity.linked", USER, IDENTITY),
        factor_change("identity.linked"),
    ),
    "identity linked before": Change(
        lambda user: oidc_actions.link_identity(user.id, CLAIMS),
        lambda user, _: oidc_actions.link_identity(user.id, CLAIMS),
        None,
        [],
    ),
    "identity unlinked": Change(
        lambda user: oidc_actions.link_identity(user.id, CLAIMS),
        lambda user, _: oidc_actions.unlink_identity(user.id, CLAIMS.issuer),
        (USER, "identity.unlinked", USER, IDENTITY),
        factor_change("identity.unlinked"),
    ),
    "no identity unlinked": Change(
        nothing, lambda user, _: oidc_actions.unlink_identity(user.id, CLAIMS.issuer), None, []
    ),
    "identities unlinked": Change(
        lambda user: oidc_actions.link_identity(user.id, CLAIMS),
        lambda user, _: oidc_actions.unlink_all_identities(user.id, by=ADMIN),
        (ADMIN, "identity.unlinked", USER, IDENTITY),
        factor_change("identity.unlinked"),
    ),
    "no identities unlinked": Change(
        nothing, lambda user, _: oidc_actions.unlink_all_identities(user.id, by=ADMIN), None, []
    ),
    "password changed": Change(
        nothing,
        lambda user, _: sign_in_actions.change_own_password(user.id, PASSWORD, "a brand new one"),
        (USER, "password.changed", USER, None),
        [(USER, "password_changed", None)],
    ),
    "password reset": Change(
        lambda user: invitation_actions.create_password_reset_link(user.id, by=ADMIN).rpartition("/")[2],
        lambda _, token: invitation_actions.reset_password(token, "a brand new one"),
        (USER, "password.reset", USER, None),
        [(USER, "password_reset", None)],
    ),
    "reset requested": Change(
        nothing,
        lambda user, _: password_reset_actions.request_password_reset(user.email),
        None,
        [(USER, "reset_link", None)],
    ),
    "role changed": Change(
        nothing,
        lambda user, _: actions.change_staff_role(user.id, "manager", by=ADMIN),
        (ADMIN, "staff.role_changed", USER, {"before": "viewer", "now": "manager"}),
        [],
    ),
    "administrator added": Change(
        nothing,
        lambda user, _: actions.change_staff_role(user.id, "admin", by=ADMIN),
        (ADMIN, "staff.role_changed", USER, {"before": "viewer", "now": "admin"}),
        [
            (email, "admin_added", {"user_id": 2, "name": "Viewer", "email": USER, "by": ADMIN})
            for email in (ADMIN, USER)
        ],
    ),
    "administrator joined": Change(
        lambda _: invite("admin"),
        lambda _, token: invitation_actions.accept_invitation(token, "New", "new@example.com", PASSWORD, "UTC"),
        ("new@example.com", "staff.joined", "new@example.com", {"role": "admin"}),
        [(ADMIN, "admin_added", NEW_ADMIN)],
    ),
    "viewer joined": Change(
        lambda _: invite("viewer"),
        lambda _, token: invitation_actions.accept_invitation(token, "New", "new@example.com", PASSWORD, "UTC"),
        ("new@example.com", "staff.joined", "new@example.com", {"role": "viewer"}),
        [],
    ),
    "administrator joined with an identity": Change(
        lambda _: invite("admin"),
        lambda _, token: oidc_actions.accept_invitation_with_identity(token, CLAIMS, "New", "new@example.com", "UTC"),
        ("new@example.com", "identity.linked", "new@example.com", IDENTITY),
        [(ADMIN, "admin_added", NEW_ADMIN)],
    ),
    "key created": Change(
        nothing,
        lambda user, _: api_key_actions.create_api_key(" Till ", ["read", "redeem"], by=user.email),
        (USER, "api_key.created", "Till", {"scopes": ["read", "redeem"]}),
        [(ADMIN, "api_key_created", {"name": "Till", "scopes": ["read", "redeem"], "by": USER})],
    ),
    "signed in with a new browser": Change(
        nothing,
        lambda user, _: session_actions.start_staff_session(user.id, TEST_CLIENT, method="password"),
        (USER, "staff.signed_in", USER, {"method": "password"}),
        [(USER, "new_device", {"device": TEST_CLIENT.user_agent})],
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_recorded_and_its_emails_are_enqueued(
    app: Flask, make_user_with_password: Callable[..., StaffUser], change: Change
) -> None:
    make_user_with_password("admin", email=ADMIN)
    user = make_user_with_password("viewer", email=USER, last_sign_in_at=PAST)
    make_user_with_password("admin", email="disabled@example.com", disabled_at=PAST)
    prepared = change.prepare(user)
    db.session.execute(delete(AccountEmail))
    db.session.commit()
    last_entry = db.session.scalars(select(AuditEntry.id).order_by(AuditEntry.id.desc()).limit(1)).first() or 0
    huey.storage.flush_queue()

    change.act(user, prepared)
    db.session.rollback()

    columns = (AuditEntry.actor, AuditEntry.action, AuditEntry.subject, AuditEntry.detail)
    entries = db.session.execute(select(*columns).where(AuditEntry.id > last_entry).order_by(AuditEntry.id)).all()
    assert (tuple(entries[-1]) if entries else None) == change.entry
    emails = db.session.execute(
        select(StaffUser.email, AccountEmail.kind, AccountEmail.detail)
        .join(StaffUser, StaffUser.id == AccountEmail.staff_user_id)
        .order_by(StaffUser.id)
    )
    assert [tuple(email) for email in emails] == change.emails
    assert huey.storage.queue_size() == bool(change.emails)


def test_the_email_of_an_invitation_is_enqueued(app: Flask) -> None:
    invitation_actions.create_invitation("viewer", "new@example.com", by="tests", is_emailed=True)

    entry = db.session.scalars(select(AuditEntry)).one()
    email = db.session.scalars(select(AccountEmail)).one()
    assert (entry.action, entry.subject, entry.detail) == (
        "invitation.created",
        "new@example.com",
        {"role": "viewer", "emailed": "yes"},
    )
    assert (email.kind, email.staff_user_id, huey.storage.queue_size()) == ("invitation", None, 1)
