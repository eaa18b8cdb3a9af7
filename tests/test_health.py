from __future__ import annotations

import re

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from flask.testing import FlaskClient

from webapp import get_app_version
from webapp.core.extensions import db
from webapp.core.settings import ROOT


def test_ready_when_database_and_queue_answer(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok", "version": get_app_version()}
    assert client.get("/readyz").status_code == 200


def test_staff_pages_show_the_version(staff: FlaskClient) -> None:
    assert f"Onecode {get_app_version()}" in staff.get("/").text


def test_version_is_that_of_the_last_release_in_the_changelog() -> None:
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == get_app_version()


def test_the_migrations_make_what_the_models_say(app: Flask) -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": not_of_the_queue})

        assert compare_metadata(context, db.metadata) == []


def not_of_the_queue(thing: object, name: str | None, kind: str, reflected: bool, compare_to: object) -> bool:
    """Huey's tables are made by a migration and are no models of ours."""
    return not (kind == "table" and (name or "").startswith("huey_"))
