"""Single-use links: invitations and password resets. Only a hash of the token in a link is stored."""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from flask import current_app
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import delete, func, update

from webapp.accounts import queries as account_queries
from webapp.accounts.models import Invitation
from webapp.core.errors import DomainError, NotFound
from webapp.core.extensions import db

LINK_DAYS = 7
LINK_EXPIRED_MESSAGE = _l("This link has already been used or has expired. Ask an administrator for a new one.")


def hash_token(token: str) -> bytes:
    """Return the hash under which a link's token is stored."""
    return hashlib.sha256(token.encode()).digest()


def create_link(
    role: str,
    email: str | None,
    staff_user_id: int | None = None,
    created_by: int | None = None,
    lifetime: timedelta = timedelta(days=LINK_DAYS),
) -> str:
    """Create a link that works once, within its lifetime; return it. Does not commit.

    :param staff_user_id: the user whose password it resets; without one it is an invitation.
    :param created_by: the administrator who creates it (see `find_link_creator`); the link stops working when they are
        disabled or no longer an administrator.
    """
    token = secrets.token_urlsafe(24)
    db.session.add(
        Invitation(
            token_hash=hash_token(token),
            role=role,
            email=email,
            staff_user_id=staff_user_id,
            created_by=created_by,
            expires_at=datetime.now(UTC) + lifetime,
        )
    )
    return _format_link(token)


def add_emailed_link(invitation_id: int) -> tuple[str, str] | None:
    """Return the email address of an unused invitation and another link to it, for the email. Does not commit.

    The link that was shown still works; using either one uses the invitation. None when it is used, expired or revoked.
    """
    token = secrets.token_urlsafe(24)
    email = db.session.scalar(
        update(Invitation)
        .where(Invitation.id == invitation_id, Invitation.used_at.is_(None), Invitation.expires_at > func.now())
        .values(emailed_token_hash=hash_token(token))
        .returning(Invitation.email)
    )
    return (email, _format_link(token)) if email else None


def _format_link(token: str) -> str:
    return f"{current_app.config['SETTINGS'].public_url}/invitations/{token}"


def find_link_creator(by: str) -> int | None:
    """Return the id of the administrator with this email address, who creates a link; None for a command.

    :raises DomainError: `forbidden` (403) when the user has just been disabled or is no longer an administrator.
    """
    creator = account_queries.find_staff_user_by_email(by)
    if creator is None:
        return None
    if not creator.is_active or creator.role != "admin":
        raise DomainError("forbidden", _("Only an active administrator can create links."), 403)
    return creator.id


class UsedLink(NamedTuple):
    """What a link was created for."""

    role: str
    staff_user_id: int | None
    email: str | None


def consume_link(token: str, is_reset: bool) -> UsedLink:
    """Mark an invitation (or a password reset link) as used. Does not commit.

    Only one of several concurrent calls succeeds.

    :raises NotFound: when it is used, expired or unknown.
    """
    owner = Invitation.staff_user_id
    used_link = db.session.execute(
        update(Invitation)
        .where(
            account_queries.has_token(hash_token(token)),
            Invitation.used_at.is_(None),
            Invitation.expires_at > func.now(),
            account_queries.IS_LINK_CREATOR_ADMIN,
            owner.is_not(None) if is_reset else owner.is_(None),
        )
        .values(used_at=func.now())
        .returning(Invitation.role, Invitation.staff_user_id, Invitation.email)
    ).one_or_none()
    if used_link is None:
        db.session.rollback()
        raise NotFound(LINK_EXPIRED_MESSAGE)
    return UsedLink(used_link.role, used_link.staff_user_id, used_link.email)


def delete_invitations(*emails: str) -> None:
    """Delete the unused invitations of these normalised email addresses. Does not commit."""
    db.session.execute(
        delete(Invitation).where(
            Invitation.email.in_(emails), Invitation.staff_user_id.is_(None), Invitation.used_at.is_(None)
        )
    )


def delete_links_created_by(user_id: int) -> None:
    """Delete the unused links that a user created. Does not commit."""
    db.session.execute(delete(Invitation).where(Invitation.created_by == user_id, Invitation.used_at.is_(None)))


def delete_reset_links(user_id: int, expiring_within: timedelta | None = None) -> None:
    """Delete the unused password reset links of a user. Does not commit.

    :param expiring_within: keep the links that work longer than this.
    """
    links = delete(Invitation).where(Invitation.staff_user_id == user_id, Invitation.used_at.is_(None))
    if expiring_within is not None:
        links = links.where(Invitation.expires_at <= datetime.now(UTC) + expiring_within)
    db.session.execute(links)
