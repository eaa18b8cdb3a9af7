"""Run the web server in the foreground: `python -m webapp.serve`.

For a container or a systemd unit. A worker must run too: `python -m webapp.worker`. Both log to standard output and
standard error, and on SIGTERM they finish the work in progress and exit.
"""

from __future__ import annotations

import os
import sys

from webapp.core import pooler_check
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import ROOT, load_settings


def web_arguments(port: int, workers: int = 2, host: str = "127.0.0.1") -> list[str]:
    """Return the arguments of the Python interpreter that run granian.

    There are many threads, since they mostly wait for the database, and waiting redemptions are committed as a group
    (see docs/decisions/granian.md).
    """
    options = {
        "interface": "wsgi",
        "host": host,
        "port": str(port),
        "http": "1",
        # Bytes. The response to a request with more than twice as many in its headers is 431. The default is 400 kB, in
        # which a hundred thousand cookies fit.
        "http1-buffer-size": "65536",
        "workers": str(workers),
        "blocking-threads": "32",
        "workers-kill-timeout": "30s",
        "respawn-interval": "0.5",
        "log-level": "warning",
    }
    pairs = [f"--{name}={value}" for name, value in options.items()]
    return ["-m", "granian", "wsgi:app", *pairs, "--no-ws", "--respawn-failed-workers"]


def main() -> None:
    """Replace this process by the web server. Never returns.

    Signals then reach the web server directly. It listens on `WEB_HOST` and `PORT` with `WEB_WORKERS` processes.
    Invalid settings end the process with one line on standard error.
    """
    try:
        settings = load_settings()
        pooler_check.check_pooling_if_available(settings)
    except SettingsError as error:
        sys.exit(f"onecode: {error}")
    os.chdir(ROOT)
    arguments = web_arguments(settings.port, settings.web_workers, settings.web_host)
    os.execve(sys.executable, [sys.executable, *arguments], os.environ | {"TZ": "UTC", "PYTHONUNBUFFERED": "1"})  # noqa: S606


if __name__ == "__main__":
    main()
