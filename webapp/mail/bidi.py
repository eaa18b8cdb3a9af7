"""Bidirectional text: isolate values that differ in direction from their text.

It uses isolates of the Unicode bidirectional algorithm (UAX 9) and HTML's `bdi` element.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from unicodedata import bidirectional

from webapp.mail.marker_locations import locate_markers
from webapp.mail.template import Placeholder, TemplateParts, insert_markers, restore_placeholders

_RIGHT_TO_LEFT_CLASSES = frozenset(("R", "AL", "AN"))
# Embeddings, overrides and isolates: a value that contains one changes the direction of the text after it.
BIDI_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Links and codes are not isolated, because users copy them and would copy the invisible characters too.
ISOLATED_PLACEHOLDERS = frozenset(
    ("customer.name", "customer.email", "offer.name", "offer.discount", "offer.ends", "shop.name")
)


@dataclass(frozen=True)
class PlaceholderRenderer:
    """Renders the value of a placeholder: escaped and, if necessary, isolated.

    A value is isolated if its placeholder allows it and it contains a character of the opposite direction. The fallback
    for an empty value is never isolated.

    :param escape: escapes a value for the format of the text.
    :param is_right_to_left: the direction of the text.
    :param opening: precedes an isolated value; by default, First Strong Isolate.
    :param closing: follows an isolated value; by default, Pop Directional Isolate.
    """

    escape: Callable[[str], str]
    is_right_to_left: bool
    opening: str = "\u2068"
    closing: str = "\u2069"

    def __call__(self, placeholder: Placeholder, value: str) -> str:
        escaped = self.escape(value or placeholder.fallback)
        if placeholder.is_isolated and value and self._contains_opposite_direction(value):
            return f"{self.opening}{escaped}{self.closing}"
        return escaped

    def _contains_opposite_direction(self, value: str) -> bool:
        if self.is_right_to_left:
            return "L" in map(bidirectional, value)
        return not value.isascii() and not _RIGHT_TO_LEFT_CLASSES.isdisjoint(map(bidirectional, value))


def is_text_right_to_left(parts: TemplateParts, default: bool) -> bool:
    """Return whether a text runs right to left.

    The first strong character determines that (UAX 9, P2 and P3).

    :param default: the result for a text without a strong character.
    """
    for part in parts:
        for direction in map(bidirectional, part if isinstance(part, str) else ""):
            if direction in ("L", "R", "AL"):
                return direction != "L"
    return default


def isolate_placeholders(parts: TemplateParts) -> TemplateParts:
    """Mark the placeholders of a plain text that need isolation."""
    return tuple(part if isinstance(part, str) else _isolate_placeholder(part) for part in parts)


def isolate_html_placeholders(parts: TemplateParts) -> TemplateParts:
    """Mark the placeholders of HTML that need isolation.

    These are the placeholders in text, not those in tags, titles or style sheets.
    """
    placeholders: list[Placeholder] = []
    html_with_markers = insert_markers(parts, placeholders)
    for number in locate_markers(html_with_markers).text:
        placeholders[number] = _isolate_placeholder(placeholders[number])
    return restore_placeholders(html_with_markers, placeholders)


def _isolate_placeholder(placeholder: Placeholder) -> Placeholder:
    if placeholder.name not in ISOLATED_PLACEHOLDERS:
        return placeholder
    return Placeholder(placeholder.name, placeholder.fallback, True)
