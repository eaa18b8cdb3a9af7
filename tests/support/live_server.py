"""The real program in processes of its own, for tests of what no test client can show."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

from tests.support.ports import free_port
from webapp import serve
from webapp.core.settings import ROOT, Settings


@dataclass(frozen=True)
class Live:
    """A running part of the program."""

    process: subprocess.Popen[bytes]
    url: str


def can_be_interrupted() -> None:
    """For `preexec_fn`: Ctrl-C reaches it as it does in a terminal, also where the tests run in the background, which
    makes a shell have it ignored by all of them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """What a process of the program needs to be told to share the test's database and folder."""
    return os.environ | {
        "DATABASE_URL": settings.libpq_url,
        "SECRET_KEY": settings.secret_key,
        "INSTANCE_PATH": str(settings.instance_path),
        "MAIL_SERVER": settings.mail_server,
        "MAIL_PORT": str(settings.mail_port),
        "SHOP_NAME": settings.shop_name,
        "PYTHONUNBUFFERED": "1",
        **more,
    }


@contextmanager
def web_server(settings: Settings, workers: int = 2, **more: str) -> Iterator[Live]:
    """The web server, ready, on a free port; ended by its id afterwards."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, *serve.web_arguments(port, workers)]
    with _running(command, environment(settings, **{"PUBLIC_URL": url} | more)) as process:
        _wait_for(f"{url}/readyz", process)
        wait_for_processes(process, workers)
        yield Live(process, url)


@contextmanager
def worker(settings: Settings, **more: str) -> Iterator[Live]:
    """A Huey consumer; ended by its id afterwards."""
    with _running([sys.executable, "-m", "webapp.worker"], environment(settings, **more)) as process:
        yield Live(process, "")


@contextmanager
def _running(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        # Longer than the server gives its own processes.
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        # Whatever it has left behind is of its session.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the process ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{url} did not answer")


def wait_for_processes(server: subprocess.Popen[bytes], count: int) -> None:
    """Wait until `count` processes of the web server serve.

    One of them is enough for an answer, but one that is still starting ignores SIGTERM and would be killed only after
    30 seconds.
    """
    wait_until(lambda: _serving_processes(server) == count)


def _serving_processes(server: subprocess.Popen[bytes]) -> int:
    try:
        # The threads that serve are started after the signal handlers were set.
        return sum(child.num_threads() > 3 for child in psutil.Process(server.pid).children())
    except psutil.NoSuchProcess:
        return 0


def wait_until(done: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
