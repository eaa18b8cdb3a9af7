"""Text split at its placeholders, and how placeholders are marked while HTML is transformed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Stand for placeholders while HTML is worked on; from the private area, which no text may have.
OPEN, CLOSE = "\ue000", "\ue001"
_MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")


@dataclass(frozen=True)
class Slot:
    """A placeholder, with the words that stand in when its value is empty.

    :param is_apart: whether its value stands among words, which it must not turn round: see directions.
    """

    name: str
    fallback: str = ""
    is_apart: bool = False


Parts = tuple[str | Slot, ...]


def fill(parts: Parts, values: Mapping[str, str], escape: Callable[[str], str] = str) -> str:
    """The text with the values put in."""
    return "".join(p if isinstance(p, str) else escape(values[p.name] or p.fallback) for p in parts)


def mark(parts: Parts) -> tuple[str, list[Slot]]:
    """One string in which each placeholder is a mark that survives any work on HTML, and what the marks mean."""
    slots = [part for part in parts if isinstance(part, Slot)]
    numbers = iter(range(len(slots)))
    return "".join(p if isinstance(p, str) else f"{OPEN}{next(numbers)}{CLOSE}" for p in parts), slots


def unmark(marked: str, slots: list[Slot]) -> Parts:
    """The way back from `mark`."""
    pieces = _MARK.split(marked)
    parts: list[str | Slot] = [slots[int(piece)] if index % 2 else piece for index, piece in enumerate(pieces)]
    return tuple(part for part in parts if part != "")
