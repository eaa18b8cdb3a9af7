"""`make setup` killed, interrupted, on a full disk, in others' folders: one line, nothing damaged, then it works."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from local.postgresql import SYSTEM_USER
from tests.support.local_copy import LocalCopy
from tests.support.small_disk import requires_root, small_disk
from webapp.core.settings import socket_folder

pytestmark = pytest.mark.lifecycle


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on standard error that are not make's own."""
    return [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]


def test_a_set_up_that_is_killed_at_any_point_is_done_anew(make_copy: Callable[[str], LocalCopy]) -> None:
    # A name that no shell, no configuration and no address likes.
    one = make_copy("Käse & 'Brot' " + "long " * 20)
    instance = one.folder / "instance"
    chance = random.Random(20)
    marks: list[tuple[Callable[[], bool], float]] = [
        (lambda: (instance / "lock").exists(), 0.0),
        (lambda: any(instance.glob("postgresql/data.new/*")), 0.1),
        (lambda: (instance / "postgresql" / "data" / "postmaster.pid").exists(), 0.5),
        (lambda: (instance / "supervisord.conf").exists(), 1.0),
    ]
    for reached, longest in marks:
        process = one.start("setup")
        while not reached() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.uniform(0, longest))
        # Once it has been waited for, its number may be another group's.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    for file in ("port", "mark", "secret_key"):
        (instance / file).write_text("")

    assert one.make("down").returncode == 0
    assert one.processes() == []

    done = one.make("setup")
    assert (done.returncode, said(done)) == (0, [])
    assert "ready" in one.get("/readyz")
    assert len(done.stdout.splitlines()) <= 24
    assert max(map(len, done.stdout.splitlines())) <= 80

    one.make("down")
    with _number_given_away(instance) as other:
        assert "not running" in one.make("down").stdout
        assert other.poll() is None, "another program was stopped"
    with _number_given_away(instance):
        done = one.make("setup")
        assert (done.returncode, said(done)) == (0, [])
        assert "ready" in one.get("/readyz")

    assert one.make("down").returncode == 0
    assert one.processes() == []
    assert not socket_folder(instance).exists()


@contextlib.contextmanager
def _number_given_away(instance: Path) -> Iterator[subprocess.Popen[bytes]]:
    """As after a power cut: the files of a dead server carry the number of a program that has nothing to do with it."""
    user = pwd.getpwnam(SYSTEM_USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    data, sockets = instance / "postgresql" / "data", socket_folder(instance)
    sockets.mkdir(mode=0o700, exist_ok=True)
    # In a group of its own: a signal to its group is none to that of the tests.
    with subprocess.Popen(["sleep", "600"], user=user.pw_uid, start_new_session=True) as other:
        try:
            for file in (data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
                file.write_text(f"{other.pid}\n{data}\n{int(time.time())}\n5432\n{sockets}\n\n0 0\nready\n")
                os.chown(file, user.pw_uid, user.pw_gid)
            os.chown(sockets, user.pw_uid, user.pw_gid)
            yield other
        finally:
            # Or a failed test would wait for it.
            other.kill()


def test_ctrl_c_stops_what_was_started(make_copy: Callable[[str], LocalCopy]) -> None:
    one = make_copy("one")
    process = one.start("setup")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Starting web"):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)

    assert process.returncode != 0
    assert [line for line in err.splitlines() if not line.startswith("make: ***")] == [
        "onecode: interrupted; what was started is stopped, run the same command again"
    ]
    assert one.processes() == []


@requires_root
def test_a_full_disk_is_one_line_and_leaves_nothing(make_copy: Callable[[str], LocalCopy], tmp_path: Path) -> None:
    one = make_copy("one")
    place = one.folder.parent / "small"
    with small_disk(place, "size=24m,mode=0755"):
        done = one.make("setup", INSTANCE_PATH=str(place / "instance"))
        assert done.returncode != 0
        assert len(said(done)) == 1
        assert said(done)[0].startswith("onecode: the disk is full; free some space in ")
        assert [p for p in psutil.process_iter() if str(place) in " ".join(_words(p))] == []
        assert not list((place / "instance").glob("postgresql/data*"))


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_instance_that_can_not_be_made_is_one_line(make_copy: Callable[[str], LocalCopy]) -> None:
    one = make_copy("one")
    for path in ("/dev/null/instance", "~nobody-of-that-name/instance"):
        done = one.make("setup", INSTANCE_PATH=path)
        assert done.returncode != 0
        assert len(said(done)) == 1
        assert "INSTANCE_PATH" in said(done)[0]


def test_an_env_file_that_is_not_utf_8_is_one_line(make_copy: Callable[[str], LocalCopy]) -> None:
    one = make_copy("one")
    (one.folder / ".env").write_bytes("SHOP_NAME=Käse".encode("latin-1"))

    done = one.make("setup")

    assert said(done) == [f"onecode: {one.folder / '.env'} cannot be read (it is not UTF-8); fix or remove it"]
    (one.folder / ".env").unlink()


@requires_root
def test_an_instance_of_somebody_else_is_one_line(
    make_copy: Callable[[str], LocalCopy], as_nobody: Callable[..., list[str]]
) -> None:
    one = make_copy("one")
    (one.folder / "instance").mkdir()
    (one.folder / "instance" / "secret_key").write_text("x")
    (one.folder / "instance" / "secret_key").chmod(0o600)
    python = one.folder / ".venv" / "bin" / "python"
    try:
        errors = as_nobody(str(python), "-m", "flask", "--app", "wsgi", "up", cwd=one.folder)
    except PermissionError:
        pytest.skip("this Python lies in a folder that others may not enter")

    place = one.folder / "instance"
    assert errors == [f"onecode: {place} belongs to root; run this as root, or: sudo chown -R nobody '{place}'"]
