"""The pages in Markdown: what they link to, name and tell to type is there; nothing of one machine stands in them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import click
import pytest
from flask import Flask

from webapp.core import settings as app_settings
from webapp.core.settings import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
DOCS = ROOT / "docs"
# Read by the tests, or by what starts them, and by nothing else.
OF_THE_TESTS = {"TEST_DATABASE_URL"}
# What a page about a decision says, and in this order.
HEADINGS = ["Context", "Decision", "Why", "What would change it"]
# Called by other targets.
WITHOUT_HELP = {"help", "install", "install-dev", "python"}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.M | re.S)


@cache
def code(page: Path) -> str:
    """What stands in a page as code: spans, fenced blocks, and blocks that are moved in."""
    text = page.read_text()
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.M | re.S)
    indented = re.findall(r"^    .*$", prose(page), re.M)
    return "\n".join([*blocks, *indented, *re.findall(r"`([^`\n]+)`", prose(page))])


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links and pictures that are no addresses of the world."""
    spans = re.sub(r"`[^`\n]*`", "`code`", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", spans):
        if not re.match(r"[a-z]+:", target):
            yield target


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target}: there is no such file"
        assert not anchor or anchor in anchors(there), f"{target}: there is no such heading"


@every_page
def test_every_file_that_is_named_is_there(page: Path) -> None:
    tops = "webapp|tests|templates|static|migrations|scripts|benchmarks|docs"
    named = re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./*-]*\w[*/]?", code(page))
    # NAME stands for any.
    missing = [name for name in named if not any(ROOT.glob(name.removesuffix("/").replace("NAME", "*")))]
    assert missing == []


def targets() -> dict[str, bool]:
    """The targets of the Makefile, and whether `make help` tells of each."""
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"^  make (\S+)", told, re.M))
    # One line may stand for several: `benchmark-NAME  growth launch …`.
    for stem, endings in re.findall(r"^  make (\S+-)NAME +(.+)$", told, re.M):
        named |= {f"{stem}{ending}" for ending in endings.split()}
    real = re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    return {name: name in named for name in real}


def test_make_help_tells_of_every_command() -> None:
    assert [name for name, told in targets().items() if not told and name not in WITHOUT_HELP] == []


@every_page
def test_every_make_command_is_one(page: Path) -> None:
    given = re.findall(r"(?:^|[&|;(]) *(?:[A-Z_]+=\S+ +)*make ([A-Za-z][\w-]*)", code(page), re.M)
    # NAME stands for any.
    assert [name for name in given if not any(fnmatch(real, name.replace("NAME", "*")) for real in targets())] == []


@every_page
def test_every_flask_command_is_one(app: Flask, page: Path) -> None:
    given = re.findall(
        r"(?:flask --app wsgi|^…) ([a-z][\w-]*)(?: ([a-z][\w-]*(?: \| [a-z][\w-]*)*))?", code(page), re.M
    )
    for name, of_group in given:
        assert name in app.cli.commands, name
        group = app.cli.commands[name]
        # The commands of a group may be listed: `key renew | retire | list`.
        if isinstance(group, click.Group):
            assert set(filter(None, of_group.split(" | "))) <= group.commands.keys(), of_group


def test_every_setting_is_in_the_table_and_every_one_there_is_a_setting() -> None:
    table = (DOCS / "settings.md").read_text()
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(
        app_settings.SETTING_NAMES
    ) | OF_THE_TESTS


@every_page
def test_every_setting_that_is_named_is_one(page: Path) -> None:
    """Of words that look like ours: `MAIL_…`, `PUBLIC_…` and so on."""
    kinds = "|".join(sorted({name.partition("_")[0] for name in app_settings.SETTING_NAMES if "_" in name} - {"LOG"}))
    named = set(re.findall(rf"(?<![\w$.])(?:{kinds})_[A-Z_]+\b", code(page)))
    assert named - set(app_settings.SETTING_NAMES) == set()


@every_page
def test_nothing_of_one_machine_is_in_it(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"(?<![\w.])/(?:work|root|Users|home/\w+)/\S*", text) == []
    assert re.findall(r"\.\./shared\b|index-url|/simple/\S*|\bpypi\.\S+|registry\.npm\S*", text) == []


def test_the_index_leads_to_every_page() -> None:
    """To those in a folder of docs/ their own index leads."""
    shown = {(DOCS / target.partition("#")[0]).resolve() for target in links(DOCS / "README.md")}
    assert {page for page in DOCS.glob("*.md") if page.name != "README.md"} - shown == set()
    for folder, index in (
        ("decisions", "decisions/README.md"),
        ("benchmarks", "benchmarks.md"),
        ("operations", "operations.md"),
    ):
        shown = {(DOCS / index).parent / target for target in links(DOCS / index)}
        pages = {page for page in (DOCS / folder).glob("*.md") if page != DOCS / index}
        assert pages - {path.resolve() for path in shown} == set()


def test_every_decision_has_its_four_headings_and_is_listed_by_its_title() -> None:
    listed = dict(re.findall(r"^- \[(.+)\]\((\S+)\)$", prose(DOCS / "decisions" / "README.md"), re.M))
    for page in sorted((DOCS / "decisions").glob("*.md")):
        if page.name != "README.md":
            title, *headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
            assert headings == HEADINGS, page.name
            assert listed.get(title) == page.name
