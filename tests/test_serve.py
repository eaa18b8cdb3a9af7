"""`python -m webapp.serve`: the web server of a container or of a unit of systemd."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import psycopg
import pytest
from flask import Flask

from local.supervisor import GRACE_SECONDS
from tests.support.live_server import environment, wait_for_processes
from tests.support.ports import free_port
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import ROOT, Settings, load_settings

COMMAND = [sys.executable, "-m", "webapp.serve"]


@pytest.fixture
def served(app: Flask, test_settings: Settings) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The server with three processes, ready, and where it is."""
    port = free_port()
    env = environment(test_settings, PORT=str(port), WEB_WORKERS="3", PUBLIC_URL="http://localhost")
    process = subprocess.Popen(COMMAND, cwd="/", env=env | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(lambda: _status(f"{url}/readyz") == 200)
        wait_for_processes(process, 3)
        yield process, url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        for left in _children(process):
            with suppress(psutil.Error):
                left.kill()
        process.kill()
        process.wait()


def test_it_becomes_the_server_and_told_to_end_finishes_what_it_has_begun(
    served: tuple[subprocess.Popen[bytes], str], test_settings: Settings
) -> None:
    process, url = served
    assert "granian" in psutil.Process(process.pid).cmdline()
    children = psutil.Process(process.pid).children()
    assert len([child for child in children if "resource_tracker" not in str(child.cmdline())]) == 3
    answers: list[int] = []
    with psycopg.connect(test_settings.libpq_url) as other:
        other.execute("lock table alembic_version in access exclusive mode")
        request = threading.Thread(target=lambda: answers.append(_status(f"{url}/readyz", seconds=30)))
        request.start()
        _wait_for(lambda: _waits(test_settings))

        process.send_signal(signal.SIGTERM)
        _wait_for(lambda: _status(f"{url}/healthz") == 0)
        assert answers == []
        other.rollback()

    request.join(30)
    assert answers == [200]
    assert process.wait(GRACE_SECONDS) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("WEB_HOST", "localhost"), ("WEB_WORKERS", "0")],
)
def test_a_wrong_setting_is_one_line_and_no_server(name: str, value: str, test_settings: Settings) -> None:
    done = subprocess.run(
        COMMAND,
        cwd=ROOT,
        env=environment(test_settings, **{name: value}),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"onecode: {name} must be ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("value", ["127.0.0.1", "0.0.0.0", "::"])
def test_it_listens_where_it_is_told(value: str, test_settings: Settings) -> None:
    given = environment(test_settings, WEB_HOST=value)

    assert load_settings(given).web_host == value


def test_without_a_word_it_listens_on_this_machine_only(test_settings: Settings) -> None:
    assert load_settings(environment(test_settings, WEB_HOST="")).web_host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"), [("WEB_HOST", "0.0.0.0:80"), ("WEB_WORKERS", "many"), ("WEB_WORKERS", "65")]
)
def test_what_makes_no_sense_is_refused(name: str, value: str, test_settings: Settings) -> None:
    with pytest.raises(SettingsError, match=f"^{name} must be "):
        load_settings(environment(test_settings, **{name: value}))


def _status(url: str, seconds: float = 2) -> int:
    """The status of an answer; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=seconds) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _waits(settings: Settings) -> bool:
    """Whether anybody waits for a lock in this database."""
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


def _wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
