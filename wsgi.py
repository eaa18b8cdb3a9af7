"""What a WSGI server loads: `wsgi:app`."""

import sys

from webapp import create_app
from webapp.settings import SettingsError

try:
    app = create_app()
except SettingsError as error:
    sys.exit(f"onecode: {error}")
