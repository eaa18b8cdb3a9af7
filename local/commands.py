"""Commands of `make setup`, `make down`, `make run` and `make run-migration`.

Every command reports an expected error as one line on standard error that says what to do (`wrap_command_errors`), and
stops whatever it has started.
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

from local import demo_instance, preflight, readiness, source_code, supervisor
from local.postgresql import EmbeddedError
from local.preflight import SetupError
from local.readiness import ServiceError
from webapp.accounts import invitation_actions
from webapp.accounts import queries as account_queries
from webapp.core import atomic_files, database_timeouts
from webapp.core.database_engines import get_direct_engine
from webapp.core.extensions import db
from webapp.core.logs import redact_personal_data
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import Settings

log = logging.getLogger(__name__)

# Errors that the operator of the database can fix. With LOG_LEVEL=DEBUG the traceback is logged before the line.
OPERATOR_ERRORS = (
    psycopg.OperationalError,
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.ReadOnlySqlTransaction,
)


def wrap_command_errors(command: click.Command, settings: Settings) -> click.Command:
    """Return a copy of a command or group that reports expected errors in one line.

    Expected errors are those of settings, files and the database.
    """
    plain = copy.copy(command)

    def invoke(context: click.Context) -> object:
        with _exit_on_known_errors(settings):
            return command.invoke(context)

    plain.invoke = invoke  # type: ignore[method-assign, assignment]
    return plain


@click.command()
def up_command() -> None:
    """Start everything in the background and print the addresses."""
    settings = _get_settings()
    with command_errors(settings), supervisor.instance_lock(settings):
        is_running = supervisor.is_supervisor_running(settings) and supervisor.is_database_running(settings)
        check_disk_if_needed(settings, is_running)
        if is_running:
            preflight.check_running_port(settings)
            readiness.wait_until_ready(settings)
            exception = "" if account_queries.has_active_admin() else " except the link below"
            _print_addresses(settings, f"Onecode is already running; nothing was changed{exception}.")
            if source_code.has_changed(settings):
                click.echo("The code has changed since Onecode was started: run `make down`, then `make setup`.")
            return
        _print_warnings(preflight.collect_warnings(settings))
        # Stop what an interrupted setup left running; everything is then started again.
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
    """Stop everything that `up` started; the data is kept."""
    settings = _get_settings()
    with command_errors(settings), supervisor.instance_lock(settings):
        stopped = supervisor.stop_services(settings)
        stopped = supervisor.stop_database(settings) or stopped
    click.echo("Onecode is stopped; its data is kept." if stopped else "Onecode was not running.")
    if demo_instance.is_running(settings):
        click.echo("The demo is still running; stop it with: make demo-down")


@click.command("run-here")
def run_here_command() -> None:
    """Run in the foreground, with the logs on the screen; Ctrl-C stops it."""
    settings = _get_settings()
    with command_errors(settings):
        with supervisor.instance_lock(settings):
            if supervisor.is_supervisor_running(settings):
                raise ServiceError("Onecode is already running in the background; stop it first with: make down")
            _print_warnings(preflight.collect_warnings(settings))
            preflight.check_ports(settings)
            started = not supervisor.is_database_running(settings)
            with running_database(settings):
                _print_addresses(settings, "\nOnecode is starting.", in_foreground=True)
                # This process lives as long as the services: no transaction and no connection may stay open.
                db.session.remove()
                db.engine.dispose()
        try:
            supervisor.run_in_foreground(settings)
        finally:
            # `make down` in another terminal may be stopping the database as well, or `make setup` may follow it.
            with supervisor.instance_lock(settings):
                if started and not supervisor.is_supervisor_running(settings):
                    supervisor.stop_database(settings)


@click.command("migrate")
def migrate_command() -> None:
    """Upgrade the database schema.

    Safe on two machines at once: the second waits for the first.
    """
    settings = _get_settings()
    # Only starting the embedded server needs the lock; without that server the instance folder may be read-only.
    with (
        command_errors(settings),
        supervisor.instance_lock(settings) if settings.uses_embedded_database else nullcontext(),
    ):
        started = not supervisor.is_database_running(settings)
        with running_database(settings):
            pass
        if started:
            supervisor.stop_database(settings)
    click.echo("The database schema is up to date.")


@contextmanager
def running_database(settings: Settings) -> Iterator[None]:
    """Start, check and migrate the database.

    A server that is started here is stopped when the body raises.
    """
    preflight.check_install_path()
    started = not supervisor.is_database_running(settings)
    try:
        if started:
            click.echo("Starting PostgreSQL …")
            supervisor.start_database(settings)
        _print_warnings(preflight.check_database(settings))
        _upgrade_schema()
        yield
    except BaseException:
        if started:
            supervisor.stop_database(settings)
        raise


def check_disk_if_needed(settings: Settings, is_running: bool) -> None:
    """Check the disk of an instance that is to be started or is running, before anything is stopped.

    Nothing is stopped on a full disk, because it could not be started again. An instance that runs with a database on
    another server needs no space.

    :raises SetupError: when the disk is full.
    """
    if settings.uses_embedded_database or not is_running:
        preflight.check_disk(*supervisor.data_folders(settings))


def _upgrade_schema() -> None:
    """Migrate under an advisory lock; a second process waits for the first."""
    # No transaction: a server with idle_in_transaction_session_timeout would end it and release the lock.
    with (
        database_timeouts.statement_deadline(database_timeouts.MIGRATION_STATEMENT_SECONDS),
        get_direct_engine().connect().execution_options(isolation_level="AUTOCOMMIT") as lock,
    ):
        lock.execute(text("select pg_advisory_lock(hashtext('onecode.migrate'))"))
        try:
            flask_migrate.upgrade()
        finally:
            lock.execute(text("select pg_advisory_unlock(hashtext('onecode.migrate'))"))


def _print_addresses(settings: Settings, first: str, in_foreground: bool = False) -> None:
    # Query first: when the database is unavailable, no address is printed.
    needs_admin = not account_queries.has_active_admin()
    click.echo(f"{first}\n")
    click.echo(f"  Staff       {settings.public_url}/")
    click.echo(f"  Customers   {settings.public_url}/redeem")
    click.echo(f"  Integrators {settings.public_url}/api/v1/docs")
    if settings.uses_mail_sink:
        click.echo(f"  Emails      {settings.sink_url}   (stored here, not delivered)")
    if needs_admin:
        link = invitation_actions.create_first_admin_invitation(by="set-up")
        click.echo("\nNext: open this one-time link and choose your name and password:\n")
        click.echo(f"  {link}\n")
        click.echo("Then import customers. To explore a shop with sample data first: `make demo`.")
        where = ", in another terminal," if in_foreground else ""
        click.echo(f"Lost the link? `make setup`{where} prints a new one.")
    click.echo(f"\nStop with {'Ctrl-C' if in_foreground else '`make down`'}; all commands: `make help`.")


@contextmanager
def command_errors(settings: Settings) -> Iterator[None]:
    """Exit with one line on an expected error, on Ctrl-C and on SIGTERM."""
    before = signal.signal(signal.SIGTERM, _raise_interrupt)
    try:
        with _exit_on_known_errors(settings):
            yield
    except KeyboardInterrupt as error:
        raise SystemExit(
            "onecode: interrupted; everything that this command started was stopped; run it again"
        ) from error
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
        log.debug("command failed", exc_info=True)
        raise SystemExit(f"onecode: {atomic_files.explain_os_error(error, settings.instance_path)}") from error
    except (psycopg.Error, DBAPIError) as error:
        # Any other database error is a bug in Onecode: keep the traceback.
        if not isinstance(error.orig if isinstance(error, DBAPIError) else error, OPERATOR_ERRORS):
            raise
        log.debug("command failed", exc_info=True)
        raise SystemExit(f"onecode: {_explain_database_error(error, settings)}") from error


def _explain_database_error(error: psycopg.Error | DBAPIError, settings: Settings) -> str:
    """Return one line that says what to do about a database error."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    message = str(cause).strip() or type(cause).__name__
    if "No space left on device" in message:
        return "the disk of the database is full; free some space and run the same command again"
    if not supervisor.is_database_running(settings):
        return "the database is not running; start it with: make setup"
    try:
        preflight.check_database(settings)
    except SetupError as setup_error:
        return str(setup_error)
    if isinstance(cause, (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)):
        return "the database schema does not match this release; upgrade it with: flask --app wsgi migrate"
    return redact_personal_data(message.splitlines()[0])


def _raise_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_warnings(lines: list[str]) -> None:
    for line in lines:
        click.echo(f"onecode: {line}", err=True)


def _get_settings() -> Settings:
    settings: Settings = current_app.config["SETTINGS"]
    return settings
