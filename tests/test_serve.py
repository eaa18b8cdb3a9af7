"""`python -m webapp.serve`: the web server in a container or a systemd unit."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import psutil
import psycopg
import pytest
from flask import Flask

from local.supervisor import GRACE_SECONDS
from tests.support.live_server import environment, wait_for_processes, wait_until
from tests.support.ports import free_port
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import ROOT, Settings, load_settings

# Tests of whole servers that operators run.
pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-m", "webapp.serve"]


@pytest.fixture
def live_server(app: Flask, test_settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A ready server with three processes, and its URL."""
    port = free_port()
    env = environment(test_settings, PORT=str(port), WEB_WORKERS="3", PUBLIC_URL="http://localhost")
    process = subprocess.Popen(COMMAND, cwd="/", env=env | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _status(f"{url}/readyz") == 200)
        wait_for_processes(process, 3)
        yield process, url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        for child in _children(process):
            with suppress(psutil.Error):
                child.kill()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_the_server_finishes_running_requests_before_it_stops(
    live_server: tuple[subprocess.Popen[bytes], str], test_settings: Settings
) -> None:
    process, url = live_server
    assert "granian" in psutil.Process(process.pid).cmdline()
    children = psutil.Process(process.pid).children()
    assert len([child for child in children if "resource_tracker" not in str(child.cmdline())]) == 3
    statuses: list[int] = []
    with psycopg.connect(test_settings.libpq_url) as blocker:
        blocker.execute("lock table shop in access exclusive mode")
        request = threading.Thread(target=lambda: statuses.append(_status(f"{url}/redeem", seconds=30)))
        request.start()
        wait_until(lambda: _has_lock_waiter(test_settings))

        process.send_signal(signal.SIGTERM)
        wait_until(lambda: _status(f"{url}/healthz") == 0)
        assert statuses == []
        blocker.rollback()

    request.join(30)
    assert statuses == [200]
    assert process.wait(GRACE_SECONDS) == 0


def test_no_process_outlives_a_killed_server(live_server: tuple[subprocess.Popen[bytes], str]) -> None:
    process, url = live_server
    children = _children(process)

    process.kill()
    process.wait()

    gone, alive = psutil.wait_procs(children, timeout=GRACE_SECONDS)
    assert (len(gone), alive, _status(f"{url}/healthz")) == (len(children), [], 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("WEB_HOST", "localhost"), ("WEB_WORKERS", "0")],
)
def test_an_invalid_setting_is_reported_in_one_line(name: str, value: str, test_settings: Settings) -> None:
    result = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env=environment(test_settings, **{name: value}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert result.returncode == 1
    assert result.stderr.startswith(f"onecode: {name} must be ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["127.0.0.1", "0.0.0.0", "::"])
def test_the_listen_address_is_a_setting(value: str, test_settings: Settings) -> None:
    given = environment(test_settings, WEB_HOST=value)

    assert load_settings(given).web_host == value


def test_the_default_listen_address_is_loopback(test_settings: Settings) -> None:
    assert load_settings(environment(test_settings, WEB_HOST="")).web_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"), [("WEB_HOST", "0.0.0.0:80"), ("WEB_WORKERS", "many"), ("WEB_WORKERS", "65")]
)
def test_an_invalid_setting_is_rejected(name: str, value: str, test_settings: Settings) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be "):
        load_settings(environment(test_settings, **{name: value}))


def _status(url: str, seconds: float = 2) -> int:
    """Return the status of a response; 0 without one."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _has_lock_waiter(settings: Settings) -> bool:
    """Whether a session waits for a lock in this database."""
    with psycopg.connect(settings.libpq_url) as connection:
        found = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ).fetchone()
    return bool(found and found[0])


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
