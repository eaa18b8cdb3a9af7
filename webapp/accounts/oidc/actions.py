"""Actions on identities at the OpenID Connect provider.

A user is found only by issuer and subject, never by email address: a provider that lies about addresses gets nothing.
"""

from __future__ import annotations

import secrets

from flask_babel import gettext as _
from sqlalchemy import delete, func, update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts import invitation_actions, links, notices
from webapp.accounts import queries as account_queries
from webapp.accounts.actions import lock_existing_staff_user, roll_back_and_raise
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
    if not user.is_active:
        raise DomainError("disabled", _("Your account is disabled. Ask an administrator to enable it."), 422)
    db.session.execute(
        update(OidcIdentity)
        .where(OidcIdentity.issuer == claims.issuer, OidcIdentity.subject == claims.subject)
        .values(last_used_at=func.now())
    )
    db.session.commit()
    return user


def link_identity(user_id: int, claims: OidcClaims, is_new_user: bool = False) -> None:
    """Link an identity with a user, who can then sign in with it. Idempotent.

    The user is notified by email.

    :param is_new_user: True for no notice, since the user has just joined with this identity.
    :raises DomainError: `identity_taken` when it is linked with another user, or the user with another identity.
    """
    user = lock_existing_staff_user(user_id)
    statement = (
        insert(OidcIdentity)
        .values(staff_user_id=user_id, issuer=claims.issuer, subject=claims.subject, label=claims.label)
        .on_conflict_do_nothing()
        .returning(OidcIdentity.id)
    )
    if db.session.scalar(statement) is not None:
        record_audit_entry(user.email, "identity.linked", user.email, issuer=claims.issuer, account=claims.label)
        if not is_new_user:
            notices.notify_second_factor_changed(user, "identity.linked")
    else:
        _check_linked_with(user, claims)
    db.session.commit()
    notices.enqueue_account_emails()


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
    label = db.session.scalar(
        delete(OidcIdentity)
        .where(OidcIdentity.staff_user_id == user_id, OidcIdentity.issuer == issuer)
        .returning(OidcIdentity.label)
    )
    if label is not None:
        record_audit_entry(user.email, "identity.unlinked", user.email, issuer=issuer, account=label)
        notices.notify_second_factor_changed(user, "identity.unlinked")
    db.session.commit()
    notices.enqueue_account_emails()


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
    :raises DomainError: as `get_invitation_for_claims`; `email_taken` when there is a user with this address.
    """
    invitation = get_invitation_for_claims(token, claims)
    # A random password, so that signing in with it takes as long as for other users and always fails.
    password = secrets.token_urlsafe(32)
    user = invitation_actions.accept_invitation(token, name, invitation.email or email, password, time_zone)
    link_identity(user.id, claims, is_new_user=True)
    return user
