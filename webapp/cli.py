"""Flask commands. They call actions and report an error as one line."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import NoReturn

import click
from flask import Flask

from webapp.accounts import api_key_actions, invitation_actions, signing_key_actions
from webapp.accounts import queries as account_queries
from webapp.accounts.factors import actions as factor_actions
from webapp.accounts.models import ROLES, SCOPES
from webapp.campaigns.bounces import actions as bounce_actions
from webapp.campaigns.bounces import mailbox
from webapp.core import signing_keys
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import DomainError, NotFound
from webapp.monitoring import queries as monitoring_queries


@click.command("invite")
@click.option("--role", type=click.Choice(ROLES), default="admin", show_default=True)
@click.option("--email", default=None, help="Email address of the new user; prefilled on the invitation page.")
@click.option("--reset", metavar="EMAIL", default=None, help="Print a password reset link for this user instead.")
def invite_command(role: str, email: str | None, reset: str | None) -> None:
    """Print an invitation link, which works once.

    The new user chooses a name and a password with it.
    """
    try:
        if reset is None:
            click.echo(invitation_actions.create_invitation(role, email, by="command line"))
        elif user := account_queries.find_staff_user_by_email(normalise_email(reset)):
            click.echo(invitation_actions.create_password_reset_link(user.id, by="command line"))
        else:
            raise NotFound(f"there is no user with the email address {reset}")
    except DomainError as error:
        _exit_with_error(error)


@click.command("reset-second-factor")
@click.argument("email")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def reset_second_factor_command(email: str, yes: bool) -> None:
    """Remove the authenticator app, passkeys and recovery codes of a user.

    For users who have lost them, such as the only administrator. Their sessions end, and their password is enough to
    sign in again.
    """
    try:
        user = account_queries.find_staff_user_by_email(normalise_email(email))
        if user is None:
            raise NotFound(f"there is no user with the email address {email}")
        if not yes:
            click.confirm(f"Remove the second factors of {user.name} ({user.email})?", abort=True)
        factor_actions.reset_second_factor(user.id, by="command line")
    except DomainError as error:
        _exit_with_error(error)
    click.echo(f"The two-step verification of {user.email} is reset; their sessions have ended.")


@click.group("api-key")
def api_key_group() -> None:
    """API keys of shops and tills."""


@api_key_group.command("create")
@click.option("--name", required=True, help="What uses the key, such as “Web shop”.")
@click.option("--scopes", default="read", show_default=True, help=f"Comma-separated: {', '.join(SCOPES)}.")
def create_api_key_command(name: str, scopes: str) -> None:
    """Create an API key and print only the key.

    It is not shown again.
    """
    selected = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    try:
        click.echo(api_key_actions.create_api_key(name, selected, by="command line"))
    except DomainError as error:
        _exit_with_error(error)


@click.group("key")
def key_group() -> None:
    """The signing keys that can be rotated.

    They sign personal codes, personal links, redemption references and API keys.
    """


@key_group.command("list")
def list_keys_command() -> None:
    """Print every key version with its state.

    A version signs, is accepted, or is revoked ("retired"). Secrets are never printed.
    """
    for purpose in signing_key_actions.SIGNING_KEY_PURPOSES:
        for index, row in enumerate(signing_keys.list_key_versions(purpose)):
            if row.revoked_at:
                state = "retired"
            else:
                state = "accepted" if index else "signs"
            click.echo(f"{purpose} {row.version} {state}")


@key_group.command("renew")
@click.argument("purpose", type=click.Choice(list(signing_key_actions.SIGNING_KEY_PURPOSES)))
def rotate_key_command(purpose: str) -> None:
    """Rotate a signing key: a new version signs from now on.

    Older versions are still accepted.
    """
    version = signing_key_actions.rotate_signing_key(purpose, by="command line")
    click.echo(f"Version {version} of {purpose} is now the current version. Older versions are still accepted.")


@key_group.command("retire")
@click.argument("purpose", type=click.Choice(list(signing_key_actions.SIGNING_KEY_PURPOSES)))
@click.argument("version", type=int)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def revoke_key_command(purpose: str, version: int, yes: bool) -> None:
    """Revoke an older version of a signing key, for example after a leak.

    This cannot be undone.
    """
    effect = signing_key_actions.SIGNING_KEY_PURPOSES[purpose].revocation_effect
    if effect:
        click.echo(str(effect))
        if not yes:
            click.confirm(f"Revoke version {version} of {purpose}?", abort=True)
    try:
        signing_key_actions.revoke_signing_key(purpose, version, by="command line")
    except DomainError as error:
        _exit_with_error(error)
    click.echo(f"Version {version} of {purpose} is revoked.")


BOUNCE_OUTCOME_LABELS = {
    "known": "Messages about addresses that were already suppressed",
    "soft": "Messages about emails that may still be delivered, or that failed for a reason unrelated to the address",
    "ignored": "Messages without consequences (automatic replies, and addresses that a customer no longer has)",
    "unproven": "Messages without a valid token of this installation, so the recipient is unknown",
    "unknown_customer": "Messages about customers who have been erased",
    "own_address": "Messages about an address of the shop itself",
    "broken": "Messages that could not be parsed",
}


@click.command("bounces")
@click.argument("file")
def bounces_command(file: str) -> None:
    """Process bounced emails.

    FILE is an mbox file, a single message, a maildir, or - for standard input.

    Addresses that do not exist, and recipients who complained or unsubscribed, are suppressed. Processing a file again
    changes nothing.
    """
    try:
        messages = mailbox.iter_messages(sys.stdin.buffer) if file == "-" else mailbox.iter_messages_in_path(Path(file))
        counts = bounce_actions.process_bounce_messages(messages, by="command line")
    except OSError as error:
        _exit_with_error(error)
    suppressed = counts["suppressed"]
    click.echo(f"{counts.total()} {'message' if counts.total() == 1 else 'messages'} processed.")
    click.echo(f"{suppressed} {'address' if suppressed == 1 else 'addresses'} suppressed.")
    for outcome, label in BOUNCE_OUTCOME_LABELS.items():
        if counts[outcome]:
            click.echo(f"{label}: {counts[outcome]}")


@click.command("worker-alive")
def worker_alive_command() -> None:
    """Check whether a worker is running on this host.

    For health checks: exit status 0, or 1 with one line on standard error.
    """
    host = socket.gethostname()
    if not monitoring_queries.is_worker_alive(host):
        _exit_with_error(f"no worker on {host} sent a heartbeat in the last minute; start one: python -m webapp.worker")


def _exit_with_error(error: Exception | str) -> NoReturn:
    raise SystemExit(f"onecode: {error}")


COMMANDS: tuple[click.Command, ...] = (
    invite_command,
    reset_second_factor_command,
    api_key_group,
    key_group,
    bounces_command,
    worker_alive_command,
)


def init_app(app: Flask) -> None:
    """Register the commands on `app`."""
    for command in COMMANDS:
        app.cli.add_command(command)
