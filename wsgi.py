"""Entry point of WSGI servers and of the `flask` command: `wsgi:app`."""
# ruff: noqa: E402 (imports follow a call)

import gc

# Modules live as long as the process. Scanning them for garbage takes a fifth of the start.
gc.disable()

import logging
import multiprocessing
import sys

import click
from flask.cli import ScriptInfo

from webapp import create_app, get_app_version
from webapp.core import logs, signals
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import load_settings

# A command prints its results, so it logs only warnings and errors. The click context decides and not the variable
# FLASK_RUN_FROM_CLI, which processes started by `make setup` inherit.
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
        # Another web server may use the wake-up descriptor of signals itself.
        if multiprocessing.current_process().name == "granian-worker":
            signals.wake_main_thread_on_signals()
            signals.stop_with_parent()
        logging.getLogger("webapp.web").info("web process started: version %s", get_app_version())
except SettingsError as error:
    sys.exit(f"onecode: {error}")

# The modules loaded so far are never scanned.
gc.freeze()
gc.enable()
