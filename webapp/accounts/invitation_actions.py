"""Actions on invitations and password reset links."""

from __future__ import annotations

from typing import NamedTuple

from flask_babel import gettext as _
from sqlalchemy import delete, func, update
from sqlalchemy.dialects.postgresql import insert

from webapp.accounts import links, notices, passwords, staff_sessions
from webapp.accounts import queries as account_queries
from webapp.accounts.actions import lock_existing_staff_user, roll_back_and_raise
from webapp.accounts.audit import record_audit_entry
from webapp.accounts.models import ROLES, AccountEmail, Invitation, StaffUser
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db


def create_invitation(role: str, email: str | None, by: str, *, is_emailed: bool = False) -> str:
    """Create an invitation; return its link.

    The link is not stored. It works once, within `links.LINK_DAYS`. Earlier links for this email address stop working.

    :param is_emailed: whether to email another link to the address, too.
    :raises InvalidInput: when the role is unknown, the email address is invalid, or a user with it exists; also when it
        is to be emailed and there is no email address or no relay.
    :raises DomainError: `forbidden` when `by` is a user, but no active administrator.
    """
    if role not in ROLES:
        message = _("Choose one of these roles: %(roles)s.", roles=", ".join(ROLES))
        raise InvalidInput(FieldError("role", "role_invalid", message))
    email = normalise_email(email) if email else None
    if email and account_queries.find_staff_user_by_email(email):
        message = _("A user with this email address already exists. Create a password reset link instead.")
        raise InvalidInput(FieldError("email", "email_taken", message))
    created_by = links.find_link_creator(by)
    if is_emailed:
        _check_can_be_emailed(email)
    if email:
        links.delete_invitations(email)
    link = links.create_link(role, email, created_by=created_by)
    record_audit_entry(by, "invitation.created", email or "", role=role, **({"emailed": "yes"} if is_emailed else {}))
    if is_emailed:
        _add_invitation_email(link)
    db.session.commit()
    notices.enqueue_account_emails()
    return link


def _check_can_be_emailed(email: str | None) -> None:
    if not email:
        raise InvalidInput(FieldError("email", "email_missing", _("Enter the email address to send the link to.")))
    if not notices.can_email_users():
        message = _("No relay is set, so no email can be sent. Create the link without an email and send it yourself.")
        raise InvalidInput(FieldError("is_emailed", "no_relay", message))


def _add_invitation_email(link: str) -> None:
    invitation = account_queries.find_unused_invitation(links.hash_token(link.rpartition("/")[2]))
    if invitation is not None:
        db.session.add(AccountEmail(kind="invitation", invitation_id=invitation.id))


class EmailedLink(NamedTuple):
    """The link in an email, and its recipient."""

    email: str
    link: str


def create_emailed_link(invitation_id: int) -> EmailedLink | None:
    """Create the link for the email of an invitation; None when it was used or revoked, or has expired.

    The link of an earlier attempt to send it stops working.
    """
    created = links.add_emailed_link(invitation_id)
    db.session.commit()
    return None if created is None else EmailedLink(*created)


def create_first_admin_invitation(by: str) -> str:
    """Create the invitation of the first administrator; return its link.

    Earlier unused invitations of an administrator without an email address stop working.
    """
    db.session.execute(
        delete(Invitation).where(
            Invitation.role == "admin",
            Invitation.email.is_(None),
            Invitation.staff_user_id.is_(None),
            Invitation.used_at.is_(None),
        )
    )
    return create_invitation("admin", None, by)


def create_password_reset_link(user_id: int, by: str) -> str:
    """Create a password reset link, which works once.

    Earlier links of this user stop working.

    :raises NotFound: when there is no user with this id.
    :raises DomainError: `disabled` when the user is disabled; `forbidden` when `by` is a user, but no active
        administrator.
    """
    created_by = links.find_link_creator(by)
    user = lock_existing_staff_user(user_id)
    if not user.is_active:
        raise DomainError("disabled", _("The account of %(name)s is disabled. Enable it first.", name=user.name))
    links.delete_reset_links(user.id)
    link = links.create_link(user.role, user.email, user.id, created_by)
    record_audit_entry(by, "password.link_created", user.email)
    db.session.commit()
    return link


