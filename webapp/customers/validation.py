"""Validate customer fields and audience names for all interfaces and imports."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from webapp.core.errors import FieldError, InvalidInput

MAX_NAME_LENGTH = 200
MAX_SOURCE_ID_LENGTH = 200
MAX_AUDIENCE_NAME_LENGTH = 100
MAX_LOCALE_LENGTH = 35

_LOCALE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8}){0,3}")

# For each field: the errors of control characters and of a text that is too long.
_LINE_ERRORS = {
    "name": (
        _l("The name must not contain control characters. Type it again."),
        _l("The name can have at most %(max)s characters.", max=MAX_NAME_LENGTH),
    ),
    "source_id": (
        _l("The source ID must not contain control characters. Type it again."),
        _l("The source ID can have at most %(max)s characters.", max=MAX_SOURCE_ID_LENGTH),
    ),
    "audience": (
        _l("The audience name must not contain control characters. Type it again."),
        _l("The audience name can have at most %(max)s characters.", max=MAX_AUDIENCE_NAME_LENGTH),
    ),
}


@dataclass(frozen=True)
class CustomerValues:
    """Values of a customer as entered, before validation.

    None keeps the stored value.
    """

    email: str
    name: str | None = ""
    locale: str | None = ""
    source_id: str | None = ""


def clean_name(value: str) -> str:
    """Return the name of a customer on one line with single spaces.

    Any script, emoji and markup characters are kept.

    :raises InvalidInput: `name_invalid` for control characters or more than 200 characters.
    """
    return _clean_line(value, MAX_NAME_LENGTH, "name", "name_invalid")


def clean_source_id(value: str) -> str:
    """Return the id of a customer in the integrator's system, with single spaces.

    :raises InvalidInput: `source_id_invalid` for control characters or more than 200 characters.
    """
    return _clean_line(value, MAX_SOURCE_ID_LENGTH, "source_id", "source_id_invalid")


@lru_cache(maxsize=1024)
def clean_audience_name(value: str) -> str:
    """Return the name of an audience on one line with single spaces.

    :raises InvalidInput: `audience_invalid` for control characters or more than 100 characters.
    """
    return _clean_line(value, MAX_AUDIENCE_NAME_LENGTH, "audience", "audience_invalid")


@lru_cache(maxsize=1024)
def clean_locale(value: str) -> str:
    """Return a language tag such as `de` or `fr-CH` (RFC 5646) in its usual case.

    An empty text stays empty.

    :raises InvalidInput: `locale_invalid`.
    """
    tag = value.strip()
    if not tag:
        return ""
    if len(tag) > MAX_LOCALE_LENGTH or not _LOCALE.fullmatch(tag):
        raise InvalidInput(
            FieldError("locale", "locale_invalid", _("Enter the language as a tag such as de or fr-CH."))
        )
    first, *rest = re.split("[-_]", tag)
    return "-".join([first.lower(), *(_format_subtag(part) for part in rest)])


def _format_subtag(part: str) -> str:
    if len(part) == 2:
        return part.upper()
    return part.title() if len(part) == 4 and part.isalpha() else part.lower()


def _clean_line(value: str, max_length: int, field: str, key: str) -> str:
    control_error, length_error = _LINE_ERRORS[field]
    text = " ".join(value.split())
    # Normalising takes a time that grows with the square of the number of accents in a row.
    if not text.isprintable() and len(text) <= 4 * max_length:
        text = unicodedata.normalize("NFC", text)
        if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
            raise InvalidInput(FieldError(field, key, str(control_error)))
    if len(text) > max_length:
        raise InvalidInput(FieldError(field, key, str(length_error)))
    return text
