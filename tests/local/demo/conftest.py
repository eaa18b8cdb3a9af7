from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from local.demo import fill
from tests.support.databases import empty_tables
from webapp.core import signing_keys, task_queue
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.redemptions import group_commit, hourly_counts
from webapp.redemptions.rules import RedemptionRequest

# In the middle of a week, so that there is a weekend behind and something today.
NOW = datetime.now(UTC).replace(hour=14, minute=0, second=0, microsecond=0)
# The clock of the program's own work; keys that nobody sees; Huey's.
NOT_DATA = ("redemption_tally", "signing_key", "worker", "mail_pace", "batch_cursor")

Rows = dict[str, set[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def shop(session_app: Flask) -> Iterator[Flask]:
    """A database with the demonstration in it, as its command leaves it, but that no worker runs. To be read only."""
    task_queue.init_app(session_app)
    with session_app.app_context():
        empty_tables()
        signing_keys.clear_key_cache()
        fill.check(replace(session_app.config["SETTINGS"], uses_mail_sink=True))
        # As where the program runs: the sweep has counted all hours already.
        hourly_counts.update_hourly_counts()
        fill.fill()
        fill.finish()
        yield session_app
        db.session.remove()


@pytest.fixture
def look(shop: Flask) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """Asks the filled database."""

    def ask(statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in db.session.execute(text(statement))]

    yield ask
    db.session.rollback()


def all_rows() -> Rows:
    """Every row of every table, as text."""
    names = [table.name for table in db.metadata.sorted_tables if table.name not in NOT_DATA]
    found = {name: set(db.session.scalars(text(f"select cast(t as text) from {name} t"))) for name in names}
    db.session.rollback()
    return found


@pytest.fixture
def sink(app: Flask, with_settings: Callable[..., Settings]) -> Settings:
    return with_settings(uses_mail_sink=True)


def filled(now: datetime = NOW) -> None:
    fill.fill(now)
    fill.links()
    fill.finish()


def redeem(code: str, email: str) -> None:
    group_commit.redeem(RedemptionRequest(code=code.replace("-", ""), email=email, channel="form"))
