"""The check whether the database accepts writes."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine

from tests.support.chaos import durable_database
from tests.support.live_server import wait_until
from webapp.core import write_probe
from webapp.core.extensions import db
from webapp.monitoring import queries as monitoring_queries


def test_a_database_that_commits_is_writable(app: Flask) -> None:
    result = write_probe.probe_write(db.engine)

    assert result.is_writable
    assert 0 < result.seconds < write_probe.WRITE_TIMEOUT_SECONDS


def make_engine(app: Flask, **arguments: str) -> Engine:
    return create_engine(app.config["SQLALCHEMY_DATABASE_URI"], connect_args=arguments)


def refuse_writes(app: Flask) -> Engine:
    return make_engine(app, options="-c default_transaction_read_only=on")


def close_port(app: Flask) -> Engine:
    return make_engine(app, host="127.0.0.1", port="1")


@pytest.mark.parametrize("make", [refuse_writes, close_port])
def test_a_database_that_refuses_is_not_writable(app: Flask, make: Callable[[Flask], Engine]) -> None:
    engine = make(app)

    assert not write_probe.probe_write(engine).is_writable
    engine.dispose()


@pytest.mark.slow
def test_a_missing_standby_makes_the_database_not_writable() -> None:
    with durable_database.start_durable_database(1) as database, database.context():
        assert write_probe.probe_write(db.engine).is_writable

        with database.connect() as connection:
            connection.execute("alter system set synchronous_standby_names = 'missing'")
            connection.execute("select pg_reload_conf()")
            wait_until(lambda: _read_setting(connection) == "missing")
            result = write_probe.probe_write(db.engine)
            assert not result.is_writable
            assert result.seconds >= write_probe.WRITE_TIMEOUT_SECONDS
            _assert_waiting_commit_is_counted(database, connection)


def _read_setting(connection: psycopg.Connection) -> str:
    row = connection.execute("show synchronous_standby_names").fetchone()
    assert row
    return str(row[0])


def _assert_waiting_commit_is_counted(
    database: durable_database.DurableDatabase, connection: psycopg.Connection
) -> None:
    conninfo = database.server.conninfo("onecode")
    with psycopg.connect(conninfo) as writer:
        writer.execute("update customer set name = 'Ada'")
        writer.pgconn.send_query(b"commit")
        wait_until(lambda: monitoring_queries.load_database_metrics().standby_waits == 1)
        db.session.rollback()
        connection.execute("alter system reset synchronous_standby_names")
        connection.execute("select pg_reload_conf()")
        while writer.pgconn.get_result() is not None:
            pass
    assert monitoring_queries.load_database_metrics().standby_waits == 0
    assert write_probe.probe_write(db.engine).is_writable
