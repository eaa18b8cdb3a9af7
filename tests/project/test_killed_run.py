"""A killed test run leaves no processes and no folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.live_server import wait_until
from tests.support.watchdog import RUN_VARIABLE
from webapp.core.settings import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_process_and_no_folder(tmp_path: Path, number: signal.Signals) -> None:
    run_file = tmp_path / "run"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "TEST_DATABASE_URL"))}
    del env[RUN_VARIABLE]
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "no:cacheprovider", "tests/support/endless_run.py"],
        cwd=ROOT,
        env=env | {"RUN_FILE": str(run_file), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(run_file.exists, 180)
        wait_until(run_file.read_text)
        started = psutil.Process(run.pid).children(recursive=True)
        # Two PostgreSQL servers with their processes, the watchdog, the test process, web server and worker.
        assert {"postgres"} < {process.name() for process in started}
        assert len(started) > 8
    finally:
        run.send_signal(number)
        run.wait()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    assert not Path(run_file.read_text()).exists()
