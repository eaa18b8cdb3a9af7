"""The rules of docs/architecture.md, checked against imports and definitions.

Each test collects all violations of its rule and reports them in one failure.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from webapp.core.settings import ROOT

# Folders from the lowest layer to the highest: a folder imports only from itself and from folders on lines above it.
# Folders on the same line do not import each other.
LAYERS = """
webapp.core
webapp.accounts
webapp.accounts.factors
webapp.accounts.oidc
webapp.customers
webapp.customers.suppressions
webapp.customers.imports
webapp.offers webapp.shop
webapp.mail
webapp.account_emails webapp.redemptions
webapp.campaigns
webapp.campaigns.content
webapp.campaigns.drafts
webapp.campaigns.launch
webapp.campaigns.deliveries
webapp.campaigns.sending
webapp.campaigns.bounces
webapp.overview webapp.monitoring webapp.retention
webapp.tasks
webapp.views
webapp.views.api.schemas
webapp.views.api
webapp.views.public
webapp.views.staff.forms
webapp.views.staff
webapp
local.mailsink
local.demo
local
wsgi
"""
LEVELS = {folder: level for level, line in enumerate(LAYERS.split("\n")) for folder in line.split()}

# Modules that commit, besides those named `actions` or `…_actions`: each is responsible for one kind of write.
WRITERS = {
    "webapp.campaigns.launch.cancellation",
    "webapp.campaigns.launch.preparation",
    "webapp.campaigns.launch.transitions",
    "webapp.campaigns.sending.auto_pause",
    "webapp.campaigns.sending.batches",
    "webapp.campaigns.sending.completion",
    "webapp.campaigns.sending.disk_warning",
    "webapp.campaigns.sending.outcomes",
    "webapp.campaigns.sending.retries",
    "webapp.campaigns.sending.windows",
    "webapp.core.queue_storage",
    "webapp.core.signing_keys",
    "webapp.customers.imports.claims",
    "webapp.customers.imports.processing",
    "webapp.redemptions.guessing",
    "webapp.redemptions.hourly_counts",
    "webapp.redemptions.rollback",
}
# Below the views, only these modules may use the request.
REQUEST_READERS = {
    "webapp.core.logs",
    "webapp.core.pagination",
    "webapp.core.rate_limit",
    "webapp.core.request_origin",
    "webapp.core.request_limits",
    "webapp.core.sessions",
}
REQUEST_NAMES = {"request", "session", "redirect", "render_template", "render_template_string", "url_for", "Request"}
# Views that may use the database: they turn outages into responses.
DATABASE_ERRORS_ONLY = {
    "webapp.views.access_notes",
    "webapp.views.api.metrics",
    "webapp.views.error_handlers",
    "webapp.views.rendering",
}
# Names that several modules may define, as part of a protocol.
SHARED_NAMES = {"init_app", "main"}
STAGING = {"webapp.customers.imports.staging", "webapp.customers.imports.suppression_staging"}
MAX_LINES, MAX_TEST_LINES = 350, 900


@dataclass(frozen=True)
class Module:
    """A module of the program."""

    name: str
    path: Path

    @cached_property
    def source(self) -> str:
        return self.path.read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def folder(self) -> str:
        return self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0] or self.name

    def imported_names(self) -> Iterator[tuple[str, str, str]]:
        """Yield (module, name, alias) of every import."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield from ((node.module, alias.name, alias.asname or alias.name) for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((alias.name, "", alias.asname or alias.name) for alias in node.names)

    def imported_modules(self) -> Iterator[tuple[Module, str]]:
        """Yield the imported modules of the program and their aliases here."""
        for module, name, alias in self.imported_names():
            found = MODULES.get(f"{module}.{name}")
            if found or module in MODULES:
                yield (found, alias) if found else (MODULES[module], "")


