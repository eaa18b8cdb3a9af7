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

from webapp.accounts.passwords import PASSWORD_MAX, PASSWORD_MIN

ROLE_WORDS = {
    "admin": "Administrator: everything, and people, keys and the audit trail",
    "manager": "Manager: everything about offers, campaigns and customers",
    "viewer": "Viewer: looks, and changes nothing",
}
SCOPE_WORDS = {
    "read": "read: look at offers, customers, redemptions",
    "redeem": "redeem: validate and redeem codes, undo redemptions",
    "manage": "manage: import and erase customers, set up and launch offers",
}


def _choices(words: dict[str, str]) -> list[SelectChoice]:
    return [SelectChoice(value, label) for value, label in words.items()]


def _one_line(text: str | None) -> str:
    """Spaces tidied, and nothing in it that can't be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def _missing(what: str) -> InputRequired:
    return InputRequired(f"Please enter {what}.")


def _new_password() -> list[object]:
    return [
        _missing("a password"),
        Length(PASSWORD_MIN, PASSWORD_MAX, f"Use {PASSWORD_MIN} to {PASSWORD_MAX} characters."),
    ]


def _again(field: str) -> list[object]:
    return [EqualTo(field, "This is not the same as the password above.")]


class SignInForm(FlaskForm):
    email = EmailField("E-mail", [_missing("your e-mail")])
    password = PasswordField("Password", [_missing("your password")])


class _Person(FlaskForm):
    name = StringField(
        "Name", [_missing("a name"), Length(max=100, message="Use at most 100 characters.")], [_one_line]
    )
    # The choices are the zones of the door.
    time_zone = SelectField("Time zone", default="UTC")

    def validate_name(self, field: Field) -> None:
        if not field.data:
            raise ValidationError("Please enter a name.")


class JoinForm(_Person):
    email = EmailField("E-mail", [_missing("an e-mail")])
    password = PasswordField("Password", _new_password())
    confirm = PasswordField("Password again", _again("password"))


class FirstPasswordForm(FlaskForm):
    password = PasswordField("Password", _new_password())
    confirm = PasswordField("Password again", _again("password"))


class NewPasswordForm(FlaskForm):
    password = PasswordField("New password", _new_password())
    confirm = PasswordField("New password again", _again("password"))


class ProfileForm(_Person):
    pass


class ChangePasswordForm(FlaskForm):
    current = PasswordField("Current password", [_missing("your current password")])
    password = PasswordField("New password", _new_password())
    confirm = PasswordField("New password again", _again("password"))


class InviteForm(FlaskForm):
    role = SelectField("Role", choices=_choices(ROLE_WORDS), default="manager")
    email = EmailField("E-mail", filters=[lambda text: (text or "").strip()])


class RoleForm(FlaskForm):
    role = SelectField("Role", choices=_choices(ROLE_WORDS))


class ApiKeyForm(FlaskForm):
    name = StringField("Name", [_missing("who uses the key"), Length(max=100)], [_one_line])
    scopes = SelectMultipleField(
        "It may",
        choices=_choices(SCOPE_WORDS),
        widget=widgets.ListWidget(prefix_label=False),
        option_widget=widgets.CheckboxInput(),
    )
    expires_on = DateField("Last day", [Optional()])

    def validate_expires_on(self, field: Field) -> None:
        if field.data and field.data.year > 2999:
            raise ValidationError("Choose an earlier day, or none.")

    def expires_at(self, time_zone: str) -> datetime | None:
        """The end of the last day on the clock of a zone."""
        if self.expires_on.data is None:
            return None
        after = self.expires_on.data + timedelta(days=1)
        return datetime.combine(after, time(), ZoneInfo(time_zone)).astimezone(UTC)
