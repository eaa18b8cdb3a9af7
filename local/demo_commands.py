"""Commands of `make demo`, `make demo-down` and `make demo-reset`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import click
from flask import current_app
from sqlalchemy.exc import DBAPIError

from local import commands as local_commands
from local import demo_instance, preflight, readiness, source_code, supervisor
from local.demo import scenario, seed
from local.readiness import ServiceError
from webapp import create_app
from webapp.accounts import invitation_actions
from webapp.accounts import queries as account_queries
from webapp.core import migrations
from webapp.core.extensions import db
from webapp.core.settings import Settings


@click.group("demo")
def demo_group() -> None:
    """Run a second instance with the sample data of a shop."""


@demo_group.command("up")
@click.option("--port", type=click.IntRange(1, 65533), help="Port of the web server; the mail sink uses the next two.")
@click.option("--public-url", help="The address for browsers, for this start; http://127.0.0.1:PORT by default.")
def demo_up_command(port: int | None, public_url: str | None) -> None:
    """Start the demo in the background, fill it if it is new, and print the addresses."""
    user_settings = _get_user_settings()
    demo_instance.create_folder(user_settings)
    settings = demo_instance.load_demo_settings(user_settings)
    with local_commands.command_errors(settings), supervisor.instance_lock(settings):
        is_running = _is_complete_and_running(settings)
        local_commands.check_disk_if_needed(settings, is_running)
        if is_running:
            _check_running_port(settings, port)
            settings = demo_instance.load_demo_settings(user_settings, public_url=public_url)
            with _app_context(settings):
                readiness.wait_until_ready(settings)
                _print_addresses(settings, "The demo is already running.")
            if source_code.has_changed(settings):
                click.echo("The code has changed since the demo was started: run `make demo-down`, then `make demo`.")
            return
        # Stop what an interrupted start left running.
        supervisor.stop_services(settings)
        port = port or demo_instance.choose_port(user_settings)
        settings = demo_instance.load_demo_settings(user_settings, port, public_url)
        preflight.check_ports(settings, "make demo")
        if demo_instance.get_seeded_date(settings) is None:
            demo_instance.delete_database(settings)
        with _app_context(settings), local_commands.running_database(settings):
            _start(settings, demo_instance.get_environment(user_settings, port, public_url))


@demo_group.command("down")
def demo_down_command() -> None:
    """Stop the demo; its data is kept."""
    user_settings = _get_user_settings()
    stopped = False
    if demo_instance.exists(user_settings):
        settings = demo_instance.load_demo_settings(user_settings)
        with local_commands.command_errors(settings), supervisor.instance_lock(settings):
            stopped = _stop(settings)
    click.echo("The demo is stopped; its data is kept." if stopped else "The demo was not running.")


@demo_group.command("reset")
def demo_reset_command() -> None:
    """Stop the demo and delete its folder."""
    user_settings = _get_user_settings()
    if not demo_instance.get_folder(user_settings).exists():
        click.echo("There is no demo; nothing was changed.")
        return
    demo_instance.create_folder(user_settings)
    settings = demo_instance.load_demo_settings(user_settings)
    with local_commands.command_errors(settings), supervisor.instance_lock(settings):
        _stop(settings)
        demo_instance.delete_folder(user_settings, settings)
    click.echo("The demo is deleted; `make demo` creates a new one.")


@contextmanager
def _app_context(settings: Settings) -> Iterator[None]:
    """Work on the demo's database instead of the user's."""
    app = create_app(settings)
    migrations.init_app(app)
    with app.app_context():
        try:
            yield
        finally:
            # After an error the database may be stopped already; the error itself is what is reported.
            with suppress(DBAPIError):
                db.session.remove()
            db.engine.dispose()


def _is_complete_and_running(settings: Settings) -> bool:
    return (
        demo_instance.get_seeded_date(settings) is not None
        and supervisor.is_supervisor_running(settings)
        and supervisor.is_database_running(settings)
    )


def _check_running_port(settings: Settings, port: int | None) -> None:
    if port not in (None, settings.port):
        raise ServiceError(
            f"the demo is already running on port {settings.port}; to move it to port {port}: "
            f"make demo-down, then make demo PORT={port}"
        )


def _start(settings: Settings, environment: dict[str, str]) -> None:
    """Fill the database if it is new, start the services and print the addresses."""
    if demo_instance.get_seeded_date(settings) is None:
        click.echo("Filling the demo database …")
        seed.seed_database()
        demo_instance.mark_seeded(settings)
    click.echo("Starting web, worker and mail sink …")
    supervisor.start_services(settings, environment)
    try:
        _print_addresses(settings, "\nThe demo is running.")
    except BaseException:
        supervisor.stop_services(settings)
        raise


def _stop(settings: Settings) -> bool:
    """Stop all processes of the demo; return whether there were any."""
    stopped = supervisor.stop_services(settings)
    return supervisor.stop_database(settings) or stopped


def _print_addresses(settings: Settings, first_line: str) -> None:
    url = settings.public_url
    links = seed.create_sign_in_links()
    click.echo(f"{first_line} {scenario.SHOP.name} has 10,000 customers, offers and campaigns in every state,")
    click.echo("eight weeks of redemptions, and a campaign that is being sent.\n")
    click.echo(f"  Staff       {url}/")
    click.echo(f"  Campaigns   {url}/campaigns")
    click.echo(f"  Customers   {url}/redeem   (with the code TEA15 and the email address of a customer)")
    click.echo(f"  Emails      {settings.sink_url}   (stored here, not delivered)")
    click.echo("\nSign in with one of these one-time links and choose a password:\n")
    for member, link in links:
        click.echo(f"  {member.name}, {member.role}: {member.email}\n    {link}")
    if not account_queries.has_active_admin():
        click.echo(f"  A new administrator\n    {invitation_actions.create_first_admin_invitation(by='make demo')}")
    seeded = demo_instance.get_seeded_date(settings)
    if seeded is not None and seeded != datetime.now(UTC).date():
        click.echo(f"\nIts data ends on {seeded:%-d %B %Y}; for current data: `make demo-reset`, then `make demo`.")
    click.echo("\nIt has its own database and ports: `make demo-down` stops it, `make demo-reset` deletes it.")


def _get_user_settings() -> Settings:
    settings: Settings = current_app.config["SETTINGS"]
    return settings
