"""What a WSGI server loads: `wsgi:app`."""

import logging
import sys

import click
from flask.cli import ScriptInfo

from webapp import create_app, get_app_version
from webapp.core import logs
from webapp.core.settings import SettingsError, load_settings

# A command prints what it has to say; of what it logs, only what went wrong belongs between that.
# Not what flask leaves in the environment: what `make setup` starts inherits that.
context = click.get_current_context(silent=True)
IS_COMMAND = context is not None and context.find_object(ScriptInfo) is not None

try:
    settings = load_settings()
    logs.configure_logging(settings, "WARNING" if IS_COMMAND else "INFO")
    app = create_app(settings)
    if IS_COMMAND:
        from local import cli

        cli.init_app(app)
    else:
        logging.getLogger("webapp.web").info("a web process starts: release %s", get_app_version())
except SettingsError as error:
    sys.exit(f"onecode: {error}")
