"""Every command reports an expected failure in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import psycopg
import pytest
from click.testing import Result
from flask import Flask
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from local import cli
from local import commands as local_commands
from tests.support.databases import fresh_database
from tests.support.ports import free_port
from webapp import create_app
from webapp.core import settings as app_settings
from webapp.core import task_queue
from webapp.core.extensions import db

RunCommand = Callable[[str, str], Result]
COMMANDS = (
    "invite",
    "api-key create --name till",
    "key list",
    "key renew personal_code",
    "worker-alive",
    "migrate",
)


@pytest.fixture
def run(session_app: Flask, tmp_path: Path) -> Iterator[RunCommand]:
    """Runs a command with a DATABASE_URL."""

    def invoke(url: str, command: str) -> Result:
        values = {"DATABASE_URL": url, "SECRET_KEY": "only-for-tests", "INSTANCE_PATH": str(tmp_path)}
        app = create_app(app_settings.load_settings(values))
        cli.init_app(app)
        with app.app_context():
            try:
                return app.test_cli_runner().invoke(args=command.split())
            finally:
                db.session.remove()
                db.engine.dispose()

    yield invoke
    task_queue.init_app(session_app)


@pytest.fixture
def empty_database() -> Iterator[str]:
    with fresh_database() as url:
        yield url


def error_line(result: Result) -> str:
    assert isinstance(result.exception, SystemExit), result.exception
    line = str(result.exception)
    assert line.startswith("onecode: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unavailable_database_is_reported_in_one_line(run: RunCommand, command: str) -> None:
    line = error_line(run(f"postgresql://onecode:secret@127.0.0.1:{free_port()}/onecode", command))

    assert line.startswith("onecode: nothing answers at 127.0.0.1 port ")
    assert "secret" not in line


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_a_database_without_tables_is_reported_in_one_line(run: RunCommand, empty_database: str, command: str) -> None:
    assert "upgrade it with: flask --app wsgi migrate" in error_line(run(empty_database, command))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_database_of_another_program_is_reported_in_one_line(
    run: RunCommand, empty_database: str, command: str
) -> None:
    with psycopg.connect(empty_database) as connection:
        connection.execute("create table wp_posts (id int)")

    assert "contains tables of another program (wp_posts); " in error_line(run(empty_database, command))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_database_is_reported_in_one_line(run: RunCommand, empty_database: str, command: str) -> None:
    with psycopg.connect(empty_database) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("alter database {} set default_transaction_read_only = on").format(name))

    assert " is read-only (a standby?); " in error_line(run(empty_database, command))


def _violate_constraint() -> None:
    with db.engine.begin() as connection:
        # Not a temporary table: an import cannot use a pooled connection that has accessed one.
        connection.execute(text("insert into audience (name) values ('once'), ('once')"))


def _read_missing_file() -> None:
    Path("/nowhere/at/all").read_text()


@pytest.mark.parametrize(
    ("bug", "kind"), [(_violate_constraint, IntegrityError), (_read_missing_file, FileNotFoundError)]
)
def test_an_unexpected_error_keeps_its_traceback(
    app: Flask, test_settings: app_settings.Settings, bug: Callable[[], None], kind: type[Exception]
) -> None:
    command = local_commands.wrap_command_errors(click.Command("wrong", callback=bug), test_settings)

    result = app.test_cli_runner().invoke(command)

    assert isinstance(result.exception, kind)
