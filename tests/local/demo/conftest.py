from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import text

from local.demo import seed
from tests.support.databases import fresh_database
from webapp import create_app
from webapp.core import migrations, signing_keys, task_queue
from webapp.core import settings as app_settings
from webapp.core.extensions import db


@pytest.fixture(scope="session")
def history_end() -> datetime:
    """The end of the shop's history: the last full hour."""
    return datetime.now(UTC).replace(minute=0, second=0, microsecond=0)


@pytest.fixture(scope="session")
def demo_app(session_app: Flask, history_end: datetime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    """The app on a separate database with the demo's data; for reading only."""
    with fresh_database() as url:
        settings = app_settings.load_settings(
            {
                "DATABASE_URL": url,
                "SECRET_KEY": "only-for-tests",
                "INSTANCE_PATH": str(tmp_path_factory.mktemp("demo")),
                "PUBLIC_URL": "http://localhost",
            }
        )
        demo = create_app(settings)
        migrations.init_app(demo)
        demo.config["TESTING"] = True
        signing_keys.clear_key_cache()
        try:
            with demo.app_context():
                flask_migrate.upgrade()
                seed.seed_database(history_end)
                db.session.remove()
            # A process has one task queue, which other tests use with their own app.
            task_queue.init_app(session_app)
            yield demo
        finally:
            with demo.app_context():
                db.engine.dispose()


@pytest.fixture
def shop(demo_app: Flask) -> Iterator[Flask]:
    """The demo's app with a pushed context."""
    signing_keys.clear_key_cache()
    with demo_app.app_context():
        yield demo_app
        db.session.remove()
    signing_keys.clear_key_cache()


@pytest.fixture
def query(shop: Flask) -> Callable[[str], list[tuple[Any, ...]]]:
    """Run a query on the demo's database; return its rows."""

    def run(statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in db.session.execute(text(statement))]

    return run
