"""`make setup` killed, interrupted, on a full disk, in folders of other users.

Each error is one line, nothing is damaged, and a later setup works.
"""

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

from local.supervisor import INSTANCE_VARIABLE
from local.system_user import SYSTEM_USER
from tests.support.local_copy import LocalCopy
from tests.support.small_disk import fill_disk, requires_root, small_disk
from webapp.core.settings import socket_folder

pytestmark = pytest.mark.lifecycle


def error_lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines on standard error except make's own."""
    return [line for line in result.stderr.splitlines() if not line.startswith("make: ***")]


def test_a_setup_killed_at_any_point_can_be_repeated(make_copy: Callable[[str], LocalCopy]) -> None:
    # A folder name with special characters for shells, configuration files and URLs.
    instance = make_copy("Käse & 'Brot' " + "long " * 20)
    instance_path = instance.folder / "instance"
    rng = random.Random(20)
    milestones: list[tuple[Callable[[], bool], float]] = [
        (lambda: (instance_path / "lock").exists(), 0.0),
        (lambda: any(instance_path.glob("postgresql/data.new/*")), 0.1),
        (lambda: (instance_path / "postgresql" / "data" / "postmaster.pid").exists(), 0.5),
        (lambda: (instance_path / "supervisord.conf").exists(), 1.0),
    ]
    for reached, max_delay in milestones:
        process = instance.start("setup")
        while not reached() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, max_delay))
        # After the process was waited for, its id may belong to another group.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    for file in ("port", "mark", "secret_key"):
        (instance_path / file).write_text("")

    assert instance.make("down").returncode == 0
    assert instance.processes() == []

    result = instance.make("setup")
    assert (result.returncode, error_lines(result)) == (0, [])
    assert "ready" in instance.get("/readyz")
    assert len(result.stdout.splitlines()) <= 24
    assert max(map(len, result.stdout.splitlines())) <= 80

    instance.make("down")
    with _reused_process_id(instance_path) as other:
        assert "not running" in instance.make("down").stdout
        assert other.poll() is None, "another program was stopped"
    with _reused_process_id(instance_path):
        result = instance.make("setup")
        assert (result.returncode, error_lines(result)) == (0, [])
        assert "ready" in instance.get("/readyz")

    assert instance.make("down").returncode == 0
    assert instance.processes() == []
    assert not socket_folder(instance_path).exists()


@contextlib.contextmanager
def _reused_process_id(instance: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Write the server's pid files with the id of an unrelated program."""
    user = pwd.getpwnam(SYSTEM_USER if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    data, sockets = instance / "postgresql" / "data", socket_folder(instance)
    sockets.mkdir(mode=0o700, exist_ok=True)
    # In its own process group, so that a signal to the group does not reach the tests.
    with subprocess.Popen(["sleep", "600"], user=user.pw_uid, start_new_session=True) as other:
        try:
            for file in (data / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
                file.write_text(f"{other.pid}\n{data}\n{int(time.time())}\n5432\n{sockets}\n\n0 0\nready\n")
                os.chown(file, user.pw_uid, user.pw_gid)
            os.chown(sockets, user.pw_uid, user.pw_gid)
            yield other
        finally:
            # Otherwise a failed test would wait for it.
            other.kill()


def test_ctrl_c_stops_what_was_started(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    process = instance.start("setup")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Starting web"):
            break
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)

    assert process.returncode != 0
    assert [line for line in err.splitlines() if not line.startswith("make: ***")] == [
        "onecode: interrupted; everything that this command started was stopped; run it again"
    ]
    assert instance.processes() == []


@requires_root
def test_a_full_disk_prints_one_line_and_leaves_nothing(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    disk = instance.folder.parent / "small"
    with small_disk(disk, "size=24m,mode=0755"):
        result = instance.make("setup", INSTANCE_PATH=str(disk / "instance"))
        assert result.returncode != 0
        assert len(error_lines(result)) == 1
        assert error_lines(result)[0].startswith("onecode: the disk is full; free some space in ")
        assert [p for p in psutil.process_iter() if str(disk) in " ".join(_command_line(p))] == []
        assert not list((disk / "instance").glob("postgresql/data*"))


@requires_root
@pytest.mark.parametrize("forgets_supervisor", [False, True])
def test_a_running_copy_keeps_running_on_a_full_disk(
    make_copy: Callable[[str], LocalCopy], forgets_supervisor: bool
) -> None:
    instance = make_copy("one")
    disk = instance.folder.parent / "small"
    folder = {"INSTANCE_PATH": str(disk / "instance")}
    with small_disk(disk, "size=250m,mode=0755"):
        try:
            assert instance.make("setup", **folder).returncode == 0
            before = _supervised_processes(disk)
            if forgets_supervisor:
                # As after a start on a disk that was full already.
                (disk / "instance" / "supervisord.pid").write_text("")
            fill_disk(disk / "filler")

            result = instance.make("setup", **folder)

            assert result.returncode != 0
            assert len(error_lines(result)) == 1
            assert error_lines(result)[0].startswith(f"onecode: the disk is full; free some space in {disk}")
            assert before <= _instance_processes(disk)
            assert "ok" in instance.get("/healthz")
        finally:
            (disk / "filler").unlink(missing_ok=True)
            instance.make("down", **folder)


def _supervised_processes(disk: Path) -> set[int]:
    """Return the ids of the supervisor of the instance on a disk and of the processes that it has started."""
    supervisor = psutil.Process(int((disk / "instance" / "supervisord.pid").read_text()))
    return {supervisor.pid, *(child.pid for child in supervisor.children())}


def _instance_processes(disk: Path) -> set[int]:
    """Return the ids of the processes of the instance on a disk, with those that are still starting or ending."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(INSTANCE_VARIABLE) == str(disk / "instance"):
                found.add(process.pid)
    return found


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_unusable_instance_path_prints_one_line(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    for path in ("/dev/null/instance", "~no-such-user/instance"):
        result = instance.make("setup", INSTANCE_PATH=path)
        assert result.returncode != 0
        assert len(error_lines(result)) == 1
        assert "INSTANCE_PATH" in error_lines(result)[0]


def test_an_env_file_that_is_not_utf_8_prints_one_line(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    (instance.folder / ".env").write_bytes("SHOP_NAME=Käse".encode("latin-1"))

    result = instance.make("setup")

    assert error_lines(result) == [
        f"onecode: {instance.folder / '.env'} cannot be read (it is not UTF-8); fix or remove it"
    ]
    (instance.folder / ".env").unlink()


@requires_root
def test_an_instance_of_another_user_prints_one_line(
    make_copy: Callable[[str], LocalCopy], as_nobody: Callable[..., list[str]]
) -> None:
    instance = make_copy("one")
    (instance.folder / "instance").mkdir()
    (instance.folder / "instance" / "secret_key").write_text("x")
    (instance.folder / "instance" / "secret_key").chmod(0o600)
    python = instance.folder / ".venv" / "bin" / "python"
    try:
        errors = as_nobody(str(python), "-m", "flask", "--app", "wsgi", "up", cwd=instance.folder)
    except PermissionError:
        pytest.skip("this Python lies in a folder that others may not enter")

    path = instance.folder / "instance"
    assert errors == [f"onecode: {path} belongs to root; run this as root, or: sudo chown -R nobody '{path}'"]
