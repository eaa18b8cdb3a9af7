"""`make demo` and `make demo-remove`: what they print is for people."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NoReturn

import click
from flask import current_app

from local import commands as local_commands
from local import mailsink, supervisor
from local.demo import fill, remove
from local.demo import offers as demo_offers
from local.supervisor import ServiceError
from webapp.accounts import actions as account_actions
from webapp.accounts import queries as account_queries
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.settings import Settings

# Mails a second: a mailing to all customers takes some six minutes.
PACE = 25
ENDINGS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "interrupted; run the same command again and it goes on"
SINK_AWAY = "the mail sink does not answer, so the demonstration has nobody to mail to; start it with: make setup"


@click.group()
def demo() -> None:
    """A believable shop to look around in."""


@demo.command("fill")
def fill_it() -> None:
    """Fill an empty database with it; a second time changes nothing. Interrupted, it goes on where it was."""
    settings = _settings()
    with local_commands.command_errors(settings):
        if not supervisor.is_database_running(settings):
            raise ServiceError("Onecode does not run, so there is nothing to fill; do both with: make demo")
        try:
            with fill.alone():
                _fill(settings)
        except DomainError as error:
            _fail(error)
        except KeyboardInterrupt:
            _fail(INTERRUPTED)


def _fill(settings: Settings) -> None:
    if fill.is_filled():
        click.echo("\nThe demonstration is there already; nothing was changed.")
        _say_where(settings)
        click.echo("\nA new link to sign in with, as its manager or its viewer:\n")
        for email, _, _ in (demo_offers.MANAGER, demo_offers.VIEWER):
            click.echo(f"  .venv/bin/flask --app wsgi invite --reset {email}")
        return
    fill.check(settings)
    if not _sink_answers(settings):
        raise ServiceError(SINK_AWAY)
    click.echo("Filling it with a shop …")
    paced = _take_a_relays_pace(settings)
    fill.fill()
    _say_filled(settings, fill.links(), paced)
    fill.finish()


@demo.command("remove")
def remove_it() -> None:
    """Take it out again, with what hangs on it and nothing else."""
    settings = _settings()
    with local_commands.command_errors(settings):
        if settings.uses_embedded_database and not supervisor.embedded_database(settings).is_initialised():
            _say_removed({})
            return
        # A set-up that comes now would rely on a server that is about to be stopped.
        with nullcontext() if supervisor.is_database_running(settings) else supervisor.instance_lock(settings):
            started = supervisor.start_database(settings)
            try:
                with fill.alone():
                    found = remove.remove(mailsink.mail_folder(settings) if settings.uses_mail_sink else None)
                _say_removed(found)
            except DomainError as error:
                _fail(error)
            except KeyboardInterrupt:
                _fail(INTERRUPTED)
            finally:
                if started:
                    db.session.remove()
                    db.engine.dispose()
                    supervisor.stop_database(settings)


def _take_a_relays_pace(settings: Settings) -> bool:
    """Start the program anew with a pace at which a mailing to 10,000 can be watched, unless it has one of its own or
    runs in front of somebody; whether it did."""
    configuration = settings.instance_path / "supervisord.conf"
    if (
        settings.mail_per_second
        or not supervisor.is_supervisor_running(settings)
        or "/dev/stdout" in configuration.read_text()
    ):
        return False
    os.environ["MAIL_PER_SECOND"] = str(PACE)
    with supervisor.instance_lock(settings), _uninterrupted():
        supervisor.stop_services(settings)
        supervisor.start_services(settings)
    return True


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """What is stopped inside is started again before Ctrl-C or SIGTERM ends the command."""
    asked: list[int] = []
    before = {each: signal.signal(each, lambda number, _: asked.append(number)) for each in ENDINGS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if asked:
        raise KeyboardInterrupt


def _say_filled(settings: Settings, links: dict[str, str], paced: bool) -> None:
    click.echo(
        f"\n{demo_offers.SHOP.name} is open: 10,000 customers, offers and campaigns in every state, eight weeks of"
    )
    click.echo("redemptions, and a campaign that is going out right now.")
    _say_where(settings)
    click.echo("\nTwo people work there. Each link works once and lets you choose a password:\n")
    for email, name, role in (demo_offers.MANAGER, demo_offers.VIEWER):
        click.echo(f"  {name}, {role}: {email}\n    {links[role]}")
    if not account_queries.has_active_admin():
        click.echo("\nNobody is admin yet. Open this link, which works once, and be it:\n")
        click.echo(f"    {account_actions.create_invitation('admin', None, by='set-up')}")
    if paced:
        click.echo(f"\nMails go out at {PACE} a second, as with a relay, until Onecode is started anew.")
    click.echo("Take it all out again with `make demo-remove`; what you made beside it stays.")


def _say_where(settings: Settings) -> None:
    url = settings.public_url
    click.echo(f"\n  The first page {url}/")
    click.echo(f"  Campaigns      {url}/campaigns")
    click.echo(f"  Redeeming      {url}/redeem   with TEA15 and a customer's e-mail")
    click.echo(f"  Mails          {settings.sink_url}   (kept here, sent to nobody)")


def _say_removed(found: dict[str, object]) -> None:
    if not found:
        click.echo("There is no demonstration here; nothing was changed.")
        return
    kept, named, changed = found.pop("kept"), found.pop("named"), found.pop("changed")
    words = [f"{n:,} {name}" for name, n in found.items() if n]
    # All are none only after an earlier run was interrupted near its end.
    gone = f": {', '.join(words)}" if words else "; an earlier run had taken it out but for traces"
    click.echo(f"The demonstration is gone{gone}.")
    click.echo("What you made beside it is still there, but for its customers' redemptions and those of its offers.")
    if changed:
        click.echo(f"Kept, for they have e-mails of yours: {changed} of its customers.")
    if isinstance(kept, list) and kept:
        click.echo(f"Kept, for something of yours is in it or for it: the audience {', '.join(kept)}.")
    if isinstance(named, list) and named:
        click.echo(f"What was done as {' and '.join(named)} stays under that name, too; the account is gone.")


def _sink_answers(settings: Settings) -> bool:
    """Whether the mails of the demonstration would be kept by our own sink."""
    try:
        with socket.create_connection(("127.0.0.1", settings.mail_port), timeout=5) as connection:
            return connection.recv(3) == b"220"
    except OSError:
        return False


def _settings() -> Settings:
    settings: Settings = current_app.config["SETTINGS"]
    return settings


def _fail(error: Exception | str) -> NoReturn:
    raise SystemExit(f"onecode: {error}")
