"""What a WSGI server loads: `wsgi:app`."""

import logging
import os
import sys

from webapp import create_app, logs, release
from webapp.settings import SettingsError, load

# A command prints what it has to say; of what it logs, only what went wrong belongs between that.
IS_COMMAND = os.environ.get("FLASK_RUN_FROM_CLI") == "true"

try:
    settings = load()
    logs.configure(settings, "WARNING" if IS_COMMAND else "INFO")
    app = create_app(settings)
    if not IS_COMMAND:
        logging.getLogger("webapp.web").info("a web process starts: release %s", release())
except SettingsError as error:
    sys.exit(f"onecode: {error}")
