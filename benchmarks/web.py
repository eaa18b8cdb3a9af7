"""Web servers in separate processes, for any app."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from webapp.core.settings import ROOT, Settings
from webapp.serve import web_arguments

PROGRAM = "wsgi:app"


@dataclass(frozen=True)
class Web:
    """A running web server."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu_seconds(self) -> float:
        """The CPU seconds of all its processes so far."""
        main = psutil.Process(self.process.pid)
        return sum(sum(process.cpu_times()[:4]) for process in [main, *main.children(recursive=True)])


def command(settings: Settings, app: str) -> list[str]:
    """The command that serves the application, with another app in its place."""
    return [app if argument == PROGRAM else argument for argument in web_arguments(settings.port)]


@contextmanager
def serving(app: str, settings: Settings, environment: Mapping[str, str], ready: str) -> Iterator[Web]:
    """Serve an app on a free port during the block.

    The block begins when the path `ready` responds.

    :raises RuntimeError: when it does not respond, with the end of the server's log.
    """
    port = _free_port()
    log = Path(settings.instance_path) / f"{app.partition(':')[0]}.{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command(dataclasses.replace(settings, port=port), app)],
            cwd=ROOT,
            env=os.environ | {"PORT": str(port), "PYTHONUNBUFFERED": "1", **environment},
            stdout=file,
            stderr=file,
        )
    try:
        _wait(f"http://127.0.0.1:{port}{ready}", process, log)
        yield Web(process, port)
    finally:
        process.terminate()
        process.wait(timeout=60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except urllib.error.HTTPError:
            # It responds, although the path has no GET.
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{url} does not respond: {log.read_text(errors='replace')[-2000:]}")
