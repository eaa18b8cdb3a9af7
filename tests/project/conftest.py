"""Fixtures for the tests of migrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import flask_migrate
import pytest
from flask import Flask

from webapp.core.extensions import db


@pytest.fixture
def downgrade_to(app: Flask) -> Iterator[Callable[[str], None]]:
    """Downgrades to an earlier revision; restores the newest one afterwards."""

    def move(revision: str) -> None:
        db.session.remove()
        flask_migrate.downgrade(revision=revision)

    yield move
    db.session.remove()
    flask_migrate.upgrade()
