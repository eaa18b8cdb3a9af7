"""The real program in separate processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.ports import free_port
from webapp import serve
from webapp.core.settings import ROOT, Settings


@dataclass(frozen=True)
class LiveProcess:
    """A running process of the program and, for a web server, its URL."""

    process: subprocess.Popen[bytes]
    url: str


def restore_sigint() -> None:
    """Restore the default action of SIGINT; for `preexec_fn`.

    A shell starts background jobs with SIGINT ignored, and the processes of the tests would inherit that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """Return the environment for a process with the test's database and folder."""
    return os.environ | {
        "DATABASE_URL": settings.libpq_url,
        "DATABASE_DIRECT_URL": settings.database_direct_url or "",
        "SECRET_KEY": settings.secret_key,
        "INSTANCE_PATH": str(settings.instance_path),
        "MAIL_SERVER": settings.mail_server,
        "MAIL_PORT": str(settings.mail_port),
        "SHOP_NAME": settings.shop_name,
        "PYTHONUNBUFFERED": "1",
        **more,
    }


@contextmanager
def web_server(settings: Settings, workers: int = 1, host: str = "127.0.0.1", **more: str) -> Iterator[LiveProcess]:
    """Run the web server on a free port; yield when it is ready.

    :param host: the loopback interface in its public URL.
    """
    with _web_server(settings, workers, host, more) as server:
        yield server


@contextmanager
def web_server_with_log(settings: Settings, workers: int, log: Path) -> Iterator[LiveProcess]:
    """Run the web server like `web_server`, with its log in a file."""
    with _web_server(settings, workers, "127.0.0.1", {}, log) as server:
        yield server


@contextmanager
def _web_server(
    settings: Settings, workers: int, host: str, more: Mapping[str, str], log: Path | None = None
) -> Iterator[LiveProcess]:
    port = free_port()
    url = f"http://{host}:{port}"
    command = [sys.executable, *serve.web_arguments(port, workers)]
    variables = environment(settings, **{"PUBLIC_URL": url, "PORT": str(port), **more})
    with _running(command, variables, log) as process:
        _wait_for(f"{url}/readyz", process)
        wait_for_processes(process, workers)
        yield LiveProcess(process, url)


@contextmanager
def worker(settings: Settings, **more: str) -> Iterator[LiveProcess]:
    """Run a Huey consumer."""
    with _running([sys.executable, "-m", "webapp.worker"], environment(settings, **more)) as process:
        yield LiveProcess(process, "")


@contextmanager
def _running(command: list[str], env: dict[str, str], log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") if log else nullcontext() as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        # Longer than the server waits for its own processes.
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        # Processes that it left behind are in its session.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float = 120) -> None:
    # On a busy machine, the first checks of /readyz take longer than requests wait for them.
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the process ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{url} did not respond")


def wait_for_processes(server: subprocess.Popen[bytes], count: int) -> None:
    """Wait until `count` processes of the web server serve.

    One of them is enough for an answer, but one that is still starting ignores SIGTERM and would be killed only after
    30 seconds.
    """
    wait_until(lambda: _serving_processes(server) == count)


def _serving_processes(server: subprocess.Popen[bytes]) -> int:
    try:
        # Two threads wait for signals. Those that serve are started after the signal handlers were set.
        return sum(child.num_threads() > 4 for child in psutil.Process(server.pid).children())
    except psutil.NoSuchProcess:
        return 0


def wait_until(
    done: Callable[[], object],
    seconds: float = 180,
    what: str | Callable[[], object] = "the condition",
    interval: float = 0.05,
) -> None:
    """Wait for a condition that is checked every `interval` seconds.

    :param seconds: longer than anything takes on a busy machine, such as the start of a worker.
    :param what: what is waited for, or a function that returns what was found instead.
    :raises AssertionError: when it is not met within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"timed out: {what() if callable(what) else what}"
        time.sleep(interval)
