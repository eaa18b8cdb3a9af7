"""Wait until the services of an instance are ready."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

from webapp.core.settings import Settings

# How long services that run and have not failed may take. On a busy machine they need more than a minute.
READY_SECONDS = 600
# How long they may take when one of them has exited since the start, and was restarted.
READY_SECONDS_AFTER_EXIT = 60
REPORT_SECONDS = 30
# The first line of the web server's log: a hint at 32 threads, which mostly wait for the database.
_HARMLESS_WARNING = "[WARNING] Configuration allows spawning up to"
_EXIT = re.compile(r"\bexited: (?:web|mail) ")


class ServiceError(Exception):
    """The services can't be started or stopped; the message says what to do."""


class LogPositions:
    """The ends of the logs of an instance at one time; later lines belong to a new start.

    :param folder: the folder of the logs, which may not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes = {file.name: file.stat().st_size for file in folder.glob("*.log")}

    def read_new_lines(self, name: str) -> list[str]:
        """Return the lines that were written to a log since then, without its harmless warning.

        A log that was rotated is read from its beginning.
        """
        try:
            with (self._folder / name).open("rb") as file:
                size = self._sizes.get(name, 0)
                file.seek(size if size <= file.seek(0, os.SEEK_END) else 0)
                lines = file.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if not line.startswith(_HARMLESS_WARNING)]


def wait_until_ready(
    settings: Settings,
    logs: LogPositions | None = None,
    supervisor: subprocess.Popen[bytes] | None = None,
    seconds: float = READY_SECONDS,
    seconds_after_exit: float = READY_SECONDS_AFTER_EXIT,
    report_seconds: float = REPORT_SECONDS,
) -> None:
    """Wait until `/readyz` succeeds and the mail sink, if there is one, accepts connections.

    While it waits, it prints every `report_seconds` what it waits for.

    :param logs: the ends of the logs before the start, by default those at the time of the call.
    :param supervisor: the process that has just been started, if any; when it ends, nothing is waited for.
    :param seconds_after_exit: the limit that applies once a service has exited.
    :raises ServiceError: when one of them is not ready in time, with the last line of its log since the start, or
        else its response.
    """
    logs = logs or LogPositions(settings.instance_path / "log")
    start = next_report = time.monotonic()
    while (unready := _find_unready_service(settings)) is not None:
        service, log_name, response = unready
        now = time.monotonic()
        has_ended = supervisor is not None and supervisor.poll() is not None
        has_failed = has_ended or _has_exited(logs)
        if has_ended or now - start >= (seconds_after_exit if has_failed else seconds):
            log = "start.log" if has_ended else log_name
            reason = next(reversed(logs.read_new_lines(log)), response)
            raise ServiceError(
                f"the {service} did not become ready ({reason}); see its log, {settings.instance_path / 'log' / log}"
                + ("" if has_failed else ". If the machine is busy, run the same command again.")
            )
        if now - next_report >= report_seconds:
            next_report = now
            print(f"Still waiting for the {service} ({response}), {now - start:.0f} s so far …", flush=True)  # noqa: T201
        time.sleep(0.1)


def _has_exited(logs: LogPositions) -> bool:
    """Return whether the web server or the mail sink has exited since the start, as supervisord logs."""
    return any(_EXIT.search(line) for line in logs.read_new_lines("supervisor.log"))


def _find_unready_service(settings: Settings) -> tuple[str, str, str] | None:
    """Return a service that is not ready, its log file and its response; None if all services are ready."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/readyz", timeout=2).close()
    except urllib.error.HTTPError as error:
        return "web server", "web.log", error.read().decode(errors="replace").strip()
    except OSError:
        return "web server", "web.log", "no response"
    if settings.uses_mail_sink and not _accepts(settings.sink_page_port):
        return "mail sink", "mail.log", "no response"
    return None


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return True
    except OSError:
        return False
