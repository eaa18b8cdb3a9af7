"""The pages about OWASP ASVS: the evidence that they name exists, and the totals are those of the rows."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from webapp.core.settings import ROOT

PAGES = sorted((ROOT / "docs").glob("asvs*.md"))
PATH = re.compile(r"`((?:webapp|local|tests|templates|static|migrations|scripts|docs)/[\w./-]+)(?:::([\w:]+))?`")
ROW = re.compile(r"^\| ((?:\d+\.\d+\.\d+(?:, )?)+) \| (?:\*(\w[\w ]*)\*)?", re.M)


def _is_defined(names: str, path: Path) -> bool:
    """Return whether a file defines a function or a constant, or a class and its method (`TestClass::test_name`)."""
    text = path.read_text()
    return all(re.search(rf"^ *(?:def |class )?{name}\b", text, re.M) for name in names.split("::"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_file_function_and_test_exists(page: Path) -> None:
    missing = []
    for path, name in PATH.findall(page.read_text()):
        if not (ROOT / path).exists() or (name and not _is_defined(name, ROOT / path)):
            missing.append(f"{path}::{name}")
    defined = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.M)
    }
    missing += set(re.findall(r"`(test_\w+)`", page.read_text())) - defined

    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_requirement_has_one_row(page: Path) -> None:
    numbers = [number for cell, _status in ROW.findall(page.read_text()) for number in cell.split(", ")]

    assert [number for number, count in Counter(numbers).items() if count > 1] == []


def test_the_totals_are_those_of_the_rows() -> None:
    text = (ROOT / "docs" / "asvs.md").read_text()
    shown = {
        name: int(count) for name, count in re.findall(r"^\| (?:\*([\w ]+)\*|nothing) \|.*\| (\d+) \|$", text, re.M)
    }
    counted: Counter[str] = Counter()
    for cell, status in ROW.findall(text):
        counted[status] += len(cell.split(", "))

    assert counted == shown
    assert f"{counted.total()} requirements" in text
