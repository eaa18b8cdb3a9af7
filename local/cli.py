"""Commands of a local instance for `flask --app wsgi`, with errors in one line."""

from __future__ import annotations

import click
from flask import Flask, current_app

from local import commands as local_commands
from local import mailsink
from local.demo_commands import demo_group
from local.readiness import ServiceError
from webapp import cli
from webapp.core import migrations
from webapp.core.settings import Settings


def init_app(app: Flask) -> None:
    """Register the commands on `app`, together with those of `webapp.cli`, and the migrations."""
    settings: Settings = app.config["SETTINGS"]
    migrations.init_app(app)
    for command in (
        local_commands.up_command,
        local_commands.down_command,
        local_commands.run_here_command,
        local_commands.migrate_command,
        demo_group,
        mail_sink,
        *cli.COMMANDS,
    ):
        app.cli.add_command(local_commands.wrap_command_errors(command, settings))


@click.command("mail-sink")
def mail_sink() -> None:
    """Receive all email, store it in the instance folder and show it on a page."""
    settings: Settings = current_app.config["SETTINGS"]
    if not settings.uses_mail_sink:
        raise ServiceError("MAIL_SERVER is set, so emails go there; to use the mail sink, unset MAIL_SERVER")
    mailsink.serve_mail_sink(settings)
