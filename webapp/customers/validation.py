"""What a name, a language, an own id and an audience's name may be, for every door and for imported files."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from webapp.core.errors import FieldError, InvalidInput

NAME_MAX_LENGTH = 200
SOURCE_ID_MAX_LENGTH = 200
AUDIENCE_NAME_MAX_LENGTH = 100
LOCALE_MAX_LENGTH = 35

_LOCALE = re.compile(r"[A-Za-z]{2,3}(?:[-_][A-Za-z0-9]{2,8}){0,3}")


@dataclass(frozen=True)
class CustomerValues:
    """What somebody says about a customer, as they typed it. None leaves what is known as it is."""

    email: str
    name: str | None = ""
    locale: str | None = ""
    source_id: str | None = ""


def clean_name(given: str) -> str:
    """A person's name on one line, blanks tidied. Any script, emoji and markup signs are kept as they are.

    :raises Invalid: `name_invalid` for control characters or more than 200 characters.
    """
    return _clean_line(given, NAME_MAX_LENGTH, "name", "name_invalid", "A name")


def clean_source_id(given: str) -> str:
    """The integrator's own id of a customer, compared as it is.

    :raises Invalid: `source_id_invalid` for control characters or more than 200 characters.
    """
    return _clean_line(given, SOURCE_ID_MAX_LENGTH, "source_id", "source_id_invalid", "A source id")


@lru_cache(maxsize=1024)
def clean_audience_name(given: str) -> str:
    """The name of an audience, blanks tidied.

    :raises Invalid: `audience_invalid` for control characters or more than 100 characters.
    """
    return _clean_line(given, AUDIENCE_NAME_MAX_LENGTH, "audience", "audience_invalid", "An audience's name")


@lru_cache(maxsize=1024)
def clean_locale(given: str) -> str:
    """A language tag such as `de` or `fr-CH` (RFC 5646), in its usual spelling; nothing stays nothing.

    :raises Invalid: `locale_invalid`.
    """
    tag = given.strip()
    if not tag:
        return ""
    if len(tag) > LOCALE_MAX_LENGTH or not _LOCALE.fullmatch(tag):
        raise InvalidInput(FieldError("locale", "locale_invalid", "Write the language as a tag such as de or fr-CH."))
    first, *rest = re.split("[-_]", tag)
    return "-".join([first.lower(), *(_format_subtag(part) for part in rest)])


def _format_subtag(part: str) -> str:
    if len(part) == 2:
        return part.upper()
    return part.title() if len(part) == 4 and part.isalpha() else part.lower()


def _clean_line(given: str, longest: int, field: str, key: str, what: str) -> str:
    text = " ".join(given.split())
    if not text.isprintable():
        text = unicodedata.normalize("NFC", text)
        if any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
            raise InvalidInput(FieldError(field, key, f"{what} must not hold control characters; type it anew."))
    if len(text) > longest:
        raise InvalidInput(FieldError(field, key, f"{what} has at most {longest} characters."))
    return text
