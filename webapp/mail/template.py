"""Text split at its placeholders, and how placeholders are marked while HTML is transformed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Stand for placeholders while HTML is worked on; from the private area, which no text may have.
MARKER_OPEN, MARKER_CLOSE = "\ue000", "\ue001"
_MARKER = re.compile(f"{MARKER_OPEN}([0-9]+){MARKER_CLOSE}")


@dataclass(frozen=True)
class Placeholder:
    """A placeholder, with the words that stand in when its value is empty.

    :param is_apart: whether its value stands among words, which it must not turn round: see directions.
    """

    name: str
    fallback: str = ""
    is_isolated: bool = False


TemplateParts = tuple[str | Placeholder, ...]


def fill_template(parts: TemplateParts, values: Mapping[str, str], escape: Callable[[str], str] = str) -> str:
    """The text with the values put in."""
    return "".join(p if isinstance(p, str) else escape(values[p.name] or p.fallback) for p in parts)


def insert_markers(parts: TemplateParts) -> tuple[str, list[Placeholder]]:
    """One string in which each placeholder is a mark that survives any work on HTML, and what the marks mean."""
    slots = [part for part in parts if isinstance(part, Placeholder)]
    numbers = iter(range(len(slots)))
    return "".join(p if isinstance(p, str) else f"{MARKER_OPEN}{next(numbers)}{MARKER_CLOSE}" for p in parts), slots


def restore_placeholders(marked: str, slots: list[Placeholder]) -> TemplateParts:
    """The way back from `mark`."""
    pieces = _MARKER.split(marked)
    parts: list[str | Placeholder] = [slots[int(piece)] if index % 2 else piece for index, piece in enumerate(pieces)]
    return tuple(part for part in parts if part != "")
