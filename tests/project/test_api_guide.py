"""docs/api.md, followed: bash and curl run its commands as they stand there, and its answers are the real ones."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import get_args

import pytest
from flask import Flask

from tests.support import doc_examples, live_server, smtp_relay
from webapp.campaigns.launch import preconditions
from webapp.core.settings import ROOT, Settings
from webapp.customers.imports import parse_results
from webapp.redemptions.rules import RefusalReason

PAGE = ROOT / "docs" / "api.md"
TOLD_URL = "http://127.0.0.1:8000"
END = "--- that was step"


@pytest.fixture
def served(app: Flask, with_settings: Callable[..., Settings]) -> Iterator[tuple[str, Settings]]:
    """The web server and a worker beside a relay that refuses Bob's mail once, as the page tells."""
    with smtp_relay.running() as relay:
        relay.behaviour.rcpt["bob@example.com"] = "550 5.2.1 The mailbox is disabled"
        relay.behaviour.uses["bob@example.com"] = 1
        settings = with_settings(mail_port=relay.port)
        # A mailing to two thousand must still be under way when the page pauses it.
        with (
            live_server.web_server(settings) as web,
            live_server.worker(settings, PUBLIC_URL=web.url, MAIL_PER_SECOND="100"),
        ):
            yield web.url, settings


def test_whoever_follows_the_page_sees_what_it_shows(served: tuple[str, Settings]) -> None:
    url, settings = served
    steps = doc_examples.steps(PAGE)
    script = "".join(f"{step.commands}\necho '{END}'\n" for step in steps)
    assert script.count(TOLD_URL) == 1
    done = subprocess.run(
        ["bash", "-c", script.replace(TOLD_URL, url)],
        cwd=ROOT,
        env=live_server.environment(settings, PUBLIC_URL=url) | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    answers = done.stdout.split(f"{END}\n")[:-1]
    assert (done.returncode, len(answers)) == (0, len(steps)), done.stderr
    wrong = [
        f"docs/api.md:{step.line}: {said}"
        for step, answer in zip(steps, answers, strict=True)
        for said in doc_examples.differences(step, answer)
    ]
    assert not wrong, "\n".join(wrong)


def _commands() -> str:
    """All that the page runs, each command in one line, its variables read as parts of an address."""
    text = "\n".join(step.commands for step in doc_examples.steps(PAGE)).replace("\\\n", " ")
    return re.sub(r"for verb in pause resume cancel; do (.*\$verb.*); done", _each_verb, text)


def _each_verb(loop: re.Match[str]) -> str:
    return "\n".join(loop[1].replace("$verb", verb) for verb in ("pause", "resume", "cancel"))


def _ran() -> set[tuple[str, str]]:
    """Method and path of every call that the page runs."""
    ran = set()
    for call in re.split(r"\bcurl\b", _commands())[1:]:
        address = re.search(r"\$URL/api/v1([^\s\"'?]*)", call)
        assert address, call
        method = re.search(r"-X ([A-Z]+)", call)
        sends = re.search(r"--json|--data", call.split("$URL/api/v1", 1)[1].split("\n$")[0])
        ran.add((method[1] if method else "POST" if sends else "GET", address[1]))
    return ran


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"{\w+}", "[^/]+", path))


def _table() -> dict[tuple[str, str], str]:
    """(method, path) → scope of the table of all calls."""
    return {
        (found[1], found[2]): found[3]
        for found in re.finditer(r"^\| `([A-Z]+) (/\S+)` \| (\w+) \|", PAGE.read_text(), re.M)
    }


def _documented(app: Flask) -> dict[tuple[str, str], str]:
    """The same of the OpenAPI document."""
    paths = app.test_client().get("/api/v1/openapi.json").get_json()["paths"]
    return {
        (method.upper(), path.removeprefix("/api/v1")): re.findall(r"Requires the scope `(\w+)`", call["description"])[
            0
        ]
        for path, calls in paths.items()
        for method, call in calls.items()
    }


def test_the_table_has_every_call_with_its_scope_and_no_other(app: Flask) -> None:
    assert _table() == _documented(app)


def test_every_call_of_the_table_is_run_on_the_page() -> None:
    ran = _ran()
    missing = [
        f"{method} {path}"
        for method, path in _table()
        if not any(method == done and _pattern(path).fullmatch(address) for done, address in ran)
    ]
    assert missing == []


# Said at the door of staff alone, or on the way to a page.
SAID_TO_STAFF = {"disabled", "form_broken", "last_admin", "relay_down", "relay_refuses", "sign_in_failed", "suppressed"}
# Lists of addresses, names of audiences, times of day by the clock on the wall, and what becomes of uncertain mails.
FIELDS_OF_STAFF = {"reason_unknown", "cells_odd", "name_taken", "time_missing", "time_ambiguous", "policy_unknown"}
# Modules that no API call uses.
NEVER_BY_JSON = re.compile(
    r"/(accounts|shop|overview|monitoring)/|/views/(staff|public)/|/customers/suppressions/|/suppression_\w+\.py$"
)


def _said(call: str, position: int) -> dict[str, set[str]]:
    """The words that code gives an error as a literal, and in which files."""
    said: dict[str, set[str]] = {}
    for path in sorted((ROOT / "webapp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (call, "RedemptionRefused"):
                word = node.args[position] if len(node.args) > position else None
                if isinstance(word, ast.Constant):
                    said.setdefault(str(word.value), set()).add(str(path))
    return said


def _section(title: str) -> str:
    return PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_codes_of_refusals_are_those_of_the_program() -> None:
    told = {
        word
        for row in re.findall(r"^\| [\d, ]+ \| (.+?) \|", _section("Errors"), re.M)
        for word in re.findall(r"`(\w+)`", row)
    }
    by_rule = (
        set(get_args(RefusalReason))
        | {word for word, _ in preconditions.OFFER_STATE_REFUSALS.values()}
        | _said("DomainError", 0).keys()
    )
    of_the_door = {"not_found", "invalid_payload", "unavailable", "method_not_allowed", "rate_limited"}
    source = (ROOT / "webapp" / "views" / "error_handlers.py").read_text()
    assert all(f'"{word}"' in source for word in of_the_door)
    assert told == (by_rule | of_the_door) - SAID_TO_STAFF
    assert by_rule >= SAID_TO_STAFF


def test_the_codes_of_fields_are_those_of_the_program() -> None:
    lists = _section("Errors").split("The codes in `errors[]`")[1]
    told = set(re.findall(r"`(\w+)`", lists.split("and these:")[1])) - {"conflict"}
    said = {word for word, files in _said("FieldError", 1).items() if not all(map(NEVER_BY_JSON.search, files))}
    said |= parse_results._ROW_MESSAGES.keys() | parse_results._FILE_MESSAGES.keys()
    assert said - told == FIELDS_OF_STAFF
    literals = {
        node.value
        for path in (ROOT / "webapp").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert told <= literals
