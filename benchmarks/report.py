"""Common parts of the pages of all benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median


def format_met(reached: bool) -> str:
    return "met" if reached else "**missed**"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Format the median and the range of the values."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def target_table(lines: Sequence[tuple[str, str, str, bool]]) -> Iterator[str]:
    """Render a table of targets: label, target, measured value, whether it is met."""
    yield "| | target | measured | |"
    yield "|---|---:|---:|---|"
    for label, target, measured, is_met in lines:
        yield f"| {label} | {target} | {measured} | {format_met(is_met)} |"
