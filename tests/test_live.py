from __future__ import annotations

import urllib.request

from flask import Flask

from tests import live


def test_the_real_web_server_becomes_ready(app: Flask) -> None:
    with live.web_server(app.config["SETTINGS"]) as web, urllib.request.urlopen(f"{web.url}/readyz") as answer:
        assert answer.status == 200
