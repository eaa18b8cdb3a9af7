"""Forms of sign-in, invitations and settings."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from flask_wtf import FlaskForm
from wtforms import (
    DateField,
    EmailField,
    Field,
    PasswordField,
    SelectChoice,
    SelectField,
    SelectMultipleField,
    StringField,
    ValidationError,
    widgets,
)
from wtforms.validators import EqualTo, InputRequired, Length, Optional

from webapp.accounts.passwords import PASSWORD_MAX_LENGTH, PASSWORD_MIN_LENGTH

ROLE_LABELS = {
    "admin": "Administrator: everything, and people, keys and the audit trail",
    "manager": "Manager: everything about offers, campaigns and customers",
    "viewer": "Viewer: looks, and changes nothing",
}
SCOPE_LABELS = {
    "read": "read: look at offers, customers, redemptions",
    "redeem": "redeem: validate and redeem codes, undo redemptions",
    "manage": "manage: import and erase customers, set up and launch offers",
}


def _label_choices(words: dict[str, str]) -> list[SelectChoice]:
    return [SelectChoice(value, label) for value, label in words.items()]


def _collapse_whitespace(text: str | None) -> str:
    """Spaces tidied, and nothing in it that can't be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def _required(what: str) -> InputRequired:
    return InputRequired(f"Please enter {what}.")


def _new_password_validators() -> list[object]:
    return [
        _required("a password"),
        Length(
            PASSWORD_MIN_LENGTH, PASSWORD_MAX_LENGTH, f"Use {PASSWORD_MIN_LENGTH} to {PASSWORD_MAX_LENGTH} characters."
        ),
    ]


def _confirmation_validators(field: str) -> list[object]:
    return [EqualTo(field, "This is not the same as the password above.")]


class SignInForm(FlaskForm):
    email = EmailField("E-mail", [_required("your e-mail")])
    password = PasswordField("Password", [_required("your password")])


class _NameAndTimeZoneForm(FlaskForm):
    name = StringField(
        "Name", [_required("a name"), Length(max=100, message="Use at most 100 characters.")], [_collapse_whitespace]
    )
    # The choices are the zones of the door.
    time_zone = SelectField("Time zone", default="UTC")

    def validate_name(self, field: Field) -> None:
        if not field.data:
            raise ValidationError("Please enter a name.")


class AcceptInvitationForm(_NameAndTimeZoneForm):
    email = EmailField("E-mail", [_required("an e-mail")])
    password = PasswordField("Password", _new_password_validators())
    confirm = PasswordField("Password again", _confirmation_validators("password"))


class FirstPasswordForm(FlaskForm):
    password = PasswordField("Password", _new_password_validators())
    confirm = PasswordField("Password again", _confirmation_validators("password"))


class NewPasswordForm(FlaskForm):
    password = PasswordField("New password", _new_password_validators())
    confirm = PasswordField("New password again", _confirmation_validators("password"))


class ProfileForm(_NameAndTimeZoneForm):
    pass


class ChangePasswordForm(FlaskForm):
    current = PasswordField("Current password", [_required("your current password")])
    password = PasswordField("New password", _new_password_validators())
    confirm = PasswordField("New password again", _confirmation_validators("password"))


class InviteForm(FlaskForm):
    role = SelectField("Role", choices=_label_choices(ROLE_LABELS), default="manager")
    email = EmailField("E-mail", filters=[lambda text: (text or "").strip()])


class RoleForm(FlaskForm):
    role = SelectField("Role", choices=_label_choices(ROLE_LABELS))


class ApiKeyForm(FlaskForm):
    name = StringField("Name", [_required("who uses the key"), Length(max=100)], [_collapse_whitespace])
    scopes = SelectMultipleField(
        "It may",
        choices=_label_choices(SCOPE_LABELS),
        widget=widgets.ListWidget(prefix_label=False),
        option_widget=widgets.CheckboxInput(),
    )
    expires_on = DateField("Last day", [Optional()])

    def validate_expires_on(self, field: Field) -> None:
        if field.data and field.data.year > 2999:
            raise ValidationError("Choose an earlier day, or none.")

    def compute_expires_at(self, time_zone: str) -> datetime | None:
        """The end of the last day on the clock of a zone."""
        if self.expires_on.data is None:
            return None
        after = self.expires_on.data + timedelta(days=1)
        return datetime.combine(after, time(), ZoneInfo(time_zone)).astimezone(UTC)
