"""Flask-Migrate for the processes that migrate the schema.

Web servers and workers do not import this module: Alembic would take a fifteenth of their start.
"""

from __future__ import annotations

from flask import Flask
from flask_migrate import Migrate

from webapp.core.extensions import db
from webapp.core.settings import ROOT


def init_app(app: Flask) -> None:
    """Let `flask_migrate.upgrade` and the `flask db` commands work in the context of an app."""
    Migrate(app, db, directory=str(ROOT / "migrations"))
