from __future__ import annotations

from flask.testing import FlaskClient


def test_ready_when_database_and_queue_answer(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/readyz").status_code == 200
