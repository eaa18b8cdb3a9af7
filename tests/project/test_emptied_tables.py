"""Tests may rely on the order in which rows were written."""

from __future__ import annotations

from flask import Flask
from sqlalchemy import text

from tests.support import program
from webapp.core.extensions import db

_INSERT = text(
    "insert into audit_entry (actor, action, subject) "
    "select 'tests', :action, repeat('x', 500) from generate_series(1, :n)"
)


def test_rows_of_an_emptied_table_are_in_the_order_of_their_transactions(session_app: Flask) -> None:
    with program.on_empty_tables(session_app):
        # Two connections fill several pages of the table.
        for _ in range(20):
            with db.engine.begin() as one, db.engine.begin() as other:
                for connection in (one, other):
                    connection.execute(_INSERT, {"action": "filler", "n": 10})
    with program.on_empty_tables(session_app):
        for number in range(10):
            with db.engine.begin() as connection:
                connection.execute(_INSERT, {"action": str(number), "n": 1})

        actions = db.session.scalars(text("select action from audit_entry")).all()

        assert actions == [str(number) for number in range(10)]
