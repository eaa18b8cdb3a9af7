"""A test that never ends. Only the test of killed runs starts it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from flask import Flask

from tests.support import live_server
from tests.support.watchdog import RUN_VARIABLE


def test_wait_to_be_killed(app: Flask) -> None:
    settings = app.config["SETTINGS"]
    with live_server.web_server(settings), live_server.worker(settings):
        Path(os.environ["RUN_FILE"]).write_text(os.environ[RUN_VARIABLE])
        signal.pause()
