"""A test that never ends. Only the test of killed runs starts it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from flask import Flask

from benchmarks import server as benchmark_server
from tests.support import live_server, watchdog
from tests.support.watchdog import RUN_VARIABLE


def test_wait_to_be_killed(app: Flask) -> None:
    settings = app.config["SETTINGS"]
    with (
        live_server.web_server(settings),
        live_server.worker(settings),
        watchdog.temporary_files_in_run(),
        benchmark_server.running(),
    ):
        Path(os.environ["RUN_FILE"]).write_text(os.environ[RUN_VARIABLE])
        signal.pause()
