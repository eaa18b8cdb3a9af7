"""django-oscar in a virtual environment of its own: made on the first run, from the package index, and kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers_crowd import Crowd
from benchmarks.server import Machine
from webapp.core.settings import ROOT

REQUIREMENTS = Path(__file__).parent / "oscar" / "requirements.txt"
FOLDER = ROOT / ".venv-oscar"
DATABASE = "oscar"
# How pip says that nobody answers. When it does not try again, it only says that it has found nothing at all.
UNREACHABLE = ("connection", "name resolution", "timed out", "unreachable", "from versions: none")


class NotInstalled(Exception):
    """The environment can't be made; the message is one line and says what to do."""


def python(folder: Path = FOLDER, requirements: Path = REQUIREMENTS) -> Path:
    """The Python of the environment, which is made if it is missing or older than its requirements.

    :raises NotInstalled: when that fails. Nothing half-made is ever used.
    """
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp, found = folder / "installed", folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted and found.exists():
        return found
    print("Installing django-oscar into an environment of its own …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
          "-r", str(requirements)])  # fmt: skip
    stamp.write_text(wanted)
    return found


def versions(requirements: Path = REQUIREMENTS) -> str:
    """Which oscar it is, on which Django."""
    pins = dict(re.findall(r"^([a-z-]+)==([^ ]+)", requirements.read_text(), re.MULTILINE))
    return f"django-oscar {pins['django-oscar']} on Django {pins['django']}"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalled(explained(done.stderr or done.stdout))


def explained(words: str) -> str:
    """One line for what pip has said."""
    if any(sign in words.lower() for sign in UNREACHABLE):
        return (
            "the package index can't be reached, and django-oscar comes from there; check the network and run it again"
        )
    errors = [line for line in words.splitlines() if line.startswith("ERROR")]
    return f"installing django-oscar failed: {(errors or words.strip().splitlines() or ['?'])[0]}"


@dataclass(frozen=True)
class Oscar:
    """A shop in a database of its own on this machine."""

    machine: Machine
    python: Path

    def set_up(self, users: int) -> None:
        """Its own migrations, products and so many customers."""
        self.machine.create(DATABASE)
        done = subprocess.run(
            self._command("set-up", str(users)), capture_output=True, text=True, check=False, **self._at
        )
        if done.returncode:
            raise RuntimeError(f"oscar could not be set up: {done.stderr[-2000:]}")

    def run(
        self, way: str, items: int, crowd: Crowd, usage: str, cap: int | None, ready: Callable[[], None]
    ) -> dict[str, Any]:
        """Take customers one of the ways of `oscar/shop.py`, with a voucher of its own; what was done, and what oscar
        has counted. `ready` is called when all clients wait.

        :raises RuntimeError: when it fails.
        """
        asked = {
            "way": way, "items": items, "processes": crowd.processes, "threads": crowd.threads,
            "seconds": crowd.seconds, "usage": usage, "cap": cap,
        }  # fmt: skip
        with subprocess.Popen(
            self._command("run", json.dumps(asked)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **self._at,
        ) as process:  # fmt: skip
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("a pipe is missing")
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("oscar did not get ready")
            ready()
            process.stdin.write("go\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if process.returncode or not answer:
            raise RuntimeError("oscar has failed")
        found: dict[str, Any] = json.loads(answer)
        return found

    def _command(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "benchmarks.oscar.run", *arguments]

    @property
    def _at(self) -> dict[str, Any]:
        where = {"NAME": DATABASE, "USER": "onecode", "HOST": str(self.machine.server.socket_folder)}
        # Nothing of the program's environment, but for where to find programs.
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {"cwd": ROOT, "env": kept | {"OSCAR_DATABASE": json.dumps(where)}}
