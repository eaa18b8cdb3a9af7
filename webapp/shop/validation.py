"""What may be said about a shop, tidied."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from babel import Locale, UnknownLocaleError

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, Invalid
from webapp.shop.models import ADDRESS_MAX, NAME_MAX, SENTENCE_MAX, WORDS_MAX, ShopValues

_COLOUR = re.compile(r"#?([0-9a-fA-F]{6})")
ADDRESS_LINES = 8


def checked(given: ShopValues) -> ShopValues:
    """The same, tidied: colours in small letters, blanks at the ends gone.

    :raises Invalid: with an error for each field that can't be taken.
    """
    wrong: list[FieldError] = []
    taken: dict[str, str] = {}
    for field, rule in _RULES.items():
        try:
            taken[field] = rule(getattr(given, field))
        except Invalid as error:
            wrong += [FieldError(field, item.key, item.message) for item in error.errors]
    if wrong:
        raise Invalid(*wrong)
    return ShopValues(**taken)


@dataclass(frozen=True)
class _OneLine:
    what: str
    longest: int
    missing: str = ""

    def __call__(self, given: str) -> str:
        text = given.strip()
        if not text and self.missing:
            raise _wrong("missing", self.missing)
        if "\n" in text or "\r" in text:
            raise _wrong("line_break", f"{self.what} must be one line.")
        return _printable(text, self.longest, self.what)


def _address(given: str) -> str:
    text = given.replace("\r\n", "\n").replace("\r", "\n").strip()
    lines = [line.strip() for line in text.split("\n")]
    if len(lines) > ADDRESS_LINES:
        raise _wrong("too_long", f"The address may have up to {ADDRESS_LINES} lines; this has {len(lines)}.")
    for line in lines:
        _printable(line, ADDRESS_MAX, "The address")
    return _limited("\n".join(lines), ADDRESS_MAX, "The address")


def _reply_to(given: str) -> str:
    address = given.strip()
    if address:
        normalise_email(address)
        if not address.isascii():
            local, _, domain = normalise_email(address).rpartition("@")
            if not local.isascii():
                raise _wrong("email_invalid", "Use an address without accents before the @: some mailboxes refuse it.")
            address = f"{local}@{domain}"
    return address


def _colour(given: str) -> str:
    found = _COLOUR.fullmatch(given.strip())
    if found is None:
        raise _wrong("colour_invalid", "Write the colour as # and six digits or letters from a to f, such as #0f766e.")
    return f"#{found[1].lower()}"


def _locale(given: str) -> str:
    tag = given.strip().replace("-", "_")
    try:
        return str(Locale.parse(tag))
    except (UnknownLocaleError, ValueError, TypeError) as error:
        raise _wrong("locale_invalid", "Write the language as a tag such as en, de or fr-CH.") from error


def _printable(text: str, longest: int, what: str) -> str:
    if any(unicodedata.category(c) in ("Cc", "Cs", "Co", "Zl", "Zp") for c in text):
        raise _wrong("bad_character", f"{what} has characters in it that can't be mailed. Please type it anew.")
    return _limited(text, longest, what)


def _limited(text: str, longest: int, what: str) -> str:
    if len(text) > longest:
        raise _wrong("too_long", f"{what} may have up to {longest} characters; this has {len(text):,}.")
    return text


def _wrong(key: str, message: str) -> Invalid:
    return Invalid(FieldError("", key, message))


_RULES: dict[str, Callable[[str], str]] = {
    "name": _OneLine("The name", NAME_MAX, "Say what your shop is called."),
    "sender_name": _OneLine("The sender's name", NAME_MAX),
    "reply_to": _reply_to,
    "address": _address,
    "colour": _colour,
    "locale": _locale,
    "reason": _OneLine("The sentence", SENTENCE_MAX),
    "unsubscribe_words": _OneLine("The link", WORDS_MAX, "Without words nobody could press the link."),
    "button_words": _OneLine("The button", WORDS_MAX, "Without words nobody could press the button."),
    "link_words": _OneLine("These words", WORDS_MAX),
}
