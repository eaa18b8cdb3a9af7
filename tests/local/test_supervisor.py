"""The services of an instance: waiting until they are ready."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from local import supervisor
from local.supervisor import ServiceError
from webapp.core.settings import Settings


class ReadyHandler(BaseHTTPRequestHandler):
    """Responds to each request as a web server that is ready."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


@pytest.fixture
def ready_port() -> Iterator[int]:
    """The port of a web server that is ready."""
    with HTTPServer(("127.0.0.1", 0), ReadyHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def settings(test_settings: Settings, tmp_path: Path) -> Settings:
    """The settings of an instance with a mail sink."""
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "web.log").write_text("last line of the web server\n")
    return replace(test_settings, instance_path=tmp_path, port=1, uses_mail_sink=True)


def test_a_web_server_that_is_not_ready_is_named(settings: Settings) -> None:
    with pytest.raises(ServiceError, match=r"the web server did not .* \(last line of the web server\); .*web\.log"):
        supervisor.wait_until_ready(settings, seconds=0)


def test_a_mail_sink_that_is_not_ready_is_named(
    settings: Settings, ready_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_accepts", lambda port: port != ready_port + 2)
    with pytest.raises(ServiceError, match=r"the mail sink did not become ready \(no response\); .*mail\.log"):
        supervisor.wait_until_ready(replace(settings, port=ready_port), seconds=0)


def test_the_hint_at_many_threads_is_not_the_reason(settings: Settings) -> None:
    hint = "[WARNING] Configuration allows spawning up to 32 Python threads, which seems quite high.\n"
    (settings.instance_path / "log" / "web.log").write_text(hint)
    with pytest.raises(ServiceError, match=r"the web server did not become ready \(no response\); .*busy"):
        supervisor.wait_until_ready(settings, seconds=0)
