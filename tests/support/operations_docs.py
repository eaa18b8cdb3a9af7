"""Code blocks of the operations docs: tests use exactly what the docs show."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from webapp.core.settings import ROOT

PAGES = (ROOT / "docs" / "operations.md", *sorted((ROOT / "docs" / "operations").glob("*.md")))
# Blocks within lists are indented.
_BLOCK = re.compile(r"^( *)```\w+\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def block(title: str, changed: Mapping[str, str] | None = None) -> str:
    """Return the only block of code whose first line is the comment `title`.

    :param changed: the example names, ports and folders to replace, and their replacements. Each must occur.
    :raises LookupError: when there is no such block, or more than one, or a text to replace does not occur.
    """
    found = [code for page in PAGES for code in _blocks(page) if _title(code) == title]
    if len(found) != 1:
        raise LookupError(f"{len(found)} blocks are called {title!r}")
    code = found[0]
    for there, here in (changed or {}).items():
        if there not in code:
            raise LookupError(f"{there!r} is not in the block {title!r}")
        code = code.replace(there, here)
    return code


def _blocks(page: Path) -> list[str]:
    return [textwrap.dedent(code) for _, code in _BLOCK.findall(page.read_text())]


def _title(code: str) -> str:
    first = code.split("\n", 1)[0]
    return re.sub(r"^(#|//|--) ", "", first)


def setting(unit: str, name: str) -> str:
    """Return the value of a setting in a systemd unit."""
    (value,) = re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)
    return str(value)
