"""Staff forms for second factors and passkeys."""

from __future__ import annotations

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from wtforms import Field, HiddenField, StringField, ValidationError
from wtforms.validators import InputRequired, Length

from webapp.accounts.factors.passkey_actions import MAX_NAME_LENGTH
from webapp.views.form_base import PostForm

_MAX_CODE_LENGTH = 40


def _code_validators(message: str) -> list[object]:
    return [InputRequired(message), Length(max=_MAX_CODE_LENGTH, message=message)]


class AppCodeForm(PostForm):
    """The code of an authenticator app."""

    code = StringField(_l("Authentication code"), _code_validators(_l("Enter the six digits that your app shows.")))


class RecoveryCodeForm(PostForm):
    """A recovery code."""

    code = StringField(_l("Recovery code"), _code_validators(_l("Enter one of your recovery codes.")))


class PasskeyNameForm(PostForm):
    """The name of a new passkey."""

    name = StringField(
        _l("Name"),
        [
            InputRequired(_l("Enter a name by which you recognise the device.")),
            Length(max=MAX_NAME_LENGTH, message=_l("Use at most %(max)d characters.")),
        ],
        [lambda text: " ".join("".join(char if char.isprintable() else " " for char in text or "").split())],
    )

    def validate_name(self, field: Field) -> None:
        if not field.data:
            raise ValidationError(_("Enter a name by which you recognise the device."))


class PasskeyForm(PasskeyNameForm):
    """A new passkey: its name, and the response of the browser, which a script fills in."""

    credential = HiddenField()


class PasskeyResponseForm(PostForm):
    """The response of the browser to a challenge, which a script fills in."""

    credential = HiddenField()
