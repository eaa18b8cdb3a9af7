"""Values written in another direction than the words round them: kept apart, so that neither turns the other round.

The Unicode bidirectional algorithm (UAX 9) and HTML's `bdi` element.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from unicodedata import bidirectional

from webapp.mail.template import MARKER_CLOSE, MARKER_OPEN, Placeholder, TemplateParts

_RIGHT_TO_LEFT_CLASSES = frozenset(("R", "AL", "AN"))
# Embeddings, overrides and isolates: a value that holds one turns what follows it.
BIDI_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Links and codes are copied, so nothing invisible is put round them.
ISOLATED_PLACEHOLDERS = frozenset(
    ("customer.name", "customer.email", "offer.name", "offer.discount", "offer.ends", "shop.name")
)
_MARKER = re.compile(f"{MARKER_OPEN}([0-9]+){MARKER_CLOSE}")


@dataclass(frozen=True)
class PlaceholderRenderer:
    """How a value is written among words: escaped, and kept apart where it runs the other way.

    :param is_right_to_left: how the words run.
    """

    escape: Callable[[str], str]
    is_right_to_left: bool
    opening: str = "\u2068"
    closing: str = "\u2069"

    def __call__(self, slot: Placeholder, value: str) -> str:
        said = self.escape(value or slot.fallback)
        if slot.is_isolated and value and self._has_opposite_direction(value):
            return f"{self.opening}{said}{self.closing}"
        return said

    def _has_opposite_direction(self, value: str) -> bool:
        if self.is_right_to_left:
            return "L" in map(bidirectional, value)
        return not value.isascii() and not _RIGHT_TO_LEFT_CLASSES.isdisjoint(map(bidirectional, value))


def is_text_right_to_left(parts: TemplateParts, otherwise: bool) -> bool:
    """How words run: as their first letter does (UAX 9, P2 and P3)."""
    for part in parts:
        for way in map(bidirectional, part if isinstance(part, str) else ""):
            if way in ("L", "R", "AL"):
                return way != "L"
    return otherwise


def isolate_placeholders(parts: TemplateParts) -> TemplateParts:
    """The slots of a plain text, those of words marked."""
    return tuple(part if isinstance(part, str) else _isolate_placeholder(part) for part in parts)


def isolate_html_placeholders(parts: TemplateParts) -> TemplateParts:
    """The slots of HTML, those marked that stand among words and not in a tag, a title or a style."""
    slots = [part for part in parts if isinstance(part, Placeholder)]
    numbers = iter(range(len(slots)))
    reader = _TextMarkerFinder()
    reader.feed(
        "".join(part if isinstance(part, str) else f"{MARKER_OPEN}{next(numbers)}{MARKER_CLOSE}" for part in parts)
    )
    reader.close()
    numbers = iter(range(len(slots)))
    return tuple(
        part if isinstance(part, str) else _isolate_placeholder(part) if next(numbers) in reader.markers else part
        for part in parts
    )


def _isolate_placeholder(slot: Placeholder) -> Placeholder:
    return Placeholder(slot.name, slot.fallback, True) if slot.name in ISOLATED_PLACEHOLDERS else slot


class _TextMarkerFinder(HTMLParser):
    """Finds the marks that stand among words."""

    NON_TEXT_ELEMENTS = frozenset(("title", "style", "script", "textarea", "option"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.markers: set[int] = set()
        self.skipped_tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self.skipped_tag and tag in self.NON_TEXT_ELEMENTS:
            self.skipped_tag = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.skipped_tag:
            self.skipped_tag = ""

    def handle_data(self, data: str) -> None:
        if not self.skipped_tag:
            self.markers |= {int(number) for number in _MARKER.findall(data)}
