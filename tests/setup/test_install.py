"""Installing with the real venv and pip from a local folder with one small wheel."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.live_server import restore_sigint
from tests.support.small_disk import requires_root, small_disk
from webapp.core.settings import ROOT

NO_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}


class SourceTree:
    """A source tree with the installer, whose only requirement is a local wheel."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder, self.wheels = folder, wheels
        (folder / "scripts").mkdir(parents=True)
        shutil.copy2(ROOT / "Makefile", folder)
        shutil.copy2(ROOT / "scripts" / "install", folder / "scripts")
        for name in ("requirements.txt", "requirements-dev.txt"):
            (folder / name).write_text(f"probe==1.0 --hash=sha256:{_wheel(wheels)}\n")

    def install(self, target: str = "install", python: str = sys.executable, **more: str) -> tuple[int, str, list[str]]:
        """Run make; return exit code, output, and the error lines except make's own."""
        out, err = (process := self.start(target, python, **more)).communicate(timeout=300)
        return process.returncode, out, [line for line in err.splitlines() if not line.startswith("make: ***")]

    def start(self, target: str = "install", python: str = sys.executable, **more: str) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "MAKE")) and k != "VIRTUAL_ENV"}
        return subprocess.Popen(
            ["make", target, f"PYTHON={python}"],
            cwd=self.folder,
            env=env | NO_INDEX | {"PIP_FIND_LINKS": str(self.wheels)} | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=restore_sigint,
        )

    def works(self) -> bool:
        python = self.folder / ".venv" / "bin" / "python"
        return subprocess.run([python, "-c", "import probe"], check=False).returncode == 0


