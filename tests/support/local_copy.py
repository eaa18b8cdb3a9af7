"""Copies of the tree in folders of their own, and the commands of the README in them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from local.supervisor import INSTANCE_VARIABLE
from tests.support import watchdog
from tests.support.live_server import can_be_interrupted
from tests.support.ports import free_ports
from webapp.core.settings import ROOT, SETTING_NAMES


@dataclass
class LocalCopy:
    """A copy of the tree in a folder with a space in its name, with a port of its own."""

    folder: Path
    port: int

    def make(self, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with self.start(*targets, **environment) as process:
            try:
                out, err = process.communicate(timeout=180)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *targets: str, **environment: str) -> subprocess.Popen[str]:
        """The same without waiting; the process is the leader of a group of its own."""
        env = {k: v for k, v in os.environ.items() if k not in SETTING_NAMES and not k.startswith("MAKE")}
        return subprocess.Popen(
            ["make", "--no-print-directory", *targets],
            cwd=self.folder,
            env=env | {"PORT": str(self.port)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=can_be_interrupted,
        )

    def get(self, path: str, port: int | None = None) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def processes(self) -> list[psutil.Process]:
        """Every live process of this copy, the embedded server's too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                marked = process.environ().get(INSTANCE_VARIABLE) == str(self.folder / "instance")
                # A path in the command line tells the embedded server, which inherits no mark.
                if marked or any(str(self.folder) in word for word in process.cmdline()[:3]):
                    found.append(process)
        return found


@pytest.fixture
def make_copy() -> Iterator[Callable[[str], LocalCopy]]:
    """Makes copies of the tree as it is now; whatever they started is stopped at the end."""
    with copies() as make:
        yield make


@contextlib.contextmanager
def copies() -> Iterator[Callable[[str], LocalCopy]]:
    """The same for fixtures with a wider scope."""
    made = []
    # Not pytest's own folder, which is closed to the user that runs the embedded server for root.
    place = Path(tempfile.mkdtemp(prefix="onecode-copies-"))
    place.chmod(0o755)
    watchdog.add_folder(place)

    def make(name: str) -> LocalCopy:
        folder = place / name
        tracked = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for file in tracked.stdout.decode().split("\0"):
            if file and (ROOT / file).is_file():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, folder / file)
        (folder / ".venv").symlink_to(Path(os.environ.get("VIRTUAL_ENV") or ROOT / ".venv"))
        # For the web server, the mail sink and its pages.
        made.append(LocalCopy(folder, free_ports(3)))
        return made[-1]

    yield make
    for one in made:
        one.make("demo-down", "down")
    shutil.rmtree(place, ignore_errors=True)
