"""A virtual environment with django-oscar, created on the first run."""

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

from benchmarks.concurrent_clients import Concurrency
from benchmarks.server import DatabaseServer
from webapp.core.settings import ROOT

REQUIREMENTS = Path(__file__).parent / "oscar" / "requirements.txt"
FOLDER = ROOT / ".venv-oscar"
DATABASE = "oscar"
# Parts of pip's messages about an unreachable index. Without retries it only reports that it found no version.
UNREACHABLE = ("connection", "name resolution", "timed out", "unreachable", "from versions: none")


class NotInstalled(Exception):
    """The environment can't be created; the message is one line and says what to do."""


def python(folder: Path = FOLDER, requirements: Path = REQUIREMENTS) -> Path:
    """Return the environment's Python; create the environment if necessary.

    :raises NotInstalled: when that fails; an incomplete environment is never used.
    """
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    stamp, executable = folder / "installed", folder / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted and executable.exists():
        return executable
    print("Installing django-oscar into a separate environment …", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(executable), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes",
          "-r", str(requirements)])  # fmt: skip
    stamp.write_text(wanted)
    return executable


def versions(requirements: Path = REQUIREMENTS) -> str:
    """The versions of oscar and Django."""
    pins = dict(re.findall(r"^([a-z-]+)==([^ ]+)", requirements.read_text(), re.MULTILINE))
    return f"django-oscar {pins['django-oscar']} on Django {pins['django']}"


def _run(command: list[str]) -> None:
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise NotInstalled(explain_pip_error(process.stderr or process.stdout))


def explain_pip_error(output: str) -> str:
    """Summarise pip's error output in one line."""
    if any(text in output.lower() for text in UNREACHABLE):
        return (
            "the package index can't be reached, and django-oscar comes from there; check the network and run it again"
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR")]
    return f"installing django-oscar failed: {(errors or output.strip().splitlines() or ['?'])[0]}"


@dataclass(frozen=True)
class Oscar:
    """An oscar shop in a separate database of this server."""

    database_server: DatabaseServer
    python: Path

    def set_up(self, users: int) -> None:
        """Run oscar's migrations and create products and customers."""
        self.database_server.create(DATABASE)
        process = subprocess.run(
            self._command("set-up", str(users)), capture_output=True, text=True, check=False, **self._process_options
        )
        if process.returncode:
            raise RuntimeError(f"oscar could not be set up: {process.stderr[-2000:]}")

    def run(
        self,
        implementation: str,
        items: int,
        concurrency: Concurrency,
        usage: str,
        cap: int | None,
        ready: Callable[[], None],
    ) -> dict[str, Any]:
        """Run an operation of `oscar/shop.py` with a new voucher.

        Returns the results and oscar's counts.

        `ready` is called when all clients are connected.

        :raises RuntimeError: when it fails.
        """
        parameters = {
            "implementation": implementation, "items": items, "processes": concurrency.processes,
            "threads": concurrency.threads, "seconds": concurrency.seconds, "usage": usage, "cap": cap,
        }  # fmt: skip
        with subprocess.Popen(
            self._command("run", json.dumps(parameters)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **self._process_options,
        ) as process:  # fmt: skip
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("a pipe is missing")
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("oscar did not get ready")
            ready()
            process.stdin.write("go\n")
            process.stdin.flush()
            output_line = process.stdout.readline()
        if process.returncode or not output_line:
            raise RuntimeError("oscar has failed")
        results: dict[str, Any] = json.loads(output_line)
        return results

    def _command(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "benchmarks.oscar.run", *arguments]

    @property
    def _process_options(self) -> dict[str, Any]:
        connection = {"NAME": DATABASE, "USER": "onecode", "HOST": str(self.database_server.embedded.socket_folder)}
        # Only basic variables of the environment are passed on.
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {"cwd": ROOT, "env": environment | {"OSCAR_DATABASE": json.dumps(connection)}}
