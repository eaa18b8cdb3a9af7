"""Flask commands. They call actions; what they print is for people, and one line when something is wrong."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import NoReturn

import click
from flask import Flask

from webapp.accounts import actions as account_actions
from webapp.accounts import queries as account_queries
from webapp.accounts import signing_key_actions
from webapp.accounts.models import ROLES, SCOPES
from webapp.campaigns.bounces import actions as bounce_actions
from webapp.campaigns.bounces import mailbox
from webapp.core import signing_keys
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, NotFound
from webapp.monitoring import queries as monitoring_queries


@click.command()
@click.option("--role", type=click.Choice(ROLES), default="admin", show_default=True)
@click.option("--email", default=None, help="Whom it is for; shown on the page.")
@click.option("--reset", metavar="EMAIL", default=None, help="Make a link to a new password for this user instead.")
def invite_command(role: str, email: str | None, reset: str | None) -> None:
    """Print a link with which somebody chooses a name and a password, once."""
    try:
        if reset is None:
            click.echo(account_actions.create_invitation(role, email, by="command line"))
        elif user := account_queries.find_staff_user_by_email(normalise_email(reset)):
            click.echo(account_actions.create_password_reset_link(user.id, by="command line"))
        else:
            raise NotFound(f"nobody here has the e-mail {reset}")
    except DomainError as error:
        _exit_with_error(error)


@click.group("api-key")
def api_key_group() -> None:
    """Keys for machines."""


@api_key_group.command("create")
@click.option("--name", required=True, help="Who uses it.")
@click.option("--scopes", default="read", show_default=True, help=f"Comma separated: {', '.join(SCOPES)}.")
def create_api_key_command(name: str, scopes: str) -> None:
    """Print a new key alone. It is shown this once."""
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    try:
        click.echo(account_actions.create_api_key(name, wanted, by="command line"))
    except DomainError as error:
        _exit_with_error(error)


@click.group("key")
def key_group() -> None:
    """Keys that sign personal codes, personal links, references of redemptions and API keys."""


@key_group.command("list")
def list_keys_command() -> None:
    """Print every version with what it is good for; never a secret."""
    for purpose in signing_key_actions.SIGNING_KEY_PURPOSES:
        for n, row in enumerate(signing_keys.list_key_versions(purpose)):
            state = "retired" if row.retired_at else "accepted" if n else "signs"
            click.echo(f"{purpose} {row.version} {state}")


@key_group.command("renew")
@click.argument("purpose", type=click.Choice(list(signing_key_actions.SIGNING_KEY_PURPOSES)))
def renew_key_command(purpose: str) -> None:
    """Make a new key, which signs from now on. What older ones have signed goes on working."""
    version = signing_key_actions.rotate_signing_key(purpose, by="command line")
    click.echo(f"Version {version} of {purpose} signs from now on. What older ones have signed goes on working.")


@key_group.command("retire")
@click.argument("purpose", type=click.Choice(list(signing_key_actions.SIGNING_KEY_PURPOSES)))
@click.argument("version", type=int)
@click.option("--yes", is_flag=True, help="Do not ask.")
def retire_key_command(purpose: str, version: int, yes: bool) -> None:
    """Accept what an older version has signed no longer, for instance after a leak. This can't be undone."""
    stops = signing_key_actions.SIGNING_KEY_PURPOSES[purpose].revocation_effect
    if stops:
        click.echo(stops)
        if not yes:
            click.confirm(f"Retire version {version} of {purpose}?", abort=True)
    try:
        signing_key_actions.revoke_signing_key(purpose, version, by="command line")
    except DomainError as error:
        _exit_with_error(error)
    click.echo(f"Version {version} of {purpose} is retired.")


BOUNCE_OUTCOME_LABELS = {
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
def bounces_command(file: str) -> None:
    """Read mails that came back: an mbox, a single mail, a maildir, or - for standard input.

    Addresses that do not exist and people who complained are not mailed any more. Reading a file again changes nothing.
    """
    try:
        found = mailbox.iter_messages(sys.stdin.buffer) if file == "-" else mailbox.iter_messages_in_path(Path(file))
        seen = bounce_actions.process_bounce_messages(found, by="command line")
    except OSError as error:
        _exit_with_error(error)
    n = seen["suppressed"]
    click.echo(f"{seen.total()} {'mail' if seen.total() == 1 else 'mails'} read.")
    click.echo(f"{n} {'address is' if n == 1 else 'addresses are'} not mailed any more.")
    for outcome, words in BOUNCE_OUTCOME_LABELS.items():
        if seen[outcome]:
            click.echo(f"{seen[outcome]} {words}.")


@click.command("worker-alive")
def worker_alive_command() -> None:
    """Say whether the worker of this machine lives: status 0, or 1 and one line. For health checks."""
    host = socket.gethostname()
    if not monitoring_queries.is_worker_alive(host):
        _exit_with_error(f"no worker on {host} was heard of in the last minute; start one: python -m webapp.worker")


def _exit_with_error(error: Exception | str) -> NoReturn:
    raise SystemExit(f"onecode: {error}")


COMMANDS: tuple[click.Command, ...] = (invite_command, api_key_group, key_group, bounces_command, worker_alive_command)


def init_app(app: Flask) -> None:
    """Register the commands on `app`."""
    for command in COMMANDS:
        app.cli.add_command(command)
