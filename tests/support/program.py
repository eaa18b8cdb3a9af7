"""The app of the tests in this process."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, g

from local import cli
from tests.support.databases import empty_tables
from webapp import create_app
from webapp.core import database_health, signing_keys, task_queue
from webapp.core import settings as app_settings
from webapp.core.extensions import db, huey


def settings_for_tests(database_url: str, instance: Path, mail_port: int = 1) -> app_settings.Settings:
    """Return settings with this database and folder. Nothing listens on mail port 1."""
    return app_settings.load_settings(
        {
            "DATABASE_URL": database_url,
            "SECRET_KEY": "only-for-tests",
            "INSTANCE_PATH": str(instance),
            "PUBLIC_URL": "http://localhost",
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": str(mail_port),
            "SHOP_NAME": "Test shop",
        }
    )


def create_test_app(settings: app_settings.Settings) -> Flask:
    """Create the app with all commands and fast password hashes.

    The database must be migrated.
    """
    app = create_app(settings)
    cli.init_app(app)
    app.config["TESTING"] = True
    app.config["ARGON2"] = {"time_cost": 1, "memory_cost": 8, "parallelism": 1}
    with app.app_context():
        # Consecutive transactions use the same connection. Each connection inserts into a page of its own, so the rows
        # of a table that was emptied with DELETE would not be in the order in which they were written.
        pool: Any = db.engine.pool
        pool._pool.use_lifo = True

    @app.teardown_request
    def end_as_outside_tests(_: BaseException | None) -> None:
        # The context of the test outlives the request. Without this, changes that a view did not commit would still be
        # visible, and the next request would have the same user.
        db.session.rollback()
        for name in list(g):
            g.pop(name)

    return app


def forget_failures() -> None:
    """Forget failures of the queue and the database that an earlier test of this process has caused."""
    huey.storage._failing_since.clear()
    database_health.mark_recovered()
    database_health._recovered_at = -math.inf


@contextmanager
def on_empty_tables(app: Flask, keep: Collection[str] = ()) -> Iterator[None]:
    """Push the app's context with empty tables, except those in `keep`."""
    # A process has one task queue, and a test that created another app may have replaced it.
    task_queue.init_app(app)
    with app.app_context():
        empty_tables(keep)
        forget_failures()
        signing_keys.clear_key_cache()
        app.extensions.pop("used_up_offers", None)
        yield
        db.session.remove()
