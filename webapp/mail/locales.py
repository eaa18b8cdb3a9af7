"""In which language dates, money and percent stand in a mail."""

from __future__ import annotations

from functools import lru_cache

from babel import Locale, UnknownLocaleError


@lru_cache(4096)
def resolve_locale(tag: str | None, otherwise: str) -> str:
    """The locale of a customer's tag (RFC 5646) as Babel names it, or `otherwise` for none, an unknown or a broken one.

    Of a tag whose country or script CLDR does not know, the language counts: `de-XX` is read as `de`.
    """
    parts = (tag or "").replace("_", "-").split("-")
    for length in range(len(parts), 0, -1):
        try:
            return str(Locale.parse("-".join(parts[:length]), sep="-"))
        except (UnknownLocaleError, ValueError, TypeError):
            continue
    return otherwise


def is_locale_right_to_left(locale: str) -> bool:
    return str(Locale.parse(locale).text_direction) == "rtl"
