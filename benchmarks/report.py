"""Small things that the pages of all benchmarks have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median


def met(reached: bool) -> str:
    return "met" if reached else "**missed**"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and from where to where the values go."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def goals(lines: Sequence[tuple[str, str, str, bool]]) -> Iterator[str]:
    """Targets: a table of what, how much, how much it was and whether that is enough."""
    yield "| | target | measured | |"
    yield "|---|---:|---:|---|"
    for what, wanted, found, enough in lines:
        yield f"| {what} | {wanted} | {found} | {met(enough)} |"
