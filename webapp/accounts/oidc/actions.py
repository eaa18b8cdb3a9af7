"""Actions on identities at the OpenID Connect provider.

A user is found only by issuer and subject, never by email address: a provider that lies about addresses gets nothing.
"""

from __future__ import annotations

import secrets

from flask_babel import gettext as _
from sqlalchemy import delete, func, update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts import invitation_actions, links, notices, staff_sessions
from webapp.accounts import queries as account_queries
from webapp.accounts.actions import check_is_active, lock_existing_staff_user, roll_back_and_raise
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.models import Invitation, StaffUser
from webapp.accounts.oidc import queries as oidc_queries
from webapp.accounts.oidc.models import OidcIdentity
from webapp.accounts.oidc.provider import OidcClaims
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db


def find_user_for_claims(claims: OidcClaims) -> StaffUser:
    """Return the user with whom an identity is linked, and record its use.

    :raises DomainError: `identity_unknown` when it is linked with no user; `disabled` when the user is disabled.
    """
    user = oidc_queries.find_user_by_identity(claims.issuer, claims.subject)
    if user is None:
        raise DomainError("identity_unknown", _("No user of Onecode is linked with this account."), 422)
    check_is_active(user)
    db.session.execute(
        update(OidcIdentity)
        .where(OidcIdentity.issuer == claims.issuer, OidcIdentity.subject == claims.subject)
        .values(last_used_at=func.now())
    )
    db.session.commit()
    return user


def link_identity(user_id: int, claims: OidcClaims) -> None:
    """Link an identity with a user, who can then sign in with it, and notify the user by email. Idempotent.

    :raises DomainError: `identity_taken` when it is linked with another user, or the user with another identity.
    """
    user = lock_existing_staff_user(user_id)
    if _add_identity(user, claims):
        notices.notify_second_factor_changed(user, "identity.linked")
    db.session.commit()
    notices.enqueue_account_emails()


def _add_identity(user: StaffUser, claims: OidcClaims) -> bool:
    """Add an identity to a user; return whether it was added, or False if the user had it. Does not commit."""
    statement = (
        insert(OidcIdentity)
        .values(staff_user_id=user.id, issuer=claims.issuer, subject=claims.subject, label=claims.label)
        .on_conflict_do_nothing()
        .returning(OidcIdentity.id)
    )
    if db.session.scalar(statement) is None:
        _check_linked_with(user, claims)
        return False
    # Not the label: an entry would keep a name or an email address after the account is erased.
    record_audit_entry(user.email, "identity.linked", user.email, issuer=claims.issuer, account=claims.subject)
    return True


def _check_linked_with(user: StaffUser, claims: OidcClaims) -> None:
    owner = oidc_queries.find_user_by_identity(claims.issuer, claims.subject)
    if owner is None:
        message = _("You are linked with another account of this provider. Unlink it first.")
    elif owner.id != user.id:
        message = _("This account is linked with another user of Onecode.")
    else:
        return
    roll_back_and_raise(DomainError("identity_taken", message))


def unlink_identity(user_id: int, issuer: str) -> None:
    """Remove the identity of a user at a provider, and notify the user by email. Idempotent."""
    user = lock_existing_staff_user(user_id)
    subject = db.session.scalar(
        delete(OidcIdentity)
        .where(OidcIdentity.staff_user_id == user_id, OidcIdentity.issuer == issuer)
        .returning(OidcIdentity.subject)
    )
    if subject is not None:
        record_audit_entry(user.email, "identity.unlinked", user.email, issuer=issuer, account=subject)
        notices.notify_second_factor_changed(user, "identity.unlinked")
    db.session.commit()
    notices.enqueue_account_emails()


def unlink_all_identities(user_id: int, by: str) -> StaffUser:
    """Remove all identities of a user, and end their sessions. Idempotent.

    :param by: the administrator.
    :raises NotFound: when there is no user with this id.
    """
    user = lock_existing_staff_user(user_id)
    identities = delete(OidcIdentity).where(OidcIdentity.staff_user_id == user_id)
    unlinked = db.session.execute(identities.returning(OidcIdentity.issuer, OidcIdentity.subject)).all()
    for issuer, subject in unlinked:
        record_audit_entry(by, "identity.unlinked", user.email, issuer=issuer, account=subject)
    if unlinked:
        staff_sessions.delete_user_sessions_and_devices(user_id)
        notices.notify_second_factor_changed(user, "identity.unlinked")
    db.session.commit()
    notices.enqueue_account_emails()
    return user


def get_invitation_for_claims(token: str, claims: OidcClaims) -> Invitation:
    """Return the invitation with this token, if the identity may accept it.

    :raises NotFound: when the link is used, expired or unknown.
    :raises DomainError: `identity_taken` when the identity has a user; `email_mismatch` when the invitation is for an
        email address that the provider does not confirm.
    """
    invitation = account_queries.find_unused_invitation(links.hash_token(token))
    if invitation is None or invitation.staff_user_id is not None:
        raise NotFound(links.LINK_EXPIRED_MESSAGE)
    if oidc_queries.find_user_by_identity(claims.issuer, claims.subject) is not None:
        message = _("This account is linked with another user of Onecode. Sign in with it instead.")
        raise DomainError("identity_taken", message)
    if invitation.email and invitation.email != get_verified_email(claims):
        message = _(
            "This invitation is for another email address, or the provider has not verified yours. "
            "Choose a password instead, or ask for a new invitation."
        )
        raise DomainError("email_mismatch", message, 422)
    return invitation


def get_verified_email(claims: OidcClaims) -> str | None:
    """Return the normalised email address, if the provider says that it is verified."""
    try:
        return normalise_email(claims.email) if claims.is_email_verified else None
    except InvalidInput:
        return None


def accept_invitation_with_identity(token: str, claims: OidcClaims, name: str, email: str, time_zone: str) -> StaffUser:
    """Create the user of an invitation, who signs in with the provider and has no known password.

    :param email: the email address of the user; that of the invitation, if it has one.
    :raises NotFound: when the link is used, expired or unknown.
    :raises DomainError: as `get_invitation_for_claims`; `email_taken` when there is a user with this address. The link
        then still works.
    """
    invitation = get_invitation_for_claims(token, claims)
    # A random password, so that signing in with it takes as long as for other users and always fails.
    password = secrets.token_urlsafe(32)
    user = invitation_actions.create_invited_user(token, name, invitation.email or email, password, time_zone)
    _add_identity(user, claims)
    db.session.commit()
    notices.enqueue_account_emails()
    return user
