"""Query plans of the statements that the program runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from tests.support.sql_statements import recorded_statements
from webapp.core import signing_keys
from webapp.core.extensions import db

QueryPlan = dict[str, Any]


def explain_statements(connection: psycopg.Connection, run: Callable[[], object]) -> list[tuple[str, QueryPlan]]:
    """Return the plans of every statement that `run` executes: custom and generic.

    psycopg prepares frequent statements, so the server may use a generic plan for them.
    """
    signing_keys.list_accepted_keys("personal_code")
    with recorded_statements() as recorded:
        run()
    db.session.rollback()
    plans = []
    for statement, parameters in recorded:
        if not statement.lstrip().lower().startswith(("select", "with", "insert", "update", "delete")):
            continue
        for mode in ("force_custom_plan", "force_generic_plan"):
            with connection.transaction(force_rollback=True):
                connection.execute(f"set local plan_cache_mode = {mode}")
                explain = f"explain (analyze, timing off, format json) {statement}"
                row = connection.execute(explain, parameters, prepare=True).fetchone()
            assert row is not None
            plans.append((statement, row[0][0]["Plan"]))
    assert plans
    return plans


def plan_nodes(plan: QueryPlan) -> Iterator[QueryPlan]:
    yield plan
    for child in plan.get("Plans", []):
        yield from plan_nodes(child)
