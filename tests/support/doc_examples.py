"""Pages of docs/ as programs: the commands of a page in the order of the page, and the answers it shows beneath them.

An answer in a page may leave parts out: `…` in a text stands for any text, as a value for any value, and as the last
of an object or a list for more of the same. What is not left out must be exactly what the program answers.
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
class Step:
    """A block of commands, and the block right beneath it that shows what they answer, if there is one."""

    line: int
    commands: str
    kind: str
    answer: str


def steps(page: Path) -> list[Step]:
    """The `bash` blocks of a page in its order, each with the `json`, `http` or `text` block that follows it."""
    text = page.read_text()
    blocks = list(_FENCE.finditer(text))
    found = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == "bash":
            shown = following if following and following[1] in ("json", "http", "text") else None
            line = text[: block.start()].count("\n") + 1
            found.append(Step(line, block[2], shown[1] if shown else "", shown[2] if shown else ""))
    return found


def differences(step: Step, output: str) -> list[str]:
    """Where what was answered is not what the page shows; empty when it is."""
    if not step.kind:
        return []
    if step.kind == "text":
        return [] if _text_matches(step.answer.strip(), output.strip()) else [f"answered {output.strip()!r}"]
    head, body = ("", step.answer) if step.kind == "json" else _parted(step.answer)
    real_head, real_body = ("", output) if step.kind == "json" else _parted(output.replace("\r\n", "\n"))
    real_lines = [line for line in real_head.split("\n") if line]
    # The case of a header's name does not matter, and there are more of them than a page needs to show.
    missing = [
        f"no line {line!r} in {real_lines}"
        for line in head.split("\n")
        if line and not any(_text_matches(_lower_name(line), _lower_name(real)) for real in real_lines)
    ]
    if not body.strip():
        return missing + ([f"a body: {real_body!r}"] if real_body.strip() else [])
    try:
        real = json.loads(real_body)
    except ValueError:
        return [*missing, f"no JSON: {real_body!r}"]
    found = [*missing, *_differ(json.loads(_completed(body)), real, "")]
    return [*found, f"answered {real_body.strip()}"] if found else []


def _parted(text: str) -> tuple[str, str]:
    head, _, body = text.strip("\n").partition("\n\n")
    return head, body


def _lower_name(line: str) -> str:
    name, colon, value = line.strip().partition(":")
    return f"{name.lower()}{colon}{value}" if colon else line.strip()


def _completed(shown: str) -> str:
    """The JSON of a page with its `…` outside of texts put so that JSON can hold them."""
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
        for n, (one, other) in enumerate(zip(items, real, strict=False)):
            yield from _differ(one, other, f"{where}/{n}")
    elif isinstance(shown, str) and isinstance(real, str):
        if not _text_matches(shown, real):
            yield f"{where} is {real!r}, shown is {shown!r}"
    elif shown != real or isinstance(shown, bool) != isinstance(real, bool):
        yield f"{where} is {real!r}, shown is {shown!r}"


def _text_matches(shown: str, real: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in shown.split(ANY)), real, re.S) is not None
