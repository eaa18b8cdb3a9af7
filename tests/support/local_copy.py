"""Copies of the tree in temporary folders, and the README's commands in them."""

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
from tests.support.live_server import restore_sigint
from tests.support.ports import free_ports
from webapp.core.settings import ROOT, SETTING_NAMES

# All copies share one .venv, so that the make of another test may delay this one.
_WAITING = "Waiting for another installation into .venv …\n"


@dataclass
class LocalCopy:
    """A copy of the tree in a folder with a space in its name, and its port."""

    folder: Path
    port: int

    def make(self, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
        with self.running(*targets, **environment) as process:
            out, err = process.communicate(timeout=180)
        return subprocess.CompletedProcess(process.args, process.returncode, out.replace(_WAITING, ""), err)

    def start(self, *targets: str, **environment: str) -> subprocess.Popen[str]:
        """Start make without waiting; the process leads a new process group."""
        env = {k: v for k, v in os.environ.items() if k not in SETTING_NAMES and not k.startswith("MAKE")}
        return subprocess.Popen(
            ["make", "--no-print-directory", *targets],
            cwd=self.folder,
            env=env | {"PORT": str(self.port)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=restore_sigint,
        )

    @contextlib.contextmanager
    def running(self, *targets: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Start make; kill it if it still runs at the end of the block.

        For example, a test has failed while it waited.
        """
        with self.start(*targets, **environment) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)

    def get(self, path: str, port: int | None = None) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port or self.port}{path}", timeout=10) as response:
            return str(response.read().decode())

    def processes(self) -> list[psutil.Process]:
        """Return every live process of this copy, including those of the embedded server."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                has_variable = process.environ().get(INSTANCE_VARIABLE) == str(self.folder / "instance")
                # The embedded server does not inherit the variable; its command line has a path in the folder.
                if has_variable or any(str(self.folder) in word for word in process.cmdline()[:3]):
                    found.append(process)
        return found


@pytest.fixture
def make_copy() -> Iterator[Callable[[str], LocalCopy]]:
    """Makes copies of the current tree; stops everything that they started."""
    with local_copies() as make:
        yield make


@contextlib.contextmanager
def local_copies() -> Iterator[Callable[[str], LocalCopy]]:
    """Make copies of the current tree, for fixtures with a wider scope."""
    made: list[LocalCopy] = []
    # Not pytest's temporary folder: when root runs the tests, the embedded server's user may not enter that.
    parent = Path(tempfile.mkdtemp(prefix="onecode-copies-"))
    parent.chmod(0o755)
    watchdog.add_folder(parent)

    def make(name: str) -> LocalCopy:
        folder = parent / name
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
    for copy in made:
        copy.make("demo-down", "down")
    shutil.rmtree(parent, ignore_errors=True)
