"""Flask commands. They call actions; what they print is for people, and one line when something is wrong."""

from __future__ import annotations

import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import click
import flask_migrate
from flask import Flask, current_app
from sqlalchemy import text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from webapp import keyring, mailsink, services
from webapp.accounts import actions as accounts
from webapp.accounts import key_actions
from webapp.accounts import queries as staff
from webapp.accounts.models import ROLES, SCOPES
from webapp.campaigns import bounce_actions, mailbox
from webapp.customers.models import normalise_email
from webapp.embedded import EmbeddedError
from webapp.errors import DomainError, NotFound
from webapp.extensions import db
from webapp.monitoring import queries as monitoring
from webapp.services import ServiceError
from webapp.settings import Settings


def init_app(app: Flask) -> None:
    for command in (up, down, run, migrate, invite, api_key, key, mail_sink, worker_alive):
        app.cli.add_command(command)
    app.cli.add_command(bounces)


@click.command()
def up() -> None:
    """Start everything in the background and say where it is."""
    settings = _settings()
    with services.alone(settings):
        try:
            if services.is_running(settings) and not services.start_database(settings):
                _say_where(settings, "Onecode is already running; nothing was changed.")
                return
            services.start_database(settings)
            _migrate(settings)
            if not services.is_running(settings):
                services.start(settings)
        except (ServiceError, EmbeddedError, OSError) as error:
            _fail(error)
        _say_where(settings, "Onecode is running.")


@click.command()
def down() -> None:
    """Stop everything that `up` started. Data stays."""
    settings = _settings()
    with services.alone(settings):
        try:
            stopped = services.stop(settings)
            stopped = services.stop_database(settings) or stopped
        except (ServiceError, EmbeddedError, OSError) as error:
            _fail(error)
    click.echo("Onecode is stopped; its data is kept." if stopped else "Onecode was not running.")


@click.command("run-here")
def run() -> None:
    """Run in front, with the logs on the screen; Ctrl-C ends it."""
    settings = _settings()
    with services.alone(settings):
        try:
            if services.is_running(settings):
                raise ServiceError("Onecode runs in the background already; stop it first with: make down")
            started = services.start_database(settings)
            _migrate(settings)
        except (ServiceError, EmbeddedError, OSError) as error:
            _fail(error)
    _say_where(settings, "Onecode is starting; Ctrl-C ends it.")
    try:
        services.run(settings)
    except ServiceError as error:
        _fail(error)
    finally:
        if started:
            services.stop_database(settings)


@click.command("migrate")
def migrate() -> None:
    """Bring the database's tables up to date. Safe on two machines at once: the second waits for the first."""
    settings = _settings()
    # Only the embedded server's start needs a lock in the instance folder, which elsewhere may be read-only.
    with services.alone(settings) if settings.database_is_embedded else nullcontext():
        try:
            started = services.start_database(settings)
            _migrate(settings)
            if started:
                services.stop_database(settings)
        except (ServiceError, EmbeddedError, OSError) as error:
            _fail(error)
    click.echo("The database is up to date.")


@click.command()
@click.option("--role", type=click.Choice(ROLES), default="admin", show_default=True)
@click.option("--email", default=None, help="Whom it is for; shown on the page.")
@click.option("--reset", metavar="EMAIL", default=None, help="Make a link to a new password for this user instead.")
def invite(role: str, email: str | None, reset: str | None) -> None:
    """Print a link with which somebody chooses a name and a password, once."""
    try:
        if reset is None:
            click.echo(accounts.invite(role, email, by="command line"))
        elif user := staff.by_email(normalise_email(reset)):
            click.echo(accounts.reset_link(user.id, by="command line"))
        else:
            raise NotFound(f"nobody here has the e-mail {reset}")
    except DomainError as error:
        _fail(error)


@click.group("api-key")
def api_key() -> None:
    """Keys for machines."""


@api_key.command("create")
@click.option("--name", required=True, help="Who uses it.")
@click.option("--scopes", default="read", show_default=True, help=f"Comma separated: {', '.join(SCOPES)}.")
def create_api_key(name: str, scopes: str) -> None:
    """Print a new key alone. It is shown this once."""
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    try:
        click.echo(accounts.create_api_key(name, wanted, by="command line"))
    except DomainError as error:
        _fail(error)


@click.group("key")
def key() -> None:
    """Keys that sign personal codes, personal links, references of redemptions and API keys."""


@key.command("list")
def list_keys() -> None:
    """Print every version with what it is good for; never a secret."""
    for purpose in key_actions.PURPOSES:
        for n, row in enumerate(keyring.versions(purpose)):
            state = "retired" if row.retired_at else "accepted" if n else "signs"
            click.echo(f"{purpose} {row.version} {state}")


