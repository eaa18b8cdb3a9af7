"""Validate and normalise the details of the shop."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from babel import Locale, UnknownLocaleError
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, InvalidInput
from webapp.shop.models import MAX_ADDRESS_LENGTH, MAX_LABEL_LENGTH, MAX_NAME_LENGTH, MAX_SENTENCE_LENGTH, ShopValues

_COLOUR_PATTERN = re.compile(r"#?([0-9a-fA-F]{6})")
MAX_ADDRESS_LINES = 8


def validate_shop(values: ShopValues) -> ShopValues:
    """Return the normalised details: the colour in lower case, no spaces at the ends.

    :raises InvalidInput: with an error for each invalid field.
    """
    errors: list[FieldError] = []
    normalised: dict[str, str] = {}
    for field, validate in _VALIDATORS.items():
        try:
            normalised[field] = validate(getattr(values, field))
        except InvalidInput as error:
            errors += [FieldError(field, item.key, item.message) for item in error.errors]
    if errors:
        raise InvalidInput(*errors)
    return ShopValues(**normalised)


@dataclass(frozen=True)
class _SingleLine:
    max_length: int
    missing_message: str = ""

    def __call__(self, value: str) -> str:
        text = value.strip()
        if not text and self.missing_message:
            raise _invalid_field("missing", str(self.missing_message))
        if "\n" in text or "\r" in text:
            raise _invalid_field("line_break", _("Use a single line."))
        return _require_printable(text, self.max_length)


def _validate_address(value: str) -> str:
    text = value.replace("\r\n", "\n").replace("\r", "\n").strip()
    lines = [line.strip() for line in text.split("\n")]
    if len(lines) > MAX_ADDRESS_LINES:
        raise _invalid_field(
            "too_long",
            _("Use at most %(max)s lines; the address has %(lines)s.", max=MAX_ADDRESS_LINES, lines=len(lines)),
        )
    for line in lines:
        _require_printable(line, MAX_ADDRESS_LENGTH)
    return _require_max_length("\n".join(lines), MAX_ADDRESS_LENGTH)


def _validate_reply_to(value: str) -> str:
    address = value.strip()
    if address:
        normalise_email(address)
        if not address.isascii():
            local, _at, domain = normalise_email(address).rpartition("@")
            if not local.isascii():
                raise _invalid_field(
                    "email_invalid",
                    _("Use an address without accents before the @: some mail providers reject accented addresses."),
                )
            address = f"{local}@{domain}"
    return address


def _validate_colour(value: str) -> str:
    match = _COLOUR_PATTERN.fullmatch(value.strip())
    if match is None:
        raise _invalid_field("colour_invalid", _("Enter the colour as # and six hexadecimal digits, such as #0f766e."))
    return f"#{match[1].lower()}"


def _validate_locale(value: str) -> str:
    tag = value.strip().replace("-", "_")
    try:
        return str(Locale.parse(tag))
    except (UnknownLocaleError, ValueError, TypeError) as error:
        raise _invalid_field("locale_invalid", _("Enter a language tag such as en, de or fr-CH.")) from error


def _require_printable(text: str, max_length: int) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs", "Co", "Zl", "Zp") for character in text):
        raise _invalid_field(
            "bad_character", _("This contains characters that cannot be sent in an email. Please type it again.")
        )
    return _require_max_length(text, max_length)


def _require_max_length(text: str, max_length: int) -> str:
    if len(text) > max_length:
        raise _invalid_field(
            "too_long",
            _("Use at most %(max)s characters; this text has %(length)s.", max=max_length, length=f"{len(text):,}"),
        )
    return text


def _invalid_field(key: str, message: str) -> InvalidInput:
    return InvalidInput(FieldError("", key, message))


_VALIDATORS: dict[str, Callable[[str], str]] = {
    "name": _SingleLine(MAX_NAME_LENGTH, _l("Enter the name of your shop.")),
    "sender_name": _SingleLine(MAX_NAME_LENGTH),
    "reply_to": _validate_reply_to,
    "address": _validate_address,
    "colour": _validate_colour,
    "locale": _validate_locale,
    "reason": _SingleLine(MAX_SENTENCE_LENGTH),
    "unsubscribe_words": _SingleLine(MAX_LABEL_LENGTH, _l("Enter the text of the link.")),
    "button_words": _SingleLine(MAX_LABEL_LENGTH, _l("Enter the text of the button.")),
    "link_words": _SingleLine(MAX_LABEL_LENGTH),
}
