"""The locale of dates, amounts and percentages in an email."""

from __future__ import annotations

from functools import lru_cache

from babel import Locale, UnknownLocaleError


@lru_cache(4096)
def resolve_locale(tag: str | None, default: str) -> str:
    """Return the Babel locale of a language tag (RFC 5646).

    If CLDR does not know the region or script of a tag, its language is used: `de-XX` becomes `de`.

    :param default: returned for a missing, unknown or invalid tag.
    """
    subtags = (tag or "").replace("_", "-").split("-")
    for length in range(len(subtags), 0, -1):
        try:
            return str(Locale.parse("-".join(subtags[:length]), sep="-"))
        except (UnknownLocaleError, ValueError, TypeError):
            continue
    return default


def is_locale_right_to_left(locale: str) -> bool:
    """Return whether the language of a Babel locale is written from right to left."""
    return str(Locale.parse(locale).text_direction) == "rtl"
