"""The plans of the statements that are run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from tests.support.sql_statements import statements
from webapp.core import signing_keys
from webapp.core.extensions import db

Plan = dict[str, Any]


def explain_statements(connection: psycopg.Connection, run: Callable[[], object]) -> list[tuple[str, Plan]]:
    """The plans of every statement that is run, with the real parameters and, as psycopg prepares what comes often,
    with any."""
    signing_keys.accepted_keys("personal_code")
    with statements() as seen:
        run()
    db.session.rollback()
    found = []
    for statement, parameters in seen:
        if not statement.lstrip().lower().startswith(("select", "with", "insert", "update", "delete")):
            continue
        for mode in ("force_custom_plan", "force_generic_plan"):
            with connection.transaction(force_rollback=True):
                connection.execute(f"set local plan_cache_mode = {mode}")
                explain = f"explain (analyze, timing off, format json) {statement}"
                row = connection.execute(explain, parameters, prepare=True).fetchone()
            assert row is not None
            found.append((statement, row[0][0]["Plan"]))
    assert found
    return found


def plan_nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for part in plan.get("Plans", []):
        yield from plan_nodes(part)
