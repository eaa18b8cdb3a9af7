"""Parsed templates: text split at its placeholders.

Markers replace the placeholders while HTML is transformed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Enclose the number of a placeholder in HTML; private-use characters, which are not allowed in templates.
MARKER_OPEN, MARKER_CLOSE = "\ue000", "\ue001"
MARKER = re.compile(f"{MARKER_OPEN}([0-9]+){MARKER_CLOSE}")


@dataclass(frozen=True)
class Placeholder:
    """A placeholder, with the text that replaces an empty value.

    :param is_isolated: whether a value with characters of the opposite writing direction is isolated; see `bidi`.
    """

    name: str
    fallback: str = ""
    is_isolated: bool = False


TemplateParts = tuple[str | Placeholder, ...]


def insert_markers(parts: TemplateParts, placeholders: list[Placeholder]) -> str:
    """Replace placeholders by markers, which HTML tools do not change.

    :param placeholders: the placeholders are appended to it; a marker is the index of its placeholder.
    """
    pieces = []
    for part in parts:
        if isinstance(part, Placeholder):
            placeholders.append(part)
            part = f"{MARKER_OPEN}{len(placeholders) - 1}{MARKER_CLOSE}"
        pieces.append(part)
    return "".join(pieces)


def restore_placeholders(html_with_markers: str, placeholders: list[Placeholder]) -> TemplateParts:
    """Parse a string with markers into template parts; inverse of `insert_markers`."""
    pieces = MARKER.split(html_with_markers)
    parts: list[str | Placeholder] = [
        placeholders[int(piece)] if index % 2 else piece for index, piece in enumerate(pieces)
    ]
    return tuple(part for part in parts if part != "")