def _wheel(folder: Path) -> str:
    """Make the wheel and return its hash."""
    folder.mkdir(exist_ok=True)
    file = folder / "probe-1.0-py3-none-any.whl"
    files = {
        "probe.py": "",
        "probe-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n",
        "probe-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "probe-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(file, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    return SourceTree(tmp_path / "a tree with ümlauts", tmp_path / "wheels")


def test_installing_again_does_nothing_for_any_file_times(tree: SourceTree) -> None:
    code, out, errors = tree.install("install-dev")
    assert (code, errors) == (0, [])
    assert out.startswith("Installing into .venv")
    assert tree.works()

    for days in (-400, 400):
        for file in (tree.folder / "Makefile", tree.folder / "requirements.txt", tree.folder / "scripts" / "install"):
            mtime = time.time() + days * 86_400
            os.utime(file, (mtime, mtime))
        assert tree.install() == (0, "", [])

    # Changed requirements are noticed; an unreachable index leaves the installation as it was.
    (tree.folder / "requirements.txt").write_text("missing==1.0 --hash=sha256:00\n")
    code, out, errors = tree.install(PIP_NO_INDEX="0", PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="1")
    assert code != 0
    assert errors == [
        "onecode: the package index can't be reached; check the network (and HTTPS_PROXY), "
        "and run the same command again"
    ]
    assert tree.works()


def test_the_installation_is_readable_by_others_under_any_umask(tree: SourceTree) -> None:
    def unreadable() -> set[Path]:
        installed = [path for path in (tree.folder / ".venv").rglob("*") if not path.is_symlink()]
        return {path for path in [tree.folder / ".venv", *installed] if path.stat().st_mode & 0o044 != 0o044}

    before = os.umask(0o077)
    try:
        assert tree.install()[0] == 0
        assert unreadable() == set()
        # Permissions as an earlier version left them.
        for path in (tree.folder / ".venv", tree.folder / ".venv" / "bin"):
            path.chmod(0o700)
        assert tree.install()[0] == 0
    finally:
        os.umask(before)
    assert unreadable() == set()


def test_a_killed_installation_is_repeated_from_scratch(tree: SourceTree) -> None:
    for milestone in (tree.folder / ".venv" / "bin" / "python", tree.folder / ".venv" / "installing"):
        process = tree.start()
        while not milestone.exists():
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        (tree.folder / ".venv" / "left behind").touch()

    code, out, errors = tree.install()

    assert (code, errors) == (0, [])
    assert out.startswith("Installing into .venv")
    assert tree.works()
    assert not (tree.folder / ".venv" / "left behind").exists()
    assert not (tree.folder / ".venv" / "installing").exists()


def test_a_long_installation_says_that_it_continues(tree: SourceTree) -> None:
    script = tree.folder / "scripts" / "install"
    source = script.read_text()
    assert "\nREPORT_SECONDS = 60\n" in source
    script.write_text(source.replace("\nREPORT_SECONDS = 60\n", "\nREPORT_SECONDS = 0.05\n"))
    code, out, errors = tree.install()

    first, *others = out.splitlines()
    assert (code, errors) == (0, [])
    assert first.startswith("Installing into .venv")
    assert others
    assert all(
        re.fullmatch(r"Still installing after \d+ s; a slow network .* several minutes …", line) for line in others
    )
    assert tree.works()


def test_the_second_of_two_concurrent_installations_waits(tree: SourceTree) -> None:
    processes = [tree.start(), tree.start()]
    outputs = [process.communicate(timeout=120) for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    assert [err for _, err in outputs] == ["", ""]
    assert sorted(re.sub(r"Still installing .*\n", "", out) for out, _ in outputs) == [
        "Installing into .venv (about half a minute the first time) …\n",
        "Waiting for another installation into .venv …\n",
    ]
    assert tree.works()


def test_ctrl_c_prints_one_line(tree: SourceTree) -> None:
    process = tree.start()
    while not (tree.folder / ".venv").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode != 0
    assert [line for line in err.splitlines() if not line.startswith("make: ***")] == [
        "onecode: interrupted; run the same command again to continue"
    ]


def _python(tree: SourceTree, body: str) -> str:
    """Write a wrapper script as another python3; `$REAL` is the real interpreter."""
    file = tree.folder / "python3"
    file.write_text(f"#!/bin/sh\nREAL={shlex.quote(sys.executable)}\n{body}\n")
    file.chmod(0o755)
    return str(file)


# Statements that make the installer believe it runs on another Python.
OLD_PYTHON = "sys.version_info = (3, 9, 2, 'final', 0); sys.version = '3.9.2 (old)'"
NO_SQLITE = "sys.modules['_sqlite3'] = None"
RUN_WITH = (
    "import sys; sys.executable = sys.argv[1]; sys.argv = sys.argv[2:]; {};"
    "exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'))"
)


@pytest.mark.parametrize(
    ("python", "message"),
    [
        (
            f'exec "$REAL" -c "{RUN_WITH.format(OLD_PYTHON)}" "$0" "$@"',
            "onecode: Python 3.11 or newer is needed, this is 3.9.2; ",
        ),
        (
            # The error of Debian's Python without the package python3-venv.
            '[ "$2" = venv ] && echo "ensurepip is not available." && exit 1; '
            f'exec "$REAL" -c "{RUN_WITH.format(True)}" "$0" "$@"',
            "onecode: this Python has no venv module; on Debian or Ubuntu: apt install python3-venv",
        ),
        (
            f'exec "$REAL" -c "{RUN_WITH.format(NO_SQLITE)}" "$0" "$@"',
            "onecode: this Python was built without sqlite3, which Flask and the mail sink need; use another one: ",
        ),
    ],
    ids=["too old", "without venv", "without sqlite3"],
)
def test_an_unsuitable_python_prints_one_line(tree: SourceTree, python: str, message: str) -> None:
    code, _, errors = tree.install(python=_python(tree, python))

    assert code != 0
    assert len(errors) == 1
    assert errors[0].startswith(message)
    assert not (tree.folder / ".venv").exists()


def test_a_missing_python_prints_one_line(tree: SourceTree) -> None:
    code, _, errors = tree.install(python="missing-python")

    assert code != 0
    assert len(errors) == 1
    assert errors[0].startswith("onecode: missing-python was not found; install Python 3.11 or newer")


@requires_root
def test_a_full_disk_prints_one_line_and_can_be_retried(tree: SourceTree, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m"):
        small_tree = SourceTree(tmp_path / "disk" / "tree", tree.wheels)
        code, _, errors = small_tree.install()
        assert code != 0
        assert len(errors) == 1
        assert errors[0].startswith("onecode: the disk is full; free about 300 MB in ")
        assert not (small_tree.folder / ".venv").exists()

        subprocess.run(["mount", "-o", "remount,size=200m", tmp_path / "disk"], check=True)
        assert small_tree.install()[0] == 0


@requires_root
def test_a_full_disk_keeps_what_a_running_copy_uses(tree: SourceTree, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m"):
        small_tree = SourceTree(tmp_path / "disk" / "tree", tree.wheels)
        venv = small_tree.folder / ".venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        (next(venv.glob("lib/*/site-packages")) / "probe.py").touch()
        # As after an update that failed half-way; the next one creates .venv again.
        (venv / "installing").touch()

        code, _, errors = small_tree.install()

        assert (code != 0, len(errors)) == (True, 1)
        assert errors[0].startswith("onecode: the disk is full; free about 300 MB in ")
        assert small_tree.works()


@requires_root
def test_a_read_only_folder_prints_one_line(tree: SourceTree, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m"):
        read_only = SourceTree(tmp_path / "disk" / "tree", tree.wheels)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        code, _, errors = read_only.install()

    assert code != 0
    assert errors == [f"onecode: {read_only.folder} is read-only; copy the program to a writable folder"]


@requires_root
def test_a_folder_of_another_user_prints_one_line(tree: SourceTree, as_nobody: Callable[..., list[str]]) -> None:
    errors = as_nobody("/usr/bin/python3", "scripts/install", "requirements.txt", cwd=tree.folder)

    assert errors == [
        f"onecode: {tree.folder} belongs to root, and nobody has no write permission; "
        f"run this as root, or: sudo chown -R nobody '{tree.folder}'"
    ]
