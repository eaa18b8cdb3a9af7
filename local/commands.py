"""What `make setup`, `make down`, `make run` and `make run-migration` do, and what they print.

A problem, of these and of all other commands (`in_one_line`), is one line on standard error that says what to do; then
nothing is left running that was started here.
"""

from __future__ import annotations

import copy
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

import click
import flask_migrate
import psycopg
from flask import current_app
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from local import demo_instance, preflight, supervisor
from local.postgresql import EmbeddedError
from local.preflight import SetupError
from local.supervisor import ServiceError
from webapp.accounts import actions as account_actions
from webapp.accounts import queries as account_queries
from webapp.core import atomic_files
from webapp.core.extensions import db
from webapp.core.logs import redact_personal_data
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import Settings

log = logging.getLogger(__name__)

# What whoever runs the database can mend. With LOG_LEVEL=DEBUG the whole story is told before the line.
OPERATOR_ERRORS = (
    psycopg.OperationalError,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ReadOnlySqlTransaction,
)


def wrap_command_errors(command: click.Command, settings: Settings) -> click.Command:
    """The same command, or group of commands: what settings, files or the database deny it is one line."""
    plain = copy.copy(command)

    def invoke(context: click.Context) -> object:
        with _exit_on_known_errors(settings):
            return command.invoke(context)

    plain.invoke = invoke  # type: ignore[method-assign, assignment]
    return plain


@click.command()
def up_command() -> None:
    """Start everything in the background and say where it is."""
    settings = _get_settings()
    with command_errors(settings), supervisor.instance_lock(settings):
        if supervisor.is_supervisor_running(settings) and supervisor.is_database_running(settings):
            preflight.check_running_port(settings)
            supervisor.wait_until_ready(settings)
            _print_addresses(settings, "Onecode is already running; nothing was changed.")
            return
        _print_warnings(preflight.collect_warnings(settings))
        # What a set-up that was killed has left; what has to be ready is started anew.
        supervisor.stop_services(settings)
        preflight.check_ports(settings)
        with running_database(settings):
            parts = "web, worker and mail sink" if settings.uses_mail_sink else "web and worker"
            click.echo(f"Starting {parts} …")
            supervisor.start_services(settings)
            try:
                _print_addresses(settings, "\nOnecode is running.")
            except BaseException:
                supervisor.stop_services(settings)
                raise


@click.command()
def down_command() -> None:
    """Stop everything that `up` started. Data stays."""
    settings = _get_settings()
    with command_errors(settings), supervisor.instance_lock(settings):
        stopped = supervisor.stop_services(settings)
        stopped = supervisor.stop_database(settings) or stopped
    click.echo("Onecode is stopped; its data is kept." if stopped else "Onecode was not running.")
    if demo_instance.is_running(settings):
        click.echo("The demo still runs; stop it with: make demo-down")


@click.command("run-here")
def run_here_command() -> None:
    """Run in front, with the logs on the screen; Ctrl-C ends it."""
    settings = _get_settings()
    with command_errors(settings):
        with supervisor.instance_lock(settings):
            if supervisor.is_supervisor_running(settings):
                raise ServiceError("Onecode runs in the background already; stop it first with: make down")
            _print_warnings(preflight.collect_warnings(settings))
            preflight.check_ports(settings)
            started = not supervisor.is_database_running(settings)
            with running_database(settings):
                _print_addresses(settings, "\nOnecode is starting; Ctrl-C ends it.")
        try:
            supervisor.run_in_foreground(settings)
        finally:
            if started:
                supervisor.stop_database(settings)


@click.command("migrate")
def migrate_command() -> None:
    """Bring the database's tables up to date. Safe on two machines at once: the second waits for the first."""
    settings = _get_settings()
    # Only the embedded server's start needs a lock in the instance folder, which elsewhere may be read-only.
    with (
        command_errors(settings),
        supervisor.instance_lock(settings) if settings.uses_embedded_database else nullcontext(),
    ):
        started = not supervisor.is_database_running(settings)
        with running_database(settings):
            pass
        if started:
            supervisor.stop_database(settings)
    click.echo("The database is up to date.")