@key.command("renew")
@click.argument("purpose", type=click.Choice(list(key_actions.PURPOSES)))
def renew_key(purpose: str) -> None:
    """Make a new key, which signs from now on. What older ones have signed goes on working."""
    version = key_actions.renew_key(purpose, by="command line")
    click.echo(f"Version {version} of {purpose} signs from now on. What older ones have signed goes on working.")


@key.command("retire")
@click.argument("purpose", type=click.Choice(list(key_actions.PURPOSES)))
@click.argument("version", type=int)
@click.option("--yes", is_flag=True, help="Do not ask.")
def retire_key(purpose: str, version: int, yes: bool) -> None:
    """Accept what an older version has signed no longer, for instance after a leak. This can't be undone."""
    stops = key_actions.PURPOSES[purpose].stops
    if stops:
        click.echo(stops)
        if not yes:
            click.confirm(f"Retire version {version} of {purpose}?", abort=True)
    try:
        key_actions.retire_key(purpose, version, by="command line")
    except DomainError as error:
        _fail(error)
    click.echo(f"Version {version} of {purpose} is retired.")


OUTCOMES = {
    "known": "about addresses that were not mailed any more already",
    "soft": "about mails that may be delivered yet, or that are not the address's fault",
    "ignored": "about nothing to act on: notices of machines, and addresses that a customer no longer has",
    "unproven": "without a mark of ours, so nobody knows whose mail it is about",
    "unknown_customer": "about nobody who is a customer",
    "own_address": "about an address of the shop itself",
    "broken": "that could not be read",
}


@click.command()
@click.argument("file")
def bounces(file: str) -> None:
    """Read mails that came back: an mbox, a single mail, a maildir, or - for standard input.

    Addresses that do not exist and people who complained are not mailed any more. Reading a file again changes nothing.
    """
    try:
        found = mailbox.mails(sys.stdin.buffer) if file == "-" else mailbox.all_mails(Path(file))
        seen = bounce_actions.take_mails(found, by="command line")
    except OSError as error:
        _fail(error)
    n = seen["suppressed"]
    click.echo(f"{seen.total()} {'mail' if seen.total() == 1 else 'mails'} read.")
    click.echo(f"{n} {'address is' if n == 1 else 'addresses are'} not mailed any more.")
    for outcome, words in OUTCOMES.items():
        if seen[outcome]:
            click.echo(f"{seen[outcome]} {words}.")


@click.command("mail-sink")
def mail_sink() -> None:
    """Take all mail, keep it in the instance folder and show it on a page."""
    mailsink.serve(_settings())


@click.command("worker-alive")
def worker_alive() -> None:
    """Say whether the worker of this machine lives: status 0, or 1 and one line. For health checks."""
    host = socket.gethostname()
    try:
        alive = monitoring.is_worker_alive(host)
    except SQLAlchemyError as error:
        raise SystemExit("onecode: the database does not answer, so nobody knows about the worker") from error
    if not alive:
        _fail(ServiceError(f"no worker on {host} was heard of in the last minute; start one: python -m webapp.worker"))


def _migrate(settings: Settings) -> None:
    """Migrate, one process at a time: an advisory lock makes a second one wait and then find nothing to do."""
    try:
        # No transaction: a server that ends idle ones would take the lock away in the middle.
        lock = db.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise ServiceError(f"the database of DATABASE_URL does not let us in ({reason}); check that setting") from error
    with lock:
        lock.execute(text("select pg_advisory_lock(hashtext('onecode.migrate'))"))
        try:
            flask_migrate.upgrade()
        finally:
            lock.execute(text("select pg_advisory_unlock(hashtext('onecode.migrate'))"))


def _say_where(settings: Settings, first: str) -> None:
    click.echo(f"{first}\n")
    click.echo(f"  Staff       {settings.public_url}/")
    click.echo(f"  Customers   {settings.public_url}/redeem")
    click.echo(f"  Integrators {settings.public_url}/api/v1/docs")
    if settings.mail_is_sink:
        click.echo(f"  Mails       {settings.sink_url}   (kept here, sent to nobody)")
    if not staff.any_staff():
        click.echo("\nChoose your name and password with this link, which works once:\n")
        click.echo(f"  {accounts.invite('admin', None, by='set-up')}")
    click.echo("\nStop with `make down`; all commands: `make help`.")


def _settings() -> Settings:
    settings: Settings = current_app.config["SETTINGS"]
    return settings


def _fail(error: Exception) -> NoReturn:
    raise SystemExit(f"onecode: {error}")
