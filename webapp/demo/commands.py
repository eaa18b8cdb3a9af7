"""`make demo` and `make demo-remove`: what they print is for people."""

from __future__ import annotations

import socket
from typing import NoReturn

import click
from flask import current_app

from webapp import mailsink, services
from webapp.accounts import queries as staff
from webapp.demo import fill, offers, remove
from webapp.embedded import EmbeddedError
from webapp.errors import DomainError
from webapp.services import ServiceError
from webapp.settings import Settings

SINK_AWAY = "the mail sink does not answer, so the demonstration has nobody to mail to; start it with: make setup"


@click.group()
def demo() -> None:
    """A believable shop to look around in."""


@demo.command("fill")
def fill_it() -> None:
    """Fill an empty database with it; a second time changes nothing."""
    settings = _settings()
    try:
        with fill.alone():
            if settings.mail_is_sink and not _sink_answers(settings):
                _fail(ServiceError(SINK_AWAY))
            if fill.fill(settings):
                _say_filled(settings, fill.links())
                fill.finish()
            else:
                click.echo("\nThe demonstration is there already; nothing was changed.")
                click.echo("A new link to sign in with: .venv/bin/flask --app wsgi invite --reset " + offers.MANAGER[0])
    except DomainError as error:
        _fail(error)


@demo.command("remove")
def remove_it() -> None:
    """Take it out again, with what hangs on it and nothing else."""
    settings = _settings()
    started = False
    try:
        started = services.start_database(settings)
        with fill.alone():
            found = remove.remove(mailsink.folder_of(settings) if settings.mail_is_sink else None)
        _say_removed(found)
    except (DomainError, ServiceError, EmbeddedError, OSError) as error:
        _fail(error)
    finally:
        if started:
            services.stop_database(settings)


def _say_filled(settings: Settings, links: dict[str, str]) -> None:
    url = settings.public_url
    click.echo(
        f"\n{offers.SHOP.name} is open: 10,000 customers, {len(_names())} offers in every state, eight weeks of mails"
    )
    click.echo("and redemptions, and one mailing that is going out right now.\n")
    click.echo(f"  How it goes   {url}/")
    click.echo(f"  Mailings      {url}/campaigns/   (one running, two paused, one cancelled …)")
    click.echo(f"  Customers     {url}/customers/")
    click.echo(f"  Redeem        {url}/redeem   with TEA15 and the e-mail of any customer")
    click.echo(f"  Mails         {settings.sink_url}   (kept here, sent to nobody)")
    click.echo("\nTwo people work there. Each link works once and lets you choose a password:\n")
    for (_, name, role), link in zip((offers.MANAGER, offers.VIEWER), links.values(), strict=False):
        click.echo(f"  {name}, {role:<8} {link}")
    if not staff.any_admin():
        click.echo("\nThe link for the administrator stands above.")
    click.echo("\nTake it all out again with `make demo-remove`; what you made beside it stays.")


def _names() -> list[str]:
    from datetime import UTC, datetime

    return [told.name for told in offers.offers(datetime.now(UTC))]


def _say_removed(found: dict[str, object]) -> None:
    if not found:
        click.echo("There is no demonstration here; nothing was changed.")
        return
    kept = found.pop("kept")
    words = [f"{n:,} {name}" for name, n in found.items() if n]
    click.echo(f"The demonstration is gone: {', '.join(words)}.")
    click.echo("What you made beside it is still there.")
    if isinstance(kept, list) and kept:
        click.echo(f"Kept, for something of yours is in it or for it: the audience {', '.join(kept)}.")


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


def _fail(error: Exception) -> NoReturn:
    raise SystemExit(f"onecode: {error}")
