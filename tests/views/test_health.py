from __future__ import annotations

import urllib.request

from flask import Flask
from flask.testing import FlaskClient

from tests.support import live_server


def test_ready_when_database_and_queue_answer(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok"}
    assert client.get("/readyz").status_code == 200


def test_the_real_web_server_becomes_ready(app: Flask) -> None:
    with live_server.web_server(app.config["SETTINGS"]) as web, urllib.request.urlopen(f"{web.url}/readyz") as answer:
        assert answer.status == 200
