"""The text of the emails to users and invited persons."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from flask import current_app
from flask_babel import gettext as _

from webapp.accounts import invitation_actions, links, password_reset_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.models import StaffUser
from webapp.core.formatting import bidi_isolate, format_datetime
from webapp.core.settings import Settings
from webapp.mail.bidi import BIDI_CONTROLS
from webapp.mail.headers import to_single_line
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.plain_email import build_plain_email
from webapp.shop import queries as shop_queries


class DueEmail(NamedTuple):
    """An email that this process sends now.

    :ivar attempts: the number of attempts, with this one.
    """

    id: int
    kind: str
    staff_user_id: int | None
    invitation_id: int | None
    detail: dict[str, Any] | None
    address: str | None
    created_at: datetime
    attempts: int


def build_account_email(email: DueEmail) -> OutgoingMessage | None:
    """Return the message, or None if nothing is to be sent: the user is unknown or disabled, the link was revoked.

    It creates the link in the message and commits it.
    """
    if email.invitation_id is not None:
        return _build_invitation(email.invitation_id)
    user = account_queries.find_staff_user(email.staff_user_id) if email.staff_user_id else None
    if user is None:
        return None
    if email.kind == "reset_link":
        return _build_reset_link(email, user)
    return _build_notice(email, user) if user.is_active else None


def _build_invitation(invitation_id: int) -> OutgoingMessage | None:
    invited = invitation_actions.create_emailed_link(invitation_id)
    if invited is None:
        return None
    subject = _("Your invitation to Onecode")
    return _build(invited.email, subject, "email/invitation.txt", link=invited.link, days=links.LINK_DAYS)


def _build_reset_link(email: DueEmail, user: StaffUser) -> OutgoingMessage:
    link = password_reset_actions.create_requested_reset_link(user.id, email.address, is_retry=email.attempts > 1)
    return _build(
        user.email,
        _("Reset your Onecode password"),
        "email/reset_link.txt",
        name=clean_value(user.name),
        at=format_datetime(email.created_at, user.time_zone),
        address=email.address,
        link=link,
    )


def _build_notice(email: DueEmail, user: StaffUser) -> OutgoingMessage:
    detail = {key: _clean_detail(value) for key, value in (email.detail or {}).items()}
    return _build(
        user.email,
        _format_notice_subject(email.kind, detail),
        f"email/{email.kind}.txt",
        name=clean_value(user.name),
        at=format_datetime(email.created_at, user.time_zone),
        address=email.address,
        detail=detail,
    )


def _format_notice_subject(kind: str, detail: dict[str, Any]) -> str:
    match kind:
        case "new_device":
            return _("New sign-in to Onecode: %(device)s", device=detail["device"])
        case "api_key_created":
            return _("New API key in Onecode: %(name)s", name=detail["name"])
        case "admin_added":
            return _("New administrator in Onecode: %(name)s", name=detail["name"])
        case "second_factor_changed" if detail["change"].startswith("identity."):
            return _("Sign-in provider of your Onecode account")
        case "second_factor_changed":
            return _("Two-step verification of your Onecode account")
        case "password_changed":
            return _("Your Onecode password was changed")
        case _:
            return _("Your Onecode password was reset")


def _build(to: str, subject: str, template: str, **values: object) -> OutgoingMessage:
    settings: Settings = current_app.config["SETTINGS"]
    shop = shop_queries.get_shop()
    body = current_app.jinja_env.get_template(template).render(
        base_url=settings.public_url, shop_name=clean_value(shop.name), **values
    )
    return build_plain_email(shop, to, subject, body)


def _clean_detail(value: Any) -> Any:
    return ", ".join(map(clean_value, value)) if isinstance(value, list) else clean_value(str(value))


def clean_value(text: str) -> str:
    """Return a value as one line that neither changes the lines around it nor their direction (UAX 9)."""
    return bidi_isolate(to_single_line(BIDI_CONTROLS.sub("", text)))
