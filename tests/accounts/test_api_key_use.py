"""The time of the last use of an API key is recorded, and does not prevent the use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import SimpleNamespace

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, event, func, select, update

from tests.support.sql_statements import recorded_statements
from webapp.accounts import api_key_actions
from webapp.accounts.models import ApiKey
from webapp.core import database_timeouts
from webapp.core.errors import DomainError
from webapp.core.extensions import db


@contextmanager
def read_only_database() -> Iterator[None]:
    """Refuse writes, as a standby does."""

    def refuse_writes(connection: Connection) -> None:
        connection.exec_driver_sql("set transaction read only")

    # The next request begins a transaction of its own.
    db.session.rollback()
    event.listen(db.engine, "begin", refuse_writes)
    try:
        yield
    finally:
        event.remove(db.engine, "begin", refuse_writes)


@pytest.fixture
def authorization(app: Flask) -> str:
    return f"Bearer {api_key_actions.create_api_key('prometheus', ['read'], by='tests')}"


def load_last_use() -> datetime | None:
    db.session.rollback()
    return db.session.scalars(select(ApiKey.last_used_at)).one()


def test_the_use_of_a_key_is_recorded_once_a_minute(client: FlaskClient, authorization: str) -> None:
    for _ in range(2):
        assert client.get("/api/v1/offers", headers={"Authorization": authorization}).status_code == 200
    first = load_last_use()
    assert first

    with recorded_statements() as statements:
        client.get("/api/v1/offers", headers={"Authorization": authorization})

    assert load_last_use() == first
    assert not [statement for statement, _ in statements if "UPDATE api_key" in statement]


def test_the_use_of_one_key_is_not_that_of_another(client: FlaskClient, authorization: str) -> None:
    api_key_actions.create_api_key("till", ["read"], by="tests")

    client.get("/api/v1/offers", headers={"Authorization": authorization})

    db.session.rollback()
    used = select(ApiKey.name).where(ApiKey.last_used_at.is_not(None))
    assert db.session.scalars(used).all() == ["prometheus"]


def test_a_request_does_not_wait_for_another_one_that_records_the_use(
    client: FlaskClient, authorization: str, caplog: pytest.LogCaptureFixture
) -> None:
    with db.engine.connect() as other, database_timeouts.statement_deadline(30):
        other.execute(select(ApiKey.id).with_for_update())
        assert client.get("/api/v1/offers", headers={"Authorization": authorization}).status_code == 200
    assert "the last use of an API key was not recorded" not in caplog.text


def test_a_later_use_is_recorded(client: FlaskClient, authorization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_key_actions, "API_KEY_CACHE_SECONDS", 0)
    client.get("/api/v1/offers", headers={"Authorization": authorization})
    hour = func.make_interval(0, 0, 0, 0, 1)
    db.session.execute(update(ApiKey).values(last_used_at=ApiKey.last_used_at - hour))
    db.session.commit()
    before = load_last_use()

    client.get("/api/v1/offers", headers={"Authorization": authorization})

    after = load_last_use()
    assert before
    assert after
    assert after > before


@pytest.mark.parametrize("is_revoked_here", [True, False])
def test_a_key_that_is_revoked_while_its_use_is_recorded_is_not_cached(
    authorization: str, monkeypatch: pytest.MonkeyPatch, is_revoked_here: bool
) -> None:
    """Recording may take long while the database does not respond; another process may revoke the key, too."""
    now = [100.0]

    def revoke_meanwhile(key_id: int) -> None:
        if is_revoked_here:
            api_key_actions.revoke_api_key(key_id, by="tests")
        else:
            db.session.execute(update(ApiKey).values(revoked_at=func.now()))
            db.session.commit()
            now[0] += 20

    monkeypatch.setattr(api_key_actions, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(api_key_actions, "_update_last_used", revoke_meanwhile)
    assert api_key_actions.authenticate_api_key(authorization).name == "prometheus"

    with pytest.raises(DomainError) as error:
        api_key_actions.authenticate_api_key(authorization)

    assert error.value.key == "unauthorized"


def test_one_request_at_a_time_records_the_use_of_a_key(authorization: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []
    now = [100.0]

    def fail_slowly(key_id: int) -> None:
        attempts.append(key_id)
        now[0] += 20
        api_key_actions.authenticate_api_key(authorization)

    monkeypatch.setattr(api_key_actions, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(api_key_actions, "_update_last_used", fail_slowly)
    api_key_actions.authenticate_api_key(authorization)
    api_key_actions.authenticate_api_key(authorization)
    assert len(attempts) == 1

    now[0] += api_key_actions.API_KEY_CACHE_SECONDS
    api_key_actions.authenticate_api_key(authorization)
    assert len(attempts) == 2


@pytest.mark.parametrize("path", ["/metrics", "/api/v1/offers"])
def test_a_key_can_read_while_the_database_is_read_only(
    client: FlaskClient,
    authorization: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    monkeypatch.setattr(api_key_actions, "API_KEY_CACHE_SECONDS", 3600)
    with read_only_database(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert client.get(path, headers={"Authorization": authorization}).status_code == 200

    assert load_last_use() is None
    # The second request did not try again.
    assert [record.message for record in caplog.records if record.name == api_key_actions.__name__] == [
        "the last use of an API key was not recorded: ReadOnlySqlTransaction"
    ]
