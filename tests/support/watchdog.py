"""Ends every process of a test run when the run itself has ended, also when it was killed.

Started by the run with a pipe to its standard input. The pipe closes when the run's first process is gone, whatever
became of it. Then everything is killed that has the run's folder in its environment, descends from such a process, or
works in a folder of the run, and the folders are removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

# Names the folder of the run in the environment of each of its processes.
RUN_VARIABLE = "ONECODE_TEST_RUN"


def start(run: Path) -> subprocess.Popen[bytes]:
    """Watch this process from now on; `run` is the folder of its run."""
    os.environ[RUN_VARIABLE] = str(run)
    return subprocess.Popen(
        [sys.executable, __file__, str(run)],
        env={name: value for name, value in os.environ.items() if name != RUN_VARIABLE},
        cwd="/",
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def add_folder(folder: Path) -> None:
    """Have a folder belong to the run: what works in it is killed, and it is removed, when the run has ended."""
    # `make chaos` has no watchdog.
    if run := os.environ.get(RUN_VARIABLE):
        with (Path(run) / "folders").open("a") as file:
            file.write(f"{folder}\n")


def processes(run: Path) -> set[psutil.Process]:
    """Every process of a run."""
    folders = {str(run), *_folders(run)}
    found = {process for process in psutil.process_iter() if _is_of(process, run, folders)}
    for process in list(found):
        with contextlib.suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return found - {psutil.Process()}


def _is_of(process: psutil.Process, run: Path, folders: set[str]) -> bool:
    with contextlib.suppress(psutil.Error):
        if process.environ().get(RUN_VARIABLE) == str(run):
            return True
    # PostgreSQL gets nothing of our environment; each of its processes works in the folder of the data.
    with contextlib.suppress(psutil.Error):
        where = process.cwd()
        return any(where == folder or where.startswith(f"{folder}/") for folder in folders)
    return False


def _folders(run: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return (run / "folders").read_text().splitlines()
    return []


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run = Path(sys.argv[1])
    sys.stdin.read()
    # Anew until nothing is left: what is killed may just have started another.
    while found := processes(run):
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(list(found), timeout=5)
        time.sleep(0.05)
    for folder in [*_folders(run), str(run)]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
