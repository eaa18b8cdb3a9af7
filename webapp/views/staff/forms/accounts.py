"""Staff forms for signing in, invitations, users, the profile and API keys."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from wtforms import (
    BooleanField,
    DateField,
    EmailField,
    Field,
    HiddenField,
    PasswordField,
    SelectChoice,
    SelectField,
    SelectMultipleField,
    StringField,
    ValidationError,
    widgets,
)
from wtforms.validators import EqualTo, InputRequired, Length, Optional

from webapp.accounts.passwords import MAX_PASSWORD_LENGTH, MIN_PASSWORD_LENGTH
from webapp.core import rate_limit
from webapp.views.form_base import PostForm

# How long a submitted form is recognised when it is submitted again.
FORM_TOKEN_SECONDS = 7 * 86400

ROLE_DESCRIPTIONS = {
    "admin": _l("Administrator: full access, including users, keys and the audit log"),
    "manager": _l("Manager: full access to offers, campaigns and customers"),
    "viewer": _l("Viewer: read-only access"),
}
SCOPE_DESCRIPTIONS = {
    "read": _l("read: view offers, campaigns, customers, redemptions and metrics"),
    "redeem": _l("redeem: validate and redeem codes, undo redemptions"),
    "manage": _l("manage: import and erase customers, create offers and launch campaigns"),
}


def _build_choices(labels: dict[str, str]) -> list[SelectChoice]:
    return [SelectChoice(value, label) for value, label in labels.items()]


def _collapse_whitespace(text: str | None) -> str:
    """Replace each run of white space and non-printable characters by one space.

    Those at the ends are removed.
    """
    return " ".join("".join(char if char.isprintable() else " " for char in text or "").split())


def _new_password_validators() -> list[object]:
    return [
        InputRequired(_l("Enter a password.")),
        # WTForms fills in the placeholders.
        Length(MIN_PASSWORD_LENGTH, MAX_PASSWORD_LENGTH, _l("Use %(min)d to %(max)d characters.")),
    ]


def _confirmation_validators(field: str) -> list[object]:
    return [EqualTo(field, _l("The passwords do not match."))]


class SignInForm(PostForm):
    """The email address and the password of a user."""

    email = EmailField(_l("Email address"), [InputRequired(_l("Enter your email address."))])
    password = PasswordField(_l("Password"), [InputRequired(_l("Enter your password."))])
    # Offered while too many passwords were wrong; see the view.
    code = StringField(_l("Authentication code"))
    is_code_offered = False


class RequestResetForm(PostForm):
    """The email address of a user who has forgotten the password."""

    email = EmailField(_l("Email address"), [InputRequired(_l("Enter your email address."))])


class _NameAndTimeZoneForm(PostForm):
    name = StringField(
        _l("Name"),
        [InputRequired(_l("Enter a name.")), Length(max=100, message=_l("Use at most %(max)d characters."))],
        [_collapse_whitespace],
    )
    # The view sets the choices.
    time_zone = SelectField(_l("Time zone"), default="UTC")

    def validate_name(self, field: Field) -> None:
        if not field.data:
            raise ValidationError(_("Enter a name."))


class AcceptIdentityForm(_NameAndTimeZoneForm):
    """The details of an invited user who signs in with a provider."""

    email = EmailField(_l("Email address"), [InputRequired(_l("Enter your email address."))])


class AcceptInvitationForm(AcceptIdentityForm):
    """The details of an invited user."""

    password = PasswordField(_l("Password"), _new_password_validators())
    confirm = PasswordField(_l("Repeat password"), _confirmation_validators("password"))


class FirstPasswordForm(PostForm):
    """The password of a user who has none yet."""

    password = PasswordField(_l("Password"), _new_password_validators())
    confirm = PasswordField(_l("Repeat password"), _confirmation_validators("password"))


class NewPasswordForm(PostForm):
    """The new password of a user who opened a password reset link."""

    password = PasswordField(_l("New password"), _new_password_validators())
    confirm = PasswordField(_l("Repeat new password"), _confirmation_validators("password"))


class ProfileForm(_NameAndTimeZoneForm):
    """The profile of the signed-in user."""


class ChangePasswordForm(PostForm):
    """The current and the new password of the signed-in user."""

    current = PasswordField(_l("Current password"), [InputRequired(_l("Enter your current password."))])
    password = PasswordField(_l("New password"), _new_password_validators())
    confirm = PasswordField(_l("Repeat new password"), _confirmation_validators("password"))


class RecentPasswordForm(PostForm):
    """The password and the second factor of the signed-in user, entered again before certain actions."""

    recent_password = PasswordField(_l("Password"), [InputRequired(_l("Enter your password."))])
    recent_code = StringField(
        _l("Authentication code"), [InputRequired(_l("Enter a code.")), Length(max=40, message=_l("Enter a code."))]
    )


class OneTimeForm(PostForm):
    """A form that creates a secret, which the response to its POST shows once.

    A token prevents that reloading this response creates another one.
    """

    form_token = HiddenField(default=secrets.token_urlsafe)

    def mark_submitted(self) -> bool:
        """Mark the form as submitted; return False if it was submitted before.

        Returns True for a request without a token.
        """
        return not self.form_token.data or rate_limit.use_once(self.form_token.data, FORM_TOKEN_SECONDS)

    def mark_rejected(self) -> None:
        """Revert `mark_submitted`, because nothing was created."""
        if self.form_token.data:
            rate_limit.allow_again(self.form_token.data)


class InviteForm(OneTimeForm):
    """An invitation; the email address is optional."""

    role = SelectField(_l("Role"), choices=_build_choices(ROLE_DESCRIPTIONS), default="manager")
    email = EmailField(_l("Email address"), filters=[lambda text: (text or "").strip()])
    # The view removes it when no email can be sent.
    is_emailed = BooleanField(_l("Email the link to this address"))


class RoleForm(PostForm):
    """The role of a user."""

    role = SelectField(_l("Role"), choices=_build_choices(ROLE_DESCRIPTIONS))


class ApiKeyForm(OneTimeForm):
    """A new API key."""

    name = StringField(
        _l("Name"),
        [
            InputRequired(_l("Enter a name that says what uses the key.")),
            Length(max=100, message=_l("Use at most %(max)d characters.")),
        ],
        [_collapse_whitespace],
    )
    scopes = SelectMultipleField(
        _l("Scopes"),
        choices=_build_choices(SCOPE_DESCRIPTIONS),
        widget=widgets.ListWidget(prefix_label=False),
        option_widget=widgets.CheckboxInput(),
    )
    expires_on = DateField(_l("Expiry date"), [Optional()])

    def validate_expires_on(self, field: Field) -> None:
        if field.data and field.data.year > 2999:
            raise ValidationError(_("Choose an earlier day, or leave the field empty."))

    def compute_expires_at(self, time_zone: str) -> datetime | None:
        """Return the end of the last day in a time zone as UTC; None without a day."""
        if self.expires_on.data is None:
            return None
        next_day = self.expires_on.data + timedelta(days=1)
        return datetime.combine(next_day, time(), ZoneInfo(time_zone)).astimezone(UTC)
