"""A database that rejects writes with an error of its server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text

from webapp.core.extensions import db


@contextmanager
def rejected_writes(table: str, errcode: str, when: str = "true") -> Iterator[None]:
    """Let the database reject writes to a table with an error, by a trigger.

    :param errcode: an SQLSTATE or the name of its condition: `disk_full`, `read_only_sql_transaction`.
    :param when: the condition for the new row, such as `new.id = 1`.
    """
    body = f"begin raise exception 'the write was rejected' using errcode = '{errcode}'; end"
    db.session.execute(text(f"create function reject_write() returns trigger language plpgsql as $$ {body} $$"))
    db.session.execute(
        text(
            f"create trigger reject_write before insert or update on {table} "
            f"for each row when ({when}) execute function reject_write()"
        )
    )
    db.session.commit()
    try:
        yield
    finally:
        db.session.rollback()
        db.session.execute(text("drop function reject_write cascade"))
        db.session.commit()
