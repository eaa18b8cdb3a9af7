"""Kill every process of a test run when the run has ended, even if it was killed.

The run starts this script with a pipe to its standard input. The pipe closes when the run's first process has ended for
any reason. Then the script kills every process that has the run's folder in its environment, descends from such a
process, or works in a folder of the run, and removes the folders.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

# Names the folder of the run in the environment of each of its processes.
RUN_VARIABLE = "ONECODE_TEST_RUN"


def start(run: Path) -> subprocess.Popen[bytes]:
    """Start to watch this process; `run` is the folder of its run."""
    os.environ[RUN_VARIABLE] = str(run)
    return subprocess.Popen(
        [sys.executable, __file__, str(run)],
        env={name: value for name, value in os.environ.items() if name != RUN_VARIABLE},
        cwd="/",
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def add_folder(folder: Path) -> None:
    """Add a folder to the run.

    At the end, processes that work in it are killed and it is removed.
    """
    # `make chaos` has no watchdog.
    if run := os.environ.get(RUN_VARIABLE):
        with (Path(run) / "folders").open("a") as file:
            file.write(f"{folder}\n")


@contextlib.contextmanager
def temporary_files_in_run() -> Iterator[None]:
    """Create temporary files and folders in the folder of the run, so that the watchdog removes what is left in them.

    For servers that create their own temporary folder. Applies to this process and to those it starts.
    """
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = tempfile.tempdir = os.environ[RUN_VARIABLE]
    try:
        yield
    finally:
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def processes(run: Path) -> set[psutil.Process]:
    """Return every process of a run."""
    folders = {str(run), *_folders(run)}
    found = {process for process in psutil.process_iter() if _belongs_to_run(process, run, folders)}
    for process in list(found):
        with contextlib.suppress(psutil.Error):
            found.update(process.children(recursive=True))
    return found - {psutil.Process()}


def _belongs_to_run(process: psutil.Process, run: Path, folders: set[str]) -> bool:
    with contextlib.suppress(psutil.Error):
        if process.environ().get(RUN_VARIABLE) == str(run):
            return True
    # PostgreSQL does not inherit the environment, but each of its processes works in the data folder.
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
    # Repeat until no process is left: a killed process may just have started another.
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
