"""Waiting until the services of an instance are ready."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from local import readiness
from local.readiness import LogPositions, ServiceError
from webapp.core.settings import Settings


class ReadyHandler(BaseHTTPRequestHandler):
    """Responds to each request as a web server that is ready after `unready` requests."""

    unready = 0

    def do_GET(self) -> None:
        cls = type(self)
        self.send_response(503 if cls.unready else 200)
        self.end_headers()
        if cls.unready:
            cls.unready -= 1
            self.wfile.write(b"database: no response")


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
    """The settings of an instance with a mail sink; its web server does not listen."""
    (tmp_path / "log").mkdir()
    return replace(test_settings, instance_path=tmp_path, port=1, uses_mail_sink=True)


def write_log(settings: Settings, name: str, line: str) -> None:
    with (settings.instance_path / "log" / name).open("a") as log:
        log.write(f"{line}\n")


def test_a_web_server_that_is_not_ready_is_named_with_its_last_line_since_the_start(settings: Settings) -> None:
    write_log(settings, "web.log", "last line of an earlier start")
    positions = LogPositions(settings.instance_path / "log")
    with pytest.raises(ServiceError, match=r"the web server did not become ready \(no response\); .*web\.log.*busy"):
        readiness.wait_until_ready(settings, positions, seconds=0)

    write_log(settings, "web.log", "[ERROR] first\n[ERROR] last line of the web server")
    with pytest.raises(ServiceError, match=r"the web server did not .* \(\[ERROR\] last line of the web server\); "):
        readiness.wait_until_ready(settings, positions, seconds=0)


def test_a_log_that_was_rotated_since_the_start_is_read_from_its_beginning(settings: Settings) -> None:
    write_log(settings, "web.log", "a long line of an earlier start")
    positions = LogPositions(settings.instance_path / "log")
    (settings.instance_path / "log" / "web.log").write_text("a new line\n")
    assert positions.read_new_lines("web.log") == ["a new line"]


def test_a_mail_sink_that_is_not_ready_is_named(
    settings: Settings, ready_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_accepts", lambda port: port != ready_port + 2)
    with pytest.raises(ServiceError, match=r"the mail sink did not become ready \(no response\); .*mail\.log"):
        readiness.wait_until_ready(replace(settings, port=ready_port), seconds=0)


def test_the_hint_at_many_threads_is_not_the_reason(settings: Settings) -> None:
    positions = LogPositions(settings.instance_path / "log")
    hint = "[WARNING] Configuration allows spawning up to 32 Python threads, which seems quite high."
    write_log(settings, "web.log", hint)
    with pytest.raises(ServiceError, match=r"the web server did not become ready \(no response\); .*busy"):
        readiness.wait_until_ready(settings, positions, seconds=0)


def test_services_that_have_not_failed_are_waited_for_and_named(
    settings: Settings, ready_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ReadyHandler, "unready", 3)
    write_log(settings, "supervisor.log", "WARN exited: web (exit status 1; not expected)")
    without_sink = replace(settings, port=ready_port, uses_mail_sink=False)
    # An exit before the start is none of this start.
    readiness.wait_until_ready(without_sink, seconds_after_exit=0, report_seconds=0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("Still waiting for the web server (database: no response), ") for line in lines)


def test_a_web_server_that_has_exited_is_waited_for_no_longer(settings: Settings) -> None:
    positions = LogPositions(settings.instance_path / "log")
    write_log(settings, "web.log", "[ERROR] Worker crash loop detected, exiting")
    write_log(settings, "supervisor.log", "WARN exited: web (exit status 1; not expected)")
    with pytest.raises(ServiceError, match=r"Worker crash loop detected.*web\.log$"):
        readiness.wait_until_ready(settings, positions, seconds=5, seconds_after_exit=0)


def test_nothing_is_waited_for_after_the_end_of_the_supervisor(settings: Settings) -> None:
    positions = LogPositions(settings.instance_path / "log")
    write_log(settings, "start.log", "Error: could not find config file")
    with subprocess.Popen([sys.executable, "-c", ""]) as supervisor:
        supervisor.wait()
        with pytest.raises(ServiceError, match=r"\(Error: could not .*\); see its log, .*start\.log"):
            readiness.wait_until_ready(settings, positions, supervisor)