def _modules() -> Iterator[Module]:
    for path in sorted([*(ROOT / "webapp").rglob("*.py"), *(ROOT / "local").rglob("*.py"), ROOT / "wsgi.py"]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield Module(".".join(parts).removesuffix(".__init__"), path)


MODULES = {module.name: module for module in _modules()}


def folder_imports() -> dict[tuple[str, str], list[str]]:
    """Return the imports between folders as `module -> module`."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for module in MODULES.values():
        for other, _ in module.imported_modules():
            if other.folder != module.folder:
                found[module.folder, other.folder].append(f"{module.name} -> {other.name}")
    return found


def report(offenders: list[str]) -> str:
    return "\n" + "\n".join(sorted(set(offenders)))


def test_every_folder_has_a_layer() -> None:
    assert {module.folder for module in MODULES.values()} == LEVELS.keys()


def test_imports_between_folders_point_down() -> None:
    offenders = [
        line
        for (folder, other), imports in folder_imports().items()
        if LEVELS.get(other, -1) >= LEVELS.get(folder, -1)
        for line in imports
    ]
    assert not offenders, report(offenders)


def test_no_two_folders_import_each_other() -> None:
    found = folder_imports()
    offenders = [f"{folder} <-> {other}" for folder, other in found if (other, folder) in found and folder < other]
    assert not offenders, report(offenders)


def _ends_transactions(module: Module) -> bool:
    calls = {ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    commits = any(call.endswith(".commit") and call != "super().commit" for call in calls)
    return commits or bool(calls & {"connection.begin", "db.engine.begin"})


def test_only_actions_and_the_listed_writers_commit() -> None:
    commit = {name for name, module in MODULES.items() if name.startswith("webapp.") and _ends_transactions(module)}
    others = {name for name in commit if not name.endswith((".actions", "_actions"))}
    offenders = [f"{name} commits" for name in others - WRITERS]
    offenders += [f"{name} is listed as a writer and does not commit" for name in WRITERS - others]
    assert not offenders, report(offenders)


def test_views_do_not_use_the_database_and_other_modules_not_the_request() -> None:
    offenders = []
    for name, module in MODULES.items():
        if name.startswith("webapp.views"):
            for source, what, _ in module.imported_names():
                is_database = source.startswith("sqlalchemy") or (source, what) == ("webapp.core.extensions", "db")
                if is_database and name not in DATABASE_ERRORS_ONLY:
                    offenders.append(f"{name} imports {source} {what}")
                # The exceptions may use errors and roll back the session, but run no statements.
                if source.startswith("sqlalchemy") and source != "sqlalchemy.exc":
                    offenders.append(f"{name} imports {source} {what}")
        elif name.startswith("webapp.") and module.folder != "webapp" and name not in REQUEST_READERS:
            names = {what for source, what, _ in module.imported_names() if source == "flask"}
            offenders += [f"{name} imports flask {what}" for what in names & REQUEST_NAMES]
    assert not offenders, report(offenders)


def test_a_module_has_one_alias_everywhere() -> None:
    aliases: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for module in MODULES.values():
        for other, alias in module.imported_modules():
            if alias:
                aliases[other.name][alias].append(module.name)
    offenders = [
        f"{name} is called {alias} in {', '.join(where)}"
        for name, called in aliases.items()
        if len(called) > 1
        for alias, where in called.items()
    ]
    assert not offenders, report(offenders)


def _public_names(module: Module) -> Iterator[str]:
    """Yield public classes and functions, except views and tasks."""
    is_entry_point = module.name.startswith(("webapp.views.", "webapp.tasks."))
    functions = [node for node in module.tree.body if isinstance(node, ast.FunctionDef)]
    yield from (node.name for node in module.tree.body if isinstance(node, ast.ClassDef))
    yield from (
        node.name
        for node in functions
        if not node.name.startswith("_") and not (is_entry_point and node.decorator_list)
    )


def test_no_two_classes_or_functions_have_the_same_name() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for module in MODULES.values():
        for name in _public_names(module):
            where[name].append(module.name)
    offenders = [
        f"{name}: {', '.join(modules)}"
        for name, modules in where.items()
        if len(modules) > 1 and name not in SHARED_NAMES and set(modules) != STAGING
    ]
    assert not offenders, report(offenders)


def test_every_module_has_a_docstring() -> None:
    offenders = [n for n, m in MODULES.items() if m.path.stem != "__init__" and not ast.get_docstring(m.tree)]
    assert not offenders, report(offenders)


def test_no_file_is_too_long() -> None:
    offenders = []
    for folder, limit in (("webapp", MAX_LINES), ("local", MAX_LINES), ("tests", MAX_TEST_LINES)):
        lines = {path: path.read_text().count("\n") for path in (ROOT / folder).rglob("*.py")}
        offenders += [f"{path.relative_to(ROOT)}: {number} lines" for path, number in lines.items() if number > limit]
    assert not offenders, report(offenders)


def test_no_test_module_imports_another() -> None:
    offenders = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        module = Module(".".join(path.relative_to(ROOT).with_suffix("").parts), path)
        for source, name, _ in module.imported_names():
            parts = f"{source}.{name}".split(".")
            if parts[0] == "tests" and any(part == "conftest" or part.startswith("test_") for part in parts[1:-1]):
                offenders.append(f"{module.name} imports {source}")
    assert not offenders, report(offenders)
