"""SQL statements that tests run, and those that the program runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, text

from webapp.core.extensions import db
from webapp.redemptions import group_commit


def run_sql(statement: str, **values: object) -> None:
    """Execute a statement and commit."""
    db.session.execute(text(statement), values)
    db.session.commit()


@contextmanager
def recorded_statements() -> Iterator[list[tuple[str, Any]]]:
    """Record every statement that is run, with its parameters."""
    # The group committer keeps its connection, and a connection older than the listener is not recorded.
    group_commit.get_group_committer().close()
    recorded: list[tuple[str, Any]] = []

    def record(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        recorded.append((statement, parameters))

    event.listen(db.engine, "before_cursor_execute", record)
    try:
        yield recorded
    finally:
        event.remove(db.engine, "before_cursor_execute", record)
