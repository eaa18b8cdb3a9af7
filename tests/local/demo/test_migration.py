"""The migration that drops the table of demo rows of earlier releases."""

from __future__ import annotations

from collections.abc import Iterator

import flask_migrate
import pytest
from flask import Flask
from sqlalchemy import text

from webapp.core.extensions import db


@pytest.fixture
def earlier_release(app: Flask) -> Iterator[None]:
    """Downgrade to the tables of the previous release; upgrade again after the test."""
    db.session.remove()
    flask_migrate.downgrade(revision="0013")
    yield
    db.session.rollback()
    if has_table():
        db.session.execute(text("delete from demo_row"))
        db.session.commit()
    db.session.remove()
    flask_migrate.upgrade()


def has_table() -> bool:
    return db.session.scalar(text("select to_regclass('demo_row')")) is not None


@pytest.mark.usefixtures("earlier_release")
def test_an_empty_table_is_dropped() -> None:
    existed = has_table()
    db.session.remove()

    flask_migrate.upgrade()

    assert existed
    assert not has_table()


@pytest.mark.usefixtures("earlier_release")
def test_a_database_with_demo_rows_is_not_migrated(app: Flask) -> None:
    db.session.execute(text("insert into demo_row values ('customer', 1)"))
    db.session.commit()

    result = app.test_cli_runner().invoke(args=["migrate"])

    assert result.exit_code == 1
    assert result.output == (
        "onecode: this database contains the demo of the release you upgrade from; "
        "run `make demo-remove` with that release, then upgrade again (nothing was changed)\n"
    )
    assert db.session.scalar(text("select version_num from alembic_version")) == "0013"
    assert db.session.scalar(text("select count(*) from demo_row")) == 1
