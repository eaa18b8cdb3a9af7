"""What may be said about a shop, tidied."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from babel import Locale, UnknownLocaleError

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, InvalidInput
from webapp.shop.models import ADDRESS_MAX, NAME_MAX, SENTENCE_MAX, WORDS_MAX, ShopValues

_COLOUR_PATTERN = re.compile(r"#?([0-9a-fA-F]{6})")
ADDRESS_MAX_LINES = 8


def validate_shop(given: ShopValues) -> ShopValues:
    """The same, tidied: colours in small letters, blanks at the ends gone.

    :raises Invalid: with an error for each field that can't be taken.
    """
    wrong: list[FieldError] = []
    taken: dict[str, str] = {}
    for field, rule in _VALIDATORS.items():
        try:
            taken[field] = rule(getattr(given, field))
        except InvalidInput as error:
            wrong += [FieldError(field, item.key, item.message) for item in error.errors]
    if wrong:
        raise InvalidInput(*wrong)
    return ShopValues(**taken)


@dataclass(frozen=True)
class _SingleLine:
    label: str
    max_length: int
    missing_message: str = ""

    def __call__(self, given: str) -> str:
        text = given.strip()
        if not text and self.missing_message:
            raise _invalid_field("missing", self.missing_message)
        if "\n" in text or "\r" in text:
            raise _invalid_field("line_break", f"{self.label} must be one line.")
        return _require_printable(text, self.max_length, self.label)


def _validate_address(given: str) -> str:
    text = given.replace("\r\n", "\n").replace("\r", "\n").strip()
    lines = [line.strip() for line in text.split("\n")]
    if len(lines) > ADDRESS_MAX_LINES:
        raise _invalid_field(
            "too_long", f"The address may have up to {ADDRESS_MAX_LINES} lines; this has {len(lines)}."
        )
    for line in lines:
        _require_printable(line, ADDRESS_MAX, "The address")
    return _require_max_length("\n".join(lines), ADDRESS_MAX, "The address")


def _validate_reply_to(given: str) -> str:
    address = given.strip()
    if address:
        normalise_email(address)
        if not address.isascii():
            local, _, domain = normalise_email(address).rpartition("@")
            if not local.isascii():
                raise _invalid_field(
                    "email_invalid", "Use an address without accents before the @: some mailboxes refuse it."
                )
            address = f"{local}@{domain}"
    return address


def _validate_colour(given: str) -> str:
    found = _COLOUR_PATTERN.fullmatch(given.strip())
    if found is None:
        raise _invalid_field(
            "colour_invalid", "Write the colour as # and six digits or letters from a to f, such as #0f766e."
        )
    return f"#{found[1].lower()}"


def _validate_locale(given: str) -> str:
    tag = given.strip().replace("-", "_")
    try:
        return str(Locale.parse(tag))
    except (UnknownLocaleError, ValueError, TypeError) as error:
        raise _invalid_field("locale_invalid", "Write the language as a tag such as en, de or fr-CH.") from error


def _require_printable(text: str, longest: int, what: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Zl", "Zp") for c in text):
        raise _invalid_field("bad_character", f"{what} has characters in it that can't be mailed. Please type it anew.")
    return _require_max_length(text, longest, what)


def _require_max_length(text: str, longest: int, what: str) -> str:
    if len(text) > longest:
        raise _invalid_field("too_long", f"{what} may have up to {longest} characters; this has {len(text):,}.")
    return text


def _invalid_field(key: str, message: str) -> InvalidInput:
    return InvalidInput(FieldError("", key, message))


_VALIDATORS: dict[str, Callable[[str], str]] = {
    "name": _SingleLine("The name", NAME_MAX, "Say what your shop is called."),
    "sender_name": _SingleLine("The sender's name", NAME_MAX),
    "reply_to": _validate_reply_to,
    "address": _validate_address,
    "colour": _validate_colour,
    "locale": _validate_locale,
    "reason": _SingleLine("The sentence", SENTENCE_MAX),
    "unsubscribe_words": _SingleLine("The link", WORDS_MAX, "Without words nobody could press the link."),
    "button_words": _SingleLine("The button", WORDS_MAX, "Without words nobody could press the button."),
    "link_words": _SingleLine("These words", WORDS_MAX),
}
