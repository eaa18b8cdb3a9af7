"""What is written with autocommit does not wait for a synchronous standby.

A statement that waits can be cancelled: then it has taken effect, but its caller gets an error.
"""

from __future__ import annotations

import pytest

from tests.support.autocommit_statements import find_waiting_statements
from webapp.core.settings import ROOT

HELPER = """
def _open():
    return db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
"""


def test_what_is_written_with_autocommit_does_not_wait_for_a_standby() -> None:
    found = {
        str(file.relative_to(ROOT)): {statement.partition(":")[0] for statement in statements}
        for file in (ROOT / "webapp").rglob("*.py")
        if (statements := find_waiting_statements(file.read_text()))
    }

    assert found == {
        # Waits on purpose: it checks whether writes wait.
        "webapp/core/database_connections.py": {"_CommitGuard._check_writes"},
        "webapp/monitoring/readiness.py": {"ReadinessCheck._connect"},
        # Only reads.
        "webapp/core/pooler_check.py": {"_pools_transactions"},
        # Takes tasks in transactions, see `test_queue_without_standby`.
        "webapp/core/queue_storage.py": {"QueueStorage._connect"},
        # Sets `synchronous_commit` for the connection.
        "webapp/campaigns/sending/progress.py": {"SendProgress._open_connection"},
    }


@pytest.mark.parametrize(
    "function",
    [
        'def write(): _open().execute(text("insert into huey_kv values (1)"))',
        "SQL = text(\"update offer set name = ''\")\ndef write():\n    with _open() as c: c.execute(SQL, {})",
        "def write():\n    with _open() as c:\n        statement = delete(Offer)\n        c.scalar(statement)",
        'A = "delete from a"\nB = "select 1"\ndef write():\n    for sql in (A, B): _open().exec_driver_sql(sql)',
        "def write():\n    with _open() as c: _clean(c)\ndef _clean(c): c.execute(delete(Offer))",
        "def write(statement): _open().execute(statement)",
        'def write(): connect(url, autocommit=True).execute("delete from offer")',
        'def write(): db.session.connection({"isolation_level": "autocommit"}).execute(delete(Offer))',
        "class C:\n    def write(self): self.connection = connect(url, autocommit=True)",
        "def write():\n    c = connect(url)\n    c.autocommit = True\n    c.execute(delete(Offer))",
    ],
    ids=[
        "in place",
        "constant of the module",
        "variable",
        "loop",
        "another function",
        "argument",
        "psycopg",
        "options of a session",
        "kept connection",
        "attribute",
    ],
)
def test_a_write_that_may_wait_is_found(function: str) -> None:
    statements = find_waiting_statements(HELPER + function if "_open()" in function else function)

    assert [statement.partition(":")[0].removeprefix("C.") for statement in statements] == ["write"]


@pytest.mark.parametrize(
    "function",
    [
        "def write(): _open().execute(text(\"delete from a returning set_config('synchronous_commit', 'off', true)\"))",
        'OFF = func.set_config("synchronous_commit", "off", True)\n'
        "def write(): _open().execute(delete(Offer).returning(OFF))",
        'def read(): return _open().execute(text("select 1 from offer for no key update skip locked")).first()',
        "def read():\n    rows = select(Offer).with_for_update()\n    return _open().scalars(rows).all()",
        "def write(): db.session.execute(delete(Offer))\ndef read(): return _open().scalar(select(Offer.id))",
        'def write(): connect(url, autocommit=False).execute("delete from offer")',
    ],
    ids=["SQL", "expression", "row lock", "row lock as an expression", "another connection", "no autocommit"],
)
def test_other_statements_are_not_found(function: str) -> None:
    assert find_waiting_statements(f"{HELPER}\ndef use(): _open().scalar(select(1))\n{function}") == []
