"""Installing with the real venv and pip, from a folder that holds one small wheel: no network, no long wait."""

from __future__ import annotations

import hashlib
import os
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


class Tree:
    """A tree with the parts that install, whose only requirement is a wheel beside it."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder, self.wheels = folder, wheels
        (folder / "scripts").mkdir(parents=True)
        shutil.copy2(ROOT / "Makefile", folder)
        shutil.copy2(ROOT / "scripts" / "install", folder / "scripts")
        for name in ("requirements.txt", "requirements-dev.txt"):
            (folder / name).write_text(f"probe==1.0 --hash=sha256:{_wheel(wheels)}\n")

    def install(self, target: str = "install", python: str = sys.executable, **more: str) -> tuple[int, str, list[str]]:
        """What came of it: the exit code, standard output, and the lines on standard error that are not make's own."""
        out, err = (process := self.start(target, python, **more)).communicate(timeout=120)
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
    inside = {
        "probe.py": "",
        "probe-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n",
        "probe-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "probe-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(file, "w") as wheel:
        for name, text in inside.items():
            wheel.writestr(zipfile.ZipInfo(name), text)
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "a tree with ümlauts", tmp_path / "wheels")


def test_installing_again_does_nothing_whatever_the_clock_says(tree: Tree) -> None:
    code, out, errors = tree.install("install-dev")
    assert (code, errors) == (0, [])
    assert out.startswith("Installing into .venv")
    assert tree.works()

    for days in (-400, 400):
        for file in (tree.folder / "Makefile", tree.folder / "requirements.txt", tree.folder / "scripts" / "install"):
            then = time.time() + days * 86_400
            os.utime(file, (then, then))
        assert tree.install() == (0, "", [])

    # What is needed has changed: that is seen, and an index that is away leaves what was there as it was.
    (tree.folder / "requirements.txt").write_text("missing==1.0 --hash=sha256:00\n")
    code, out, errors = tree.install(PIP_NO_INDEX="0", PIP_INDEX_URL="http://127.0.0.1:9/", PIP_RETRIES="1")
    assert code != 0
    assert errors == [
        "onecode: the package index can't be reached; check the network (and HTTPS_PROXY), "
        "and run the same command again"
    ]
    assert tree.works()


def test_whatever_the_umask_another_user_can_read_what_was_installed(tree: Tree) -> None:
    def closed() -> set[Path]:
        everything = [path for path in (tree.folder / ".venv").rglob("*") if not path.is_symlink()]
        return {path for path in [tree.folder / ".venv", *everything] if path.stat().st_mode & 0o044 != 0o044}

    before = os.umask(0o077)
    try:
        assert tree.install()[0] == 0
        assert closed() == set()
        # As an earlier version has left it.
        for path in (tree.folder / ".venv", tree.folder / ".venv" / "bin"):
            path.chmod(0o700)
        assert tree.install()[0] == 0
    finally:
        os.umask(before)
    assert closed() == set()


def test_an_installation_that_was_killed_is_done_anew(tree: Tree) -> None:
    for mark in (tree.folder / ".venv" / "bin" / "python", tree.folder / ".venv" / "installing"):
        process = tree.start()
        while not mark.exists():
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


def test_of_two_installations_at_once_one_waits_and_has_nothing_to_do(tree: Tree) -> None:
    both = [tree.start(), tree.start()]
    said = [process.communicate(timeout=120) for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert [err for _, err in said] == ["", ""]
    assert sorted(out for out, _ in said) == [
        "Installing into .venv (about half a minute the first time) …\n",
        "Waiting for another installation into .venv …\n",
    ]
    assert tree.works()


def test_ctrl_c_is_one_line(tree: Tree) -> None:
    process = tree.start()
    while not (tree.folder / ".venv").exists():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode != 0
    assert [line for line in err.splitlines() if not line.startswith("make: ***")] == [
        "onecode: interrupted; run the same command again and it goes on"
    ]


def _python(tree: Tree, body: str) -> str:
    """A python3 of another kind, put before the real one; `$REAL` stands for that."""
    file = tree.folder / "python3"
    file.write_text(f"#!/bin/sh\nREAL={shlex.quote(sys.executable)}\n{body}\n")
    file.chmod(0o755)
    return str(file)


# The script itself, told that it runs on another Python.
OLD = "sys.version_info = (3, 9, 2, 'final', 0); sys.version = '3.9.2 (old)'"
NO_SQLITE = "sys.modules['_sqlite3'] = None"
TOLD = (
    "import sys; sys.executable = sys.argv[1]; sys.argv = sys.argv[2:]; {};"
    "exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'))"
)


@pytest.mark.parametrize(
    ("python", "said"),
    [
        (f'exec "$REAL" -c "{TOLD.format(OLD)}" "$0" "$@"', "onecode: Python 3.11 or newer is needed, this is 3.9.2; "),
        (
            # What Debian's Python says without the package.
            '[ "$2" = venv ] && echo "ensurepip is not available." && exit 1; '
            f'exec "$REAL" -c "{TOLD.format(True)}" "$0" "$@"',
            "onecode: this Python has no venv module; on Debian or Ubuntu: apt install python3-venv",
        ),
        (
            f'exec "$REAL" -c "{TOLD.format(NO_SQLITE)}" "$0" "$@"',
            "onecode: this Python was built without sqlite3, which Flask and the mail sink need; name another: ",
        ),
    ],
    ids=["too old", "without venv", "without sqlite3"],
)
def test_a_python_that_will_not_do_is_one_line(tree: Tree, python: str, said: str) -> None:
    code, _, errors = tree.install(python=_python(tree, python))

    assert code != 0
    assert len(errors) == 1
    assert errors[0].startswith(said)
    assert not (tree.folder / ".venv").exists()


def test_no_python_at_all_is_one_line(tree: Tree) -> None:
    code, _, errors = tree.install(python="python-of-nobody")

    assert code != 0
    assert len(errors) == 1
    assert errors[0].startswith("onecode: there is no python-of-nobody here; install Python 3.11 or newer")


@requires_root
def test_a_full_disk_is_one_line_and_with_room_it_goes_on(tree: Tree, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m"):
        small = Tree(tmp_path / "disk" / "tree", tree.wheels)
        code, _, errors = small.install()
        assert code != 0
        assert len(errors) == 1
        assert errors[0].startswith("onecode: the disk is full; make room for about 300 MB in ")
        assert not (small.folder / ".venv").exists()

        subprocess.run(["mount", "-o", "remount,size=200m", tmp_path / "disk"], check=True)
        assert small.install()[0] == 0


@requires_root
def test_a_folder_that_can_only_be_read_is_one_line(tree: Tree, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m"):
        read_only = Tree(tmp_path / "disk" / "tree", tree.wheels)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
        code, _, errors = read_only.install()

    assert code != 0
    assert errors == [f"onecode: {read_only.folder} can only be read; copy the program to a place where you may write"]


@requires_root
def test_a_folder_of_somebody_else_is_one_line(tree: Tree, as_nobody: Callable[..., list[str]]) -> None:
    errors = as_nobody("/usr/bin/python3", "scripts/install", "requirements.txt", cwd=tree.folder)

    assert errors == [
        f"onecode: {tree.folder} belongs to root, and nobody may not write there; "
        f"run this as root, or: sudo chown -R nobody '{tree.folder}'"
    ]
