"""The house rules of docs/architecture.md, read from the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from webapp.core.settings import ROOT

ROOMS = ("accounts", "customers", "offers", "redemptions", "campaigns", "shop")
DOORS = ("staff", "public", "api")
# Lowest first: a file imports only from its own level or below.
LEVELS = ("models", "queries", "actions", "tasks", "doors")
TRAIL = {"accounts.actions", "accounts.actions.record"}
# What the shop is called and looks like is everybody's business; how that is kept and changed is nobody's.
SHOP = "shop.queries"
# What the cores of a room may import of other rooms. Every core may write to the audit trail.
MAY_IMPORT = {
    # Only for `normalise_email`: an address is compared in one way everywhere.
    "accounts": {"customers"},
    "customers": set(),
    "offers": set(),
    "redemptions": {"customers", "offers", "campaigns"},
    "campaigns": {"customers", "offers", "redemptions"},
    # Only for `normalise_email`, too: where answers go must be an address.
    "shop": {"customers"},
}


def files() -> Iterator[tuple[str, str, Path]]:
    """(room, role, path) of every file of a room."""
    for room in ROOMS:
        for path in sorted((ROOT / "webapp" / room).glob("*.py")):
            if path.stem != "__init__":
                yield room, path.stem, path


def imports(path: Path) -> set[str]:
    """The modules of webapp that a file imports, as `room.role` or `module`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name.removeprefix("webapp.") for name in found if name.startswith("webapp.")}


def is_door(role: str) -> bool:
    """Whether a file is a door, or a part of one in a file of its own."""
    return role.rpartition("_")[2] in DOORS


ALL = list(files())


@pytest.mark.parametrize(("room", "role", "path"), ALL, ids=[f"{room}.{role}" for room, role, _ in ALL])
def test_a_core_knows_only_the_rooms_it_may(room: str, role: str, path: Path) -> None:
    if is_door(role):
        return
    others = {name.split(".")[0] for name in imports(path)} & set(ROOMS) - {room}
    others -= {"accounts"} if _uses_only_the_trail(path) else set()
    others -= {"shop"} if _asks_only_about_the_shop(path) else set()
    assert others <= MAY_IMPORT[room]


@pytest.mark.parametrize(("room", "role", "path"), ALL, ids=[f"{room}.{role}" for room, role, _ in ALL])
def test_imports_point_down(room: str, role: str, path: Path) -> None:
    # Actions in a file of their own call whatever actions may.
    level = _level("actions" if role.endswith("_actions") else role)
    for name in imports(path):
        other, _, rest = name.partition(".")
        if other in ROOMS and rest and name not in TRAIL:
            assert _level(rest.split(".")[0]) <= level, f"{path.name} imports {name}"


@pytest.mark.parametrize(("room", "role", "path"), ALL, ids=[f"{room}.{role}" for room, role, _ in ALL])
def test_redemptions_and_campaigns_do_not_call_each_others_actions(room: str, role: str, path: Path) -> None:
    other = {"redemptions": "campaigns", "campaigns": "redemptions"}.get(room)
    if other and not is_door(role):
        assert not {f"{other}.actions", f"{other}.tasks"} & imports(path)


@pytest.mark.parametrize(("room", "role", "path"), ALL, ids=[f"{room}.{role}" for room, role, _ in ALL])
def test_only_actions_commit(room: str, role: str, path: Path) -> None:
    if role != "actions" and not role.endswith("_actions"):
        calls = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
        assert not {call for call in calls if call.endswith(".commit")}


@pytest.mark.parametrize(("room", "role", "path"), ALL, ids=[f"{room}.{role}" for room, role, _ in ALL])
def test_doors_hold_no_sql_and_cores_no_request(room: str, role: str, path: Path) -> None:
    names = _names_imported_from(path, "flask") if not is_door(role) else set()
    assert not names & {"request", "session", "g", "redirect", "render_template"}
    if is_door(role):
        assert not any(name.startswith("sqlalchemy") for name in _modules(path))
        assert "db" not in _names_imported_from(path, "webapp.core.extensions")


def _level(role: str) -> int:
    if is_door(role):
        return LEVELS.index("doors")
    if role in LEVELS:
        return LEVELS.index(role)
    # The other files of a room (verdict, links, message, forms …) stand beside its queries.
    return LEVELS.index("queries")


def _uses_only_the_trail(path: Path) -> bool:
    return {name for name in imports(path) if name.startswith("accounts")} <= TRAIL


def _asks_only_about_the_shop(path: Path) -> bool:
    of_the_shop = {name for name in imports(path) if name.split(".")[0] == "shop"} - {"shop"}
    return all(name == SHOP or name.startswith(f"{SHOP}.") for name in of_the_shop)


def _names_imported_from(path: Path, module: str) -> set[str]:
    return {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    }


def _modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
