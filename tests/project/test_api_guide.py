"""docs/api.md: its commands run as shown, and its responses are the real ones."""

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
URL_ON_PAGE = "http://127.0.0.1:8000"
END = "--- end of step"


@pytest.fixture
def live_site(app: Flask, with_settings: Callable[..., Settings]) -> Iterator[tuple[str, Settings]]:
    """A web server, a worker and a relay that rejects one email to Bob."""
    with smtp_relay.running() as relay:
        relay.behaviour.rcpt["bob@example.com"] = "550 5.2.1 The mailbox is disabled"
        relay.behaviour.uses["bob@example.com"] = 1
        settings = with_settings(mail_port=relay.port)
        # A campaign to two thousand recipients must still be sending when the page pauses it.
        with (
            live_server.web_server(settings) as web,
            live_server.worker(settings, PUBLIC_URL=web.url, MAIL_PER_SECOND="100"),
        ):
            yield web.url, settings


@pytest.mark.slow
def test_the_commands_have_the_output_that_the_page_shows(live_site: tuple[str, Settings]) -> None:
    url, settings = live_site
    steps = doc_examples.steps(PAGE)
    script = "".join(f"{step.commands}\necho '{END}'\n" for step in steps)
    assert script.count(URL_ON_PAGE) == 1
    result = subprocess.run(
        ["bash", "-c", script.replace(URL_ON_PAGE, url)],
        cwd=ROOT,
        env=live_server.environment(settings, PUBLIC_URL=url) | {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    outputs = result.stdout.split(f"{END}\n")[:-1]
    assert (result.returncode, len(outputs)) == (0, len(steps)), result.stderr
    differences = [
        f"docs/api.md:{step.line}: {difference}"
        for step, output in zip(steps, outputs, strict=True)
        for difference in doc_examples.differences(step, output)
    ]
    assert not differences, "\n".join(differences)


def _commands() -> str:
    """Return all commands of the page, each on one line."""
    text = "\n".join(step.commands for step in doc_examples.steps(PAGE)).replace("\\\n", " ")
    return re.sub(r"for verb in pause resume cancel; do (.*\$verb.*); done", _each_verb, text)


def _each_verb(loop: re.Match[str]) -> str:
    return "\n".join(loop[1].replace("$verb", verb) for verb in ("pause", "resume", "cancel"))


def _calls_on_page() -> set[tuple[str, str]]:
    """Return method and path of every call on the page."""
    calls = set()
    for call in re.split(r"\bcurl\b", _commands())[1:]:
        address = re.search(r"\$URL/api/v1([^\s\"'?]*)", call)
        assert address, call
        method = re.search(r"-X ([A-Z]+)", call)
        sends = re.search(r"--json|--data", call.split("$URL/api/v1", 1)[1].split("\n$")[0])
        calls.add((method[1] if method else "POST" if sends else "GET", address[1]))
    return calls


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"{\w+}", "[^/]+", path))


def _table() -> dict[tuple[str, str], str]:
    """Return the scope by (method, path) from the page's table of all calls."""
    return {
        (found[1], found[2]): found[3]
        for found in re.finditer(r"^\| `([A-Z]+) (/\S+)` \| (\w+) \|", PAGE.read_text(), re.M)
    }


def _documented(app: Flask) -> dict[tuple[str, str], str]:
    """Return the scope by (method, path) from the OpenAPI document."""
    paths = app.test_client().get("/api/v1/openapi.json").get_json()["paths"]
    return {
        (method.upper(), path.removeprefix("/api/v1")): re.findall(r"Requires the scope `(\w+)`", call["description"])[
            0
        ]
        for path, calls in paths.items()
        for method, call in calls.items()
    }


def test_the_table_lists_every_call_with_its_scope(app: Flask) -> None:
    assert _table() == _documented(app)


def test_every_call_of_the_table_is_used_on_the_page() -> None:
    calls = _calls_on_page()
    missing = [
        f"{method} {path}"
        for method, path in _table()
        if not any(method == called and _pattern(path).fullmatch(address) for called, address in calls)
    ]
    assert missing == []


# Error codes that only staff pages have.
STAFF_ERROR_CODES = {
    "app_unreadable",
    "disabled",
    "email_mismatch",
    "form_broken",
    "identity_taken",
    "identity_unknown",
    "last_admin",
    "oidc_expired",
    "oidc_invalid",
    "oidc_refused",
    "oidc_unavailable",
    "passkey_exists",
    "passkey_expired",
    "passkey_invalid",
    "passkey_unknown",
    "passkeys_unavailable",
    "relay_down",
    "relay_refuses",
    "second_factor_required",
    "session_ended",
    "setup_done",
    "setup_expired",
    "sign_in_failed",
    "suppressed",
    "too_many_passkeys",
}
# Error codes of fields that only staff forms have: suppressions, audience names, local times, uncertain deliveries.
STAFF_FIELD_CODES = {"reason_unknown", "cells_odd", "name_taken", "time_missing", "time_ambiguous", "policy_unknown"}
# Modules that no API call uses.
NOT_IN_THE_API = re.compile(
    r"/(accounts|shop|overview|monitoring)/|/views/(staff|public)/|/customers/suppressions/|/suppression_\w+\.py$"
)


def _literal_arguments(call: str, position: int) -> dict[str, set[str]]:
    """Return the literal arguments at a position of an error class, with their files."""
    files_by_code: dict[str, set[str]] = {}
    for path in sorted((ROOT / "webapp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (call, "RedemptionRefused"):
                argument = node.args[position] if len(node.args) > position else None
                if isinstance(argument, ast.Constant):
                    files_by_code.setdefault(str(argument.value), set()).add(str(path))
    return files_by_code


def _section(title: str) -> str:
    return PAGE.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_page_lists_exactly_the_error_codes_of_the_api() -> None:
    documented = {
        code
        for row in re.findall(r"^\| [\d, ]+ \| (.+?) \|", _section("Errors"), re.M)
        for code in re.findall(r"`(\w+)`", row)
    }
    raised = (
        set(get_args(RefusalReason))
        | {code for code, _ in preconditions.OFFER_STATE_REFUSALS.values()}
        | _literal_arguments("DomainError", 0).keys()
    )
    from_handlers = {"not_found", "invalid_payload", "unavailable", "method_not_allowed", "rate_limited"}
    source = (ROOT / "webapp" / "views" / "error_handlers.py").read_text()
    assert all(f'"{code}"' in source for code in from_handlers)
    assert documented == (raised | from_handlers) - STAFF_ERROR_CODES
    assert raised >= STAFF_ERROR_CODES


def test_the_page_lists_exactly_the_field_codes_of_the_api() -> None:
    lists = _section("Errors").split("The codes in `errors[]`")[1]
    documented = set(re.findall(r"`(\w+)`", lists.split("and these:")[1])) - {"conflict"}
    raised = {
        code
        for code, files in _literal_arguments("FieldError", 1).items()
        if not all(map(NOT_IN_THE_API.search, files))
    }
    raised |= parse_results._ROW_MESSAGES.keys() | parse_results._FILE_MESSAGES.keys()
    assert raised - documented == STAFF_FIELD_CODES
    literals = {
        node.value
        for path in (ROOT / "webapp").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert documented <= literals
