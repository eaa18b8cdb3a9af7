"""Examples in docs/: the commands of a page in order, and their output.

The shown output may omit parts: `…` within a text stands for any text, as a value for any value, and as the last item
of an object or a list for more items. Everything else must be equal to the real output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANY = "…"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|…|[\[\]{}]|[^"…\[\]{}]+')


@dataclass(frozen=True)
class ExampleStep:
    """A block of commands and the block with its output that follows, if there is one."""

    line: int
    commands: str
    kind: str
    output: str


def steps(page: Path) -> list[ExampleStep]:
    """Return the `bash` blocks of a page, each with the output that follows it.

    A `json`, `http` or `text` block shows output.
    """
    text = page.read_text()
    blocks = list(_FENCE.finditer(text))
    found = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == "bash":
            shown = following if following and following[1] in ("json", "http", "text") else None
            line = text[: block.start()].count("\n") + 1
            found.append(ExampleStep(line, block[2], shown[1] if shown else "", shown[2] if shown else ""))
    return found


def differences(step: ExampleStep, output: str) -> list[str]:
    """Describe where the real output differs from the page; empty when it does not."""
    if not step.kind:
        return []
    if step.kind == "text":
        return [] if _text_matches(step.output.strip(), output.strip()) else [f"real output: {output.strip()!r}"]
    head, body = ("", step.output) if step.kind == "json" else _split_head(step.output)
    real_head, real_body = ("", output) if step.kind == "json" else _split_head(output.replace("\r\n", "\n"))
    real_lines = [line for line in real_head.split("\n") if line]
    # Header names are case-insensitive, and a page need not show every header.
    missing = [
        f"line {line!r} is missing in {real_lines}"
        for line in head.split("\n")
        if line and not any(_text_matches(_lower_name(line), _lower_name(real)) for real in real_lines)
    ]
    if not body.strip():
        return missing + ([f"unexpected body: {real_body!r}"] if real_body.strip() else [])
    try:
        real = json.loads(real_body)
    except ValueError:
        return [*missing, f"not JSON: {real_body!r}"]
    found = [*missing, *_differ(json.loads(_quote_ellipses(body)), real, "")]
    return [*found, f"real output: {real_body.strip()}"] if found else []


def _split_head(text: str) -> tuple[str, str]:
    head, _, body = text.strip("\n").partition("\n\n")
    return head, body


def _lower_name(line: str) -> str:
    name, colon, value = line.strip().partition(":")
    return f"{name.lower()}{colon}{value}" if colon else line.strip()


def _quote_ellipses(shown: str) -> str:
    """Replace each `…` outside of texts so that the result is valid JSON."""
    containers: list[str] = []
    parts: list[str] = []
    for part in _PART.findall(shown):
        if part in ("{", "["):
            containers.append(part)
        elif part in ("}", "]"):
            containers.pop()
        elif part == ANY:
            is_value = "".join(parts).rstrip().endswith(":") or containers[-1:] != ["{"]
            part = f'"{ANY}"' if is_value else f'"{ANY}": "{ANY}"'
        parts.append(part)
    return "".join(parts)


def _differ(shown: Any, real: Any, where: str) -> Iterator[str]:
    if shown == ANY:
        return
    if isinstance(shown, dict) and isinstance(real, dict):
        names = shown.keys() - {ANY}
        if names - real.keys() or (ANY not in shown and real.keys() - names):
            yield f"{where or '/'} has {sorted(real)}, shown are {sorted(names)}"
        for name in names & real.keys():
            yield from _differ(shown[name], real[name], f"{where}/{name}")
    elif isinstance(shown, list) and isinstance(real, list):
        items = [item for item in shown if item != ANY]
        if len(items) > len(real) or (len(items) == len(shown) and len(items) != len(real)):
            yield f"{where or '/'} has {len(real)} items"
        for n, (shown_item, real_item) in enumerate(zip(items, real, strict=False)):
            yield from _differ(shown_item, real_item, f"{where}/{n}")
    elif isinstance(shown, str) and isinstance(real, str):
        if not _text_matches(shown, real):
            yield f"{where} is {real!r}, shown is {shown!r}"
    elif shown != real or isinstance(shown, bool) != isinstance(real, bool):
        yield f"{where} is {real!r}, shown is {shown!r}"


def _text_matches(shown: str, real: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in shown.split(ANY)), real, re.S) is not None
