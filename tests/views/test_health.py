from __future__ import annotations

import re
import urllib.request

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.support import live_server
from webapp import get_app_version
from webapp.core.settings import ROOT


@pytest.mark.usefixtures("patient_readiness")
def test_the_app_is_ready_when_database_and_queue_respond(client: FlaskClient) -> None:
    assert client.get("/healthz").json == {"status": "ok", "version": get_app_version()}
    assert client.get("/readyz").status_code == 200


def test_staff_pages_show_the_version(staff: FlaskClient) -> None:
    assert f"Onecode {get_app_version()}" in staff.get("/").text


def test_the_version_is_the_latest_release_in_the_changelog() -> None:
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == get_app_version()


def test_the_real_web_server_becomes_ready(app: Flask) -> None:
    with live_server.web_server(app.config["SETTINGS"]) as web, urllib.request.urlopen(f"{web.url}/readyz") as response:
        assert response.status == 200
