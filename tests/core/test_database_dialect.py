"""SQLAlchemy's first connection: no statement is sent, and what SQLAlchemy knows of the server is right."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import NullPool, create_engine

from tests.support.frozen_server import FROZEN_SECONDS, frozen_process
from webapp import create_app
from webapp.core import database_connections, task_queue
from webapp.core.database_connections import DeadlineConnection
from webapp.core.database_engines import DRIVER_URL, get_direct_engine
from webapp.core.extensions import db
from webapp.core.settings import Settings


@pytest.fixture
def frozen_servers(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the server process of each new connection freeze after the login, as behind a connection pooler."""
    connect = database_connections.connect
    with ExitStack() as frozen:

        def connect_and_freeze(url: str, **arguments: Any) -> DeadlineConnection:
            connection = connect(url, **arguments, statement_seconds=FROZEN_SECONDS)
            frozen.enter_context(frozen_process(connection.info.backend_pid))
            return connection

        with monkeypatch.context() as patch:
            patch.setattr(database_connections, "connect", connect_and_freeze)
            yield
    task_queue.init_app(app)


@pytest.mark.usefixtures("frozen_servers")
def test_the_first_connection_of_an_engine_sends_no_statement(test_settings: Settings) -> None:
    settings = replace(test_settings, database_url=test_settings.libpq_url, database_direct_url=test_settings.libpq_url)
    with create_app(settings).app_context():
        assert get_direct_engine() is not db.engine
        for engine in (db.engine, get_direct_engine()):
            with engine.connect() as connection:
                assert not connection.closed
            engine.dispose()


@pytest.mark.parametrize("parameters", [{}, {"options": "-c standard_conforming_strings=off"}])
def test_the_dialect_knows_what_sqlalchemy_would_ask_for(test_settings: Settings, parameters: dict[str, Any]) -> None:
    names = ("server_version_info", "default_schema_name", "default_isolation_level", "_backslash_escapes")

    def initialize(url: str) -> dict[str, Any]:
        creator = functools.partial(database_connections.connect, test_settings.libpq_url, **parameters)
        engine = create_engine(url, poolclass=NullPool, creator=creator)
        with engine.connect():
            return {name: getattr(engine.dialect, name) for name in names}

    known = initialize(DRIVER_URL)

    assert known == initialize("postgresql+psycopg://")
    assert known["_backslash_escapes"] == bool(parameters)