@contextmanager
def running_database(settings: Settings) -> Iterator[None]:
    """The database, ours, up to date and running; when what follows fails, a server started here is stopped again."""
    preflight.check_install_path()
    started = not supervisor.is_database_running(settings)
    try:
        if started:
            click.echo("Starting PostgreSQL …")
            supervisor.start_database(settings)
        _print_warnings(preflight.check_database(settings))
        _upgrade_schema(settings)
        yield
    except BaseException:
        if started:
            supervisor.stop_database(settings)
        raise


def _upgrade_schema(settings: Settings) -> None:
    """Migrate, one process at a time: an advisory lock makes a second one wait and then find nothing to do."""
    # No transaction: a server that ends idle ones would take the lock away in the middle.
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as lock:
        lock.execute(text("select pg_advisory_lock(hashtext('onecode.migrate'))"))
        try:
            flask_migrate.upgrade()
        finally:
            lock.execute(text("select pg_advisory_unlock(hashtext('onecode.migrate'))"))


def _print_addresses(settings: Settings, first: str) -> None:
    # Asked first: with a database that is away there is nothing to be said of where everything is.
    needs_admin = not account_queries.has_active_admin()
    click.echo(f"{first}\n")
    click.echo(f"  Staff       {settings.public_url}/")
    click.echo(f"  Customers   {settings.public_url}/redeem")
    click.echo(f"  Integrators {settings.public_url}/api/v1/docs")
    if settings.uses_mail_sink:
        click.echo(f"  Mails       {settings.sink_url}   (kept here, sent to nobody)")
    if needs_admin:
        link = account_actions.create_invitation("admin", None, by="set-up")
        click.echo("\nNext: open this link, which works once, and choose your name and password:\n")
        click.echo(f"  {link}\n")
        click.echo("Then import customers. To see a shop full of data first: `make demo`.")
        click.echo("Lost the link? `make setup` prints a new one.")
    click.echo("\nStop with `make down`; all commands: `make help`.")


@contextmanager
def command_errors(settings: Settings) -> Iterator[None]:
    """Whatever goes wrong inside is one line; also an interruption by Ctrl-C or SIGTERM."""
    before = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        with _exit_on_known_errors(settings):
            yield
    except KeyboardInterrupt as error:
        raise SystemExit("onecode: interrupted; what was started is stopped, run the same command again") from error
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _exit_on_known_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except (ServiceError, EmbeddedError, SetupError, SettingsError) as error:
        raise SystemExit(f"onecode: {error}") from error
    except OSError as error:
        if not atomic_files.is_environment_error(error, settings.instance_path):
            raise
        log.debug("a command ends", exc_info=True)
        raise SystemExit(f"onecode: {atomic_files.explain_os_error(error, settings.instance_path)}") from error
    except (psycopg.Error, DBAPIError) as error:
        # Anything else that a database says is a mistake of ours, of which every line is wanted.
        if not isinstance(error.orig if isinstance(error, DBAPIError) else error, OPERATOR_ERRORS):
            raise
        log.debug("a command ends", exc_info=True)
        raise SystemExit(f"onecode: {_explain_database_error(error, settings)}") from error


def _explain_database_error(error: psycopg.Error | DBAPIError, settings: Settings) -> str:
    """What keeps us from the database: what set-up would say of it, or else the first line of the error's own words."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    words = str(cause).strip() or type(cause).__name__
    if "No space left on device" in words:
        return "the disk of the database is full; make room and run the same command again"
    if not supervisor.is_database_running(settings):
        return "the database does not run; start it: make setup"
    try:
        preflight.check_database(settings)
    except SetupError as refusal:
        return str(refusal)
    if isinstance(cause, (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)):
        return "the database lacks tables of this release; bring it up to date: flask --app wsgi migrate"
    return redact_personal_data(words.splitlines()[0])


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_warnings(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"onecode: {line}", err=True)


def _get_settings() -> Settings:
    settings: Settings = current_app.config["SETTINGS"]
    return settings
