"""The web server in front, for a container or a unit of systemd: `python -m webapp.serve`.

Beside it stands `python -m webapp.worker`. Both say what they have to say on standard output and standard error, and
end by SIGTERM when they have finished what they had begun.
"""

from __future__ import annotations

import os
import sys

from webapp.core.settings import ROOT, SettingsError, load_settings


def web_arguments(port: int, workers: int = 2, host: str = "127.0.0.1") -> list[str]:
    """What Python is told to serve the program: granian, measured (docs/decisions/granian.md). Many threads, since they
    mostly wait for the database, and those that wait to redeem are written together."""
    options = {
        "interface": "wsgi",
        "host": host,
        "port": str(port),
        "http": "1",
        "workers": str(workers),
        "blocking-threads": "32",
        "workers-kill-timeout": "30s",
        "respawn-interval": "0.5",
        "log-level": "warning",
    }
    pairs = [f"--{name}={value}" for name, value in options.items()]
    return ["-m", "granian", "wsgi:app", *pairs, "--no-ws", "--respawn-failed-workers"]


def main() -> None:
    """Become the web server, so that signals reach it without a go-between. Never returns.

    It listens on `WEB_HOST` and `PORT` with `WEB_WORKERS` processes. Wrong settings end it with one line.
    """
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.exit(f"onecode: {error}")
    os.chdir(ROOT)
    arguments = web_arguments(settings.port, settings.web_workers, settings.web_host)
    os.execve(sys.executable, [sys.executable, *arguments], os.environ | {"TZ": "UTC", "PYTHONUNBUFFERED": "1"})  # noqa: S606


if __name__ == "__main__":
    main()
