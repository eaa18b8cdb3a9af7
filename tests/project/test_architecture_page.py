"""Nothing in the tree that docs/architecture.md does not place, and nothing there that the tree does not have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from webapp.core.settings import ROOT

DOORS = ("staff", "public", "api")
ROOMS = ("accounts", "customers", "offers", "redemptions", "campaigns", "shop")
WEBAPP = ROOT / "webapp"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
WHERE = PAGE.split("\n## Where is what\n")[1].split("\n## ")[0]
ROLES = re.compile(r"(\w+_)?(models|queries|actions|forms|schemas|staff|public|api|tasks)|__init__")
DIAGRAMS = [
    (page.name, source)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for source in re.findall(r"```mermaid\n(.*?)```", page.read_text(), re.S)
]


def modules(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.py")}


def test_every_folder_of_the_program_has_its_place() -> None:
    real = {path.name for path in WEBAPP.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    around = {"templates", "tests", "static", "migrations", "scripts", "benchmarks", "docs", "webapp"}
    assert set(re.findall(r"`(\w+)/`", WHERE)) == real | around
    assert all((ROOT / name).is_dir() for name in around)


def test_every_file_beside_the_rooms_has_its_place() -> None:
    named = set(re.findall(r"`(\w+)\.py`", WHERE)) - {"wsgi"}
    assert named == modules(WEBAPP) - {"__init__"}


@pytest.mark.parametrize("room", ROOMS)
def test_every_file_of_a_room_has_a_role_or_is_named(room: str) -> None:
    row = re.search(rf"^\| `{room}/` \|.*$", WHERE, re.M)
    assert row is not None
    told = row[0]
    if "mailing.md#which-file" in told:
        told = (ROOT / "docs" / "mailing.md").read_text().split("\n## Which file\n")[1]
    named = set(re.findall(r"`(\w+)`", told))
    real = modules(WEBAPP / room)
    assert {name for name in real if not ROLES.fullmatch(name)} <= named
    assert named <= real


def test_every_file_says_what_it_is_for() -> None:
    files = [path for path in WEBAPP.rglob("*.py") if path.name != "__init__.py"]
    assert [path for path in files if not path.read_text().startswith('"""')] == []


def test_the_drawn_rooms_and_doors_are_those_there_are() -> None:
    drawing = DIAGRAMS[[name for name, _ in DIAGRAMS].index("architecture.md")][1]
    drawn = re.search(r"subgraph R\[rooms\]\n\s+direction LR\n\s+([^\n]+)", drawing)
    assert drawn is not None
    assert tuple(drawn[1].split(" ~~~ ")) == ROOMS
    assert {name.lower() for name in re.findall(r"\[(\w+) door<br>", drawing)} == set(DOORS)


@pytest.mark.parametrize(("name", "source"), DIAGRAMS, ids=[name for name, _ in DIAGRAMS])
def test_a_diagram_names_files_that_there_are_and_draws_every_line_between_known_ends(name: str, source: str) -> None:
    for room, file in re.findall(rf"\b({'|'.join(ROOMS)})\.(\w+)\b", source):
        assert (WEBAPP / room / f"{file}.py").exists()
    if source.startswith("sequenceDiagram"):
        known = set(re.findall(r"participant (\w+) as", source))
        assert {end for ends in re.findall(r"^\s*(\w+)-+[>x)]+(\w+):", source, re.M) for end in ends} <= known
    else:
        assert source.startswith(("flowchart ", "erDiagram", "stateDiagram"))
