"""The whole program in a copy of the tree: set up, used, stopped, with the commands of the README."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable

import psutil
import psycopg
import pytest
from psycopg import sql

from tests.support.local_copy import LocalCopy

pytestmark = pytest.mark.lifecycle


def test_set_up_use_set_up_again_and_down(make_copy: Callable[[str], LocalCopy]) -> None:
    one = make_copy("one copy")

    first = one.make("setup")
    assert first.returncode == 0, first.stderr
    assert f"http://127.0.0.1:{one.port}/redeem" in first.stdout
    link = next(line.strip() for line in first.stdout.splitlines() if "/invitations/" in line)
    assert "password" in one.get(link.partition(str(one.port))[2]).lower()
    assert "No mail yet" in one.get("/", one.port + 2)

    again = one.make("setup")
    assert again.returncode == 0
    assert "nothing was changed" in again.stdout

    elsewhere = one.make("setup", PORT=str(one.port + 10))
    assert elsewhere.returncode != 0
    assert elsewhere.stderr.startswith(f"onecode: Onecode runs on port {one.port} already; to have it on ")
    assert one.get("/healthz")

    assert one.make("down").returncode == 0
    assert one.processes() == []
    assert "not running" in one.make("down").stdout
    assert (one.folder / "instance" / "secret_key").exists()

    assert "/invitations/" in one.make("setup").stdout


def test_two_copies_run_side_by_side(make_copy: Callable[[str], LocalCopy]) -> None:
    one, two = make_copy("one"), make_copy("the other")
    assert one.make("setup").returncode == 0
    assert two.make("setup").returncode == 0
    assert one.get("/healthz") == two.get("/healthz")

    one.make("down")

    assert two.get("/healthz")
    assert one.processes() == []


def test_a_killed_worker_is_started_again(make_copy: Callable[[str], LocalCopy]) -> None:
    one = make_copy("one")
    one.make("setup")
    worker = _worker(one)

    os.kill(worker.pid, signal.SIGKILL)

    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(StopIteration):
            if _worker(one).pid != worker.pid:
                return
        time.sleep(0.1)
    pytest.fail("no worker came back")


def test_down_finds_what_a_killed_supervisor_left_behind(make_copy: Callable[[str], LocalCopy]) -> None:
    one = make_copy("one")
    one.make("setup")
    supervisor = next(p for p in one.processes() if "supervisor.supervisord" in " ".join(p.cmdline()))
    os.kill(supervisor.pid, signal.SIGKILL)

    one.make("down")

    assert one.processes() == []


def test_a_taken_port_is_one_line_and_leaves_nothing_running(make_copy: Callable[[str], LocalCopy]) -> None:
    one = make_copy("one")
    with socket.socket() as other:
        other.bind(("127.0.0.1", one.port))
        other.listen()

        done = one.make("setup")

    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith(
        f"onecode: port {one.port} for the web server is taken by another program; choose another: make setup PORT="
    )
    assert one.processes() == []


def test_a_database_url_is_used_and_none_embedded(make_copy: Callable[[str], LocalCopy]) -> None:
    one = make_copy("one")
    server = os.environ["TEST_DATABASE_URL"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("create database onecode_lifecycle")
    url = server.replace("/postgres", "/onecode_lifecycle", 1)
    try:
        done = one.make("setup", DATABASE_URL=url)
        assert done.returncode == 0, done.stderr
        assert "ready" in one.get("/readyz")
        assert not (one.folder / "instance" / "postgresql").exists()
        one.make("down", DATABASE_URL=url)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier("onecode_lifecycle")))


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("PORT", "eighty", "PORT must be a whole number"),
        ("DATABASE_URL", "mysql://here", "DATABASE_URL must start with postgresql://"),
        ("DATABASE_URL", "postgresql://127.0.0.1:1/nowhere", "DATABASE_URL"),
        ("PUBLIC_URL", "example.com", "PUBLIC_URL must be a URL"),
        ("MAIL_USE_TLS", "perhaps", "MAIL_USE_TLS must be true or false"),
    ],
)
def test_a_wrong_setting_is_one_line(
    make_copy: Callable[[str], LocalCopy], setting: str, value: str, said: str
) -> None:
    done = make_copy("one").make("setup", **{setting: value})

    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert said in lines[0]


def _worker(one: LocalCopy) -> psutil.Process:
    return next(p for p in one.processes() if "webapp.worker" in p.cmdline())
