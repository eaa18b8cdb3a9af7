"""The Markdown pages: links, files, commands and settings in them exist.

Each test checks every page and reports all problems in one failure.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import click
from flask import Flask

from webapp.core import settings as app_settings
from webapp.core.settings import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
DOCS = ROOT / "docs"
# Settings that only the tests use.
TEST_SETTINGS = {"CITUS_URL", "TEST_DATABASE_URL"}
# The headings of a page about a decision, in this order.
HEADINGS = ["Context", "Decision", "Why", "What would change it"]
# Make targets that other targets call.
WITHOUT_HELP = {"help", "install", "install-dev", "python"}


@cache
def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.M | re.S)


@cache
def code(page: Path) -> str:
    """Return the code of a page: spans, fenced blocks and indented blocks."""
    text = page.read_text()
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```$", text, re.M | re.S)
    indented = re.findall(r"^    .*$", prose(page), re.M)
    return "\n".join([*blocks, *indented, *re.findall(r"`([^`\n]+)`", prose(page))])


@cache
def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub builds them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


def problems(check: Callable[[Path], Iterable[str]]) -> list[str]:
    """Return `page: problem` for every problem of every page."""
    return [f"{page.relative_to(ROOT)}: {problem}" for page in PAGES for problem in check(page)]


def assert_none(found: Iterable[object]) -> None:
    """Fail with all problems, one per line."""
    lines = sorted(map(str, found))
    assert not lines, "\n" + "\n".join(lines)


def links(page: Path) -> Iterator[str]:
    """Yield the local targets of a page's links and images."""
    spans = re.sub(r"`[^`\n]*`", "`code`", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", spans):
        if not re.match(r"[a-z]+:", target):
            yield target


def _broken_links(page: Path) -> Iterator[str]:
    for target in links(page):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists():
            yield f"{target}: there is no such file"
        elif anchor and anchor not in anchors(linked):
            yield f"{target}: there is no such heading"


def test_every_link_has_a_target() -> None:
    assert_none(problems(_broken_links))


def _missing_files(page: Path) -> list[str]:
    tops = "webapp|local|tests|templates|static|migrations|scripts|benchmarks|docs"
    named = re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./*-]*\w[*/]?", code(page))
    # NAME is a placeholder.
    return [name for name in named if not any(ROOT.glob(name.removesuffix("/").replace("NAME", "*")))]


def test_every_named_file_exists() -> None:
    assert_none(problems(_missing_files))


def targets() -> dict[str, bool]:
    """Return the targets of the Makefile, and whether `make help` lists each."""
    help_text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = set(re.findall(r"^  make (\S+)", help_text, re.M))
    # One line may list several targets: `benchmark-NAME  growth launch …`.
    for stem, endings in re.findall(r"^  make (\S+-)NAME +(.+)$", help_text, re.M):
        named |= {f"{stem}{ending}" for ending in endings.split()}
    real = re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.M)
    return {name: name in named for name in real}


def test_make_help_lists_every_target() -> None:
    assert [name for name, is_listed in targets().items() if not is_listed and name not in WITHOUT_HELP] == []


def test_every_make_command_exists() -> None:
    known = targets()

    def unknown(page: Path) -> list[str]:
        given = re.findall(r"(?:^|[&|;(]) *(?:[A-Z_]+=\S+ +)*make ([A-Za-z][\w-]*)", code(page), re.M)
        # NAME is a placeholder.
        return [name for name in given if not any(fnmatch(real, name.replace("NAME", "*")) for real in known)]

    assert_none(problems(unknown))


def test_every_flask_command_exists(app: Flask) -> None:
    def unknown(page: Path) -> Iterator[str]:
        given = re.findall(
            r"(?:flask --app wsgi|^…) ([a-z][\w-]*)(?: ([a-z][\w-]*(?: \| [a-z][\w-]*)*))?", code(page), re.M
        )
        for name, subcommands in given:
            group = app.cli.commands.get(name)
            if group is None:
                yield name
            # A page may list the commands of a group: `key renew | retire | list`.
            elif isinstance(group, click.Group):
                yield from (f"{name} {sub}" for sub in subcommands.split(" | ") if sub and sub not in group.commands)

    assert_none(problems(unknown))


def test_the_table_lists_exactly_the_existing_settings() -> None:
    table = (DOCS / "settings.md").read_text()
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(
        app_settings.SETTING_NAMES
    ) | TEST_SETTINGS


def test_every_named_setting_exists() -> None:
    """Checks names that look like settings: `MAIL_…`, `PUBLIC_…` and so on."""
    prefixes = "|".join(
        sorted({name.partition("_")[0] for name in app_settings.SETTING_NAMES if "_" in name} - {"LOG"})
    )

    def unknown(page: Path) -> set[str]:
        return set(re.findall(rf"(?<![\w$.])(?:{prefixes})_[A-Z_]+\b", code(page))) - set(app_settings.SETTING_NAMES)

    assert_none(problems(unknown))


def _local_paths(page: Path) -> list[str]:
    text = page.read_text()
    paths = re.findall(r"(?<![\w.])/(?:work|root|Users|home/\w+)/\S*", text)
    return paths + re.findall(r"\.\./shared\b|index-url|/simple/\S*|\bpypi\.\S+|registry\.npm\S*", text)


def test_no_page_names_paths_of_one_machine() -> None:
    assert_none(problems(_local_paths))


def test_an_index_links_to_every_page() -> None:
    """Each folder of docs/ has its own index."""
    missing = set()
    for pages, index in (
        ("*.md", "README.md"),
        ("decisions/*.md", "decisions/README.md"),
        ("benchmarks/*.md", "benchmarks.md"),
        ("operations/*.md", "operations.md"),
    ):
        page = DOCS / index
        shown = {(page.parent / target.partition("#")[0]).resolve() for target in links(page)}
        missing |= set(DOCS.glob(pages)) - shown - {page}
    assert_none(missing)


def test_every_decision_has_its_headings_and_is_listed_by_its_title() -> None:
    listed = dict(re.findall(r"^- \[(.+)\]\((\S+)\)$", prose(DOCS / "decisions" / "README.md"), re.M))
    found = []
    for page in sorted((DOCS / "decisions").glob("*.md")):
        if page.name != "README.md":
            title, *headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
            found += [f"{page.name}: headings {headings}"] if headings != HEADINGS else []
            found += [f"{page.name}: not listed as {title!r}"] if listed.get(title) != page.name else []
    assert_none(found)


def test_the_architecture_page_names_every_folder() -> None:
    named = set(re.findall(r"`?\b(?:webapp/|local/)?((?:\w+/)+)", (DOCS / "architecture.md").read_text()))
    named = {part for path in named for part in path.strip("/").split("/")}
    folders = {path.parent.name for top in ("webapp", "local") for path in (ROOT / top).rglob("*.py")}
    assert_none(folders - named)


def _diagram_problems(page: Path) -> Iterator[str]:
    for source in re.findall(r"```mermaid\n(.*?)```", page.read_text(), re.S):
        if source.startswith("sequenceDiagram"):
            known = set(re.findall(r"participant (\w+) as", source))
            ends = {end for ends in re.findall(r"^\s*(\w+)-+[>x)]+(\w+):", source, re.M) for end in ends}
            yield from (f"no participant is named {end}" for end in ends - known)
        elif not source.startswith(("flowchart ", "erDiagram", "stateDiagram")):
            yield f"unknown kind of diagram: {source.splitlines()[0]}"


def test_every_line_of_a_diagram_has_known_ends() -> None:
    assert_none(problems(_diagram_problems))
