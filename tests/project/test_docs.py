"""The pages in Markdown: what they link to, name and tell to type is there; nothing of one machine stands in them.

Each test looks at every page and shows everything that is wrong in one failure.
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
# Read by the tests, or by what starts them, and by nothing else.
OF_THE_TESTS = {"TEST_DATABASE_URL"}
# What a page about a decision says, and in this order.
HEADINGS = ["Context", "Decision", "Why", "What would change it"]
# Called by other targets.
WITHOUT_HELP = {"help", "install", "install-dev", "python"}


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


def offenders(check: Callable[[Path], Iterable[str]]) -> list[str]:
    """`page: what is wrong with it`, for every page."""
    return [f"{page.relative_to(ROOT)}: {wrong}" for page in PAGES for wrong in check(page)]


def refuse(wrong: Iterable[object]) -> None:
    """Fail with everything that is wrong, one a line."""
    lines = sorted(map(str, wrong))
    assert not lines, "\n" + "\n".join(lines)


def links(page: Path) -> Iterator[str]:
    """The targets of a page's links and pictures that are no addresses of the world."""
    spans = re.sub(r"`[^`\n]*`", "`code`", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", spans):
        if not re.match(r"[a-z]+:", target):
            yield target


def _broken_links(page: Path) -> Iterator[str]:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists():
            yield f"{target}: there is no such file"
        elif anchor and anchor not in anchors(there):
            yield f"{target}: there is no such heading"


def test_every_link_leads_somewhere() -> None:
    refuse(offenders(_broken_links))


def _missing_files(page: Path) -> list[str]:
    tops = "webapp|local|tests|templates|static|migrations|scripts|benchmarks|docs"
    named = re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./*-]*\w[*/]?", code(page))
    # NAME stands for any.
    return [name for name in named if not any(ROOT.glob(name.removesuffix("/").replace("NAME", "*")))]


def test_every_file_that_is_named_is_there() -> None:
    refuse(offenders(_missing_files))


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


def test_every_make_command_is_one() -> None:
    known = targets()

    def unknown(page: Path) -> list[str]:
        given = re.findall(r"(?:^|[&|;(]) *(?:[A-Z_]+=\S+ +)*make ([A-Za-z][\w-]*)", code(page), re.M)
        # NAME stands for any.
        return [name for name in given if not any(fnmatch(real, name.replace("NAME", "*")) for real in known)]

    refuse(offenders(unknown))


def test_every_flask_command_is_one(app: Flask) -> None:
    def unknown(page: Path) -> Iterator[str]:
        given = re.findall(
            r"(?:flask --app wsgi|^…) ([a-z][\w-]*)(?: ([a-z][\w-]*(?: \| [a-z][\w-]*)*))?", code(page), re.M
        )
        for name, of_group in given:
            group = app.cli.commands.get(name)
            if group is None:
                yield name
            # The commands of a group may be listed: `key renew | retire | list`.
            elif isinstance(group, click.Group):
                yield from (f"{name} {one}" for one in of_group.split(" | ") if one and one not in group.commands)

    refuse(offenders(unknown))


def test_every_setting_is_in_the_table_and_every_one_there_is_a_setting() -> None:
    table = (DOCS / "settings.md").read_text()
    cells = re.findall(r"^\| (`.*?) \|", table, re.M)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(
        app_settings.SETTING_NAMES
    ) | OF_THE_TESTS


def test_every_setting_that_is_named_is_one() -> None:
    """Of words that look like ours: `MAIL_…`, `PUBLIC_…` and so on."""
    kinds = "|".join(sorted({name.partition("_")[0] for name in app_settings.SETTING_NAMES if "_" in name} - {"LOG"}))

    def unknown(page: Path) -> set[str]:
        return set(re.findall(rf"(?<![\w$.])(?:{kinds})_[A-Z_]+\b", code(page))) - set(app_settings.SETTING_NAMES)

    refuse(offenders(unknown))


def _of_one_machine(page: Path) -> list[str]:
    text = page.read_text()
    paths = re.findall(r"(?<![\w.])/(?:work|root|Users|home/\w+)/\S*", text)
    return paths + re.findall(r"\.\./shared\b|index-url|/simple/\S*|\bpypi\.\S+|registry\.npm\S*", text)


def test_nothing_of_one_machine_is_in_it() -> None:
    refuse(offenders(_of_one_machine))


def test_the_index_leads_to_every_page() -> None:
    """To those in a folder of docs/ their own index leads."""
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
    refuse(missing)


def test_every_decision_has_its_four_headings_and_is_listed_by_its_title() -> None:
    listed = dict(re.findall(r"^- \[(.+)\]\((\S+)\)$", prose(DOCS / "decisions" / "README.md"), re.M))
    wrong = []
    for page in sorted((DOCS / "decisions").glob("*.md")):
        if page.name != "README.md":
            title, *headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
            wrong += [f"{page.name}: headings {headings}"] if headings != HEADINGS else []
            wrong += [f"{page.name}: not listed as {title!r}"] if listed.get(title) != page.name else []
    refuse(wrong)


def test_the_architecture_page_names_every_folder() -> None:
    named = set(re.findall(r"`?\b(?:webapp/|local/)?((?:\w+/)+)", (DOCS / "architecture.md").read_text()))
    named = {part for path in named for part in path.strip("/").split("/")}
    folders = {path.parent.name for top in ("webapp", "local") for path in (ROOT / top).rglob("*.py")}
    refuse(folders - named)


def _loose_ends(page: Path) -> Iterator[str]:
    for source in re.findall(r"```mermaid\n(.*?)```", page.read_text(), re.S):
        if source.startswith("sequenceDiagram"):
            known = set(re.findall(r"participant (\w+) as", source))
            ends = {end for ends in re.findall(r"^\s*(\w+)-+[>x)]+(\w+):", source, re.M) for end in ends}
            yield from (f"nobody is called {end}" for end in ends - known)
        elif not source.startswith(("flowchart ", "erDiagram", "stateDiagram")):
            yield f"an unknown kind of diagram: {source.splitlines()[0]}"


def test_a_diagram_draws_every_line_between_known_ends() -> None:
    refuse(offenders(_loose_ends))