def withdraw_invitation(invitation_id: int, by: str) -> None:
    """Withdraw an invitation that was not used yet. Idempotent."""
    withdrawn_invitation = db.session.execute(
        delete(Invitation)
        .where(Invitation.id == invitation_id, Invitation.used_at.is_(None))
        .returning(Invitation.email, Invitation.role)
    ).one_or_none()
    if withdrawn_invitation:
        record_audit_entry(by, "invitation.withdrawn", withdrawn_invitation.email or "", role=withdrawn_invitation.role)
    db.session.commit()


def accept_invitation(token: str, name: str, email: str, password: str, time_zone: str) -> StaffUser:
    """Accept an invitation: create the user.

    Two requests with the same link at the same time create one user.

    :param email: as entered.
    :raises NotFound: when the link is used, expired or unknown, or resets a password.
    :raises InvalidInput: when the email address is invalid, taken or not the one that was invited, or the password is
        easy to guess; the link then still works.
    """
    user = create_invited_user(token, name, email, password, time_zone)
    db.session.commit()
    notices.enqueue_account_emails()
    return user


def create_invited_user(token: str, name: str, email: str, password: str, time_zone: str) -> StaffUser:
    """Create the user of an invitation, as `accept_invitation`. Does not commit."""
    unused_invitation = account_queries.find_unused_invitation(links.hash_token(token))
    if unused_invitation is None or unused_invitation.staff_user_id is not None:
        raise NotFound(links.LINK_EXPIRED_MESSAGE)
    email = normalise_email(email)
    _check_invited_email(unused_invitation, email)
    passwords.check_new_password(password, name, email)
    # The password is hashed before any row is locked, since hashing is slow.
    password_hash = passwords.hash_password(password)
    invitation = links.consume_link(token, is_reset=False)
    user_id = db.session.scalar(
        insert(StaffUser)
        .values(
            email=email,
            name=name,
            password_hash=password_hash,
            role=invitation.role,
            time_zone=time_zone,
            last_sign_in_at=func.now(),
        )
        .on_conflict_do_nothing(index_elements=[StaffUser.email])
        .returning(StaffUser.id)
    )
    if user_id is None:
        message = _(
            "A user with this email address already exists. Sign in, or ask an administrator for a password reset link."
        )
        roll_back_and_raise(InvalidInput(FieldError("email", "email_taken", message)))
    # Another link, perhaps for a higher role, would create a second account of this person.
    links.delete_invitations(email)
    record_audit_entry(email, "staff.joined", email, role=invitation.role)
    if invitation.role == "admin":
        notices.notify_admin_added(user_id, name, email, by=email)
    return lock_existing_staff_user(user_id)


def _check_invited_email(invitation: Invitation, email: str) -> None:
    if invitation.email not in (None, email):
        message = _(
            "This invitation is for %(email)s. To use another address, ask an administrator for another invitation.",
            email=invitation.email,
        )
        raise InvalidInput(FieldError("email", "email_not_invited", message))


def reset_password(token: str, password: str) -> StaffUser:
    """Set a new password with a password reset link.

    This ends every session of the user, and the browsers they signed in with become unknown. Their other reset links
    stop working.

    :raises NotFound: when the link is used, expired or unknown, or its user is disabled.
    :raises InvalidInput: when the password is easy to guess; the link then still works.
    """
    unused_invitation = account_queries.find_unused_invitation(links.hash_token(token))
    owner_id = unused_invitation.staff_user_id if unused_invitation else None
    owner = account_queries.find_staff_user(owner_id) if owner_id else None
    if owner is None:
        raise NotFound(links.LINK_EXPIRED_MESSAGE)
    # A user who has never signed in has no password that another person could have reset.
    is_first_password = owner.last_sign_in_at is None
    passwords.check_new_password(password, owner.name, owner.email)
    password_hash = passwords.hash_password(password)
    # Before the link, as in all actions on a user: the order avoids deadlocks.
    account_queries.lock_staff_user(owner.id)
    invitation = links.consume_link(token, is_reset=True)
    user: StaffUser | None = db.session.scalar(
        update(StaffUser)
        .where(StaffUser.id == invitation.staff_user_id, StaffUser.disabled_at.is_(None))
        .values(
            password_hash=password_hash,
            last_sign_in_at=func.now(),
        )
        .returning(StaffUser)
    )
    if user is None:
        roll_back_and_raise(NotFound(links.LINK_EXPIRED_MESSAGE))
    staff_sessions.delete_user_sessions_and_devices(user.id)
    links.delete_reset_links(user.id)
    record_audit_entry(user.email, "password.reset", user.email)
    if not is_first_password:
        notices.notify_password_reset(user)
    db.session.commit()
    notices.enqueue_account_emails()
    return user
