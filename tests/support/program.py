"""The app of the tests, in this process."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask, g

from local import cli
from tests.support.databases import empty_tables
from webapp import create_app
from webapp.core import settings as app_settings
from webapp.core import signing_keys, task_queue
from webapp.core.extensions import db


def settings_for_tests(database_url: str, instance: Path, mail_port: int = 1) -> app_settings.Settings:
    """Settings with a database and a folder of their own. On port 1 nobody takes mail."""
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
    """The app with all commands and with quick password hashes, on a database that is migrated already."""
    app = create_app(settings)
    cli.init_app(app)
    app.config["TESTING"] = True
    app.config["ARGON2"] = {"time_cost": 1, "memory_cost": 8, "parallelism": 1}

    @app.teardown_request
    def end_as_outside_tests(_: BaseException | None) -> None:
        # The context of the test is there before and after the request: without this, what a view forgot to commit
        # would be there still, and the user of one request would be that of the next.
        db.session.rollback()
        for name in list(g):
            g.pop(name)

    return app


@contextmanager
def on_empty_tables(app: Flask, keep: Collection[str] = ()) -> Iterator[None]:
    """The context of the app while a test runs. Tables in `keep` are not emptied."""
    # There is one task queue in a process; a test that made an app of its own has left it there.
    task_queue.init_app(app)
    with app.app_context():
        empty_tables(keep)
        signing_keys.clear_key_cache()
        yield
        db.session.remove()
