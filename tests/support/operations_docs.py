"""What the pages about operations say, taken from the pages, so that they and the tests can't part."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path

from webapp.core.settings import ROOT

PAGES = (ROOT / "docs" / "operations.md", *sorted((ROOT / "docs" / "operations").glob("*.md")))
# Those inside of lists are indented.
_BLOCK = re.compile(r"^( *)```\w+\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def block(title: str, changed: Mapping[str, str] | None = None) -> str:
    """The one block of code whose first line is the comment `title`.

    :param changed: what stands there for somebody's own names, ports and folders, and what it is here. Each must occur.
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
    """The value of a setting in a unit of systemd."""
    (value,) = re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)
    return str(value)
