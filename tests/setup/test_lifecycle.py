"""The program in a copy of the source tree, with the README's commands."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable

import psutil
import psycopg
import pytest
from psycopg import sql

from local import postgresql as embedded_postgresql
from tests.support.live_server import wait_until
from tests.support.local_copy import LocalCopy
from webapp.core.settings import socket_folder

pytestmark = pytest.mark.lifecycle


def test_setup_is_repeatable_and_down_stops_everything(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one copy")

    setup = instance.make("setup")
    assert setup.returncode == 0, setup.stderr
    assert f"http://127.0.0.1:{instance.port}/redeem" in setup.stdout
    link = next(line.strip() for line in setup.stdout.splitlines() if "/invitations/" in line)
    assert "password" in instance.get(link.partition(str(instance.port))[2]).lower()
    assert "No emails yet" in instance.get("/", instance.port + 2)

    repeated = instance.make("setup")
    assert repeated.returncode == 0
    assert repeated.stdout.startswith("Onecode is already running; nothing was changed except the link below.")
    assert "The code has changed" not in repeated.stdout

    with (instance.folder / "webapp" / "__init__.py").open("a") as file:
        file.write("# A later version.\n")
    after_update = instance.make("setup")
    assert after_update.returncode == 0
    assert after_update.stdout.endswith(
        "The code has changed since Onecode was started: run `make down`, then `make setup`.\n"
    )

    on_other_port = instance.make("setup", PORT=str(instance.port + 10))
    assert on_other_port.returncode != 0
    assert on_other_port.stderr.startswith(
        f"onecode: Onecode is already running on port {instance.port}; to move it to port "
    )
    assert instance.get("/healthz")

    assert instance.make("down").returncode == 0
    assert instance.processes() == []
    assert "not running" in instance.make("down").stdout
    assert (instance.folder / "instance" / "secret_key").exists()

    restarted = instance.make("setup")
    assert "/invitations/" in restarted.stdout
    assert "The code has changed" not in restarted.stdout


def test_what_runs_in_the_foreground_is_stopped_from_another_terminal(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    with instance.running("run") as run:
        wait_until(lambda: _is_ready(instance), seconds=180)
        wait_until(lambda: _count_idle_transactions(instance) == 0)
        repeated = instance.make("setup")
        stopped = instance.make("down")
        output, errors = run.communicate(timeout=180)

    assert repeated.stdout.startswith("Onecode is already running; nothing was changed except the link below.")
    assert stopped.stdout == "Onecode is stopped; its data is kept.\n"
    assert (run.returncode, "Traceback" in output + errors) == (0, False), output + errors
    assert "Lost the link? `make setup`, in another terminal, prints a new one." in output
    assert "Stop with Ctrl-C; all commands" in output
    assert "make down" not in output
    assert instance.processes() == []


def test_two_copies_run_side_by_side(make_copy: Callable[[str], LocalCopy]) -> None:
    instance, other = make_copy("one"), make_copy("other")
    assert instance.make("setup").returncode == 0
    assert other.make("setup").returncode == 0
    assert instance.get("/healthz") == other.get("/healthz")

    instance.make("down")

    assert other.get("/healthz")
    assert instance.processes() == []


def test_a_killed_worker_is_restarted(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    instance.make("setup")
    (worker,) = _workers(instance)

    os.kill(worker.pid, signal.SIGKILL)

    wait_until(lambda: {found.pid for found in _workers(instance)} - {worker.pid}, what="another worker runs")


def test_down_stops_processes_left_by_a_killed_supervisor(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    instance.make("setup")
    supervisor = next(p for p in instance.processes() if "supervisor.supervisord" in " ".join(p.cmdline()))
    os.kill(supervisor.pid, signal.SIGKILL)

    instance.make("down")

    assert instance.processes() == []


def test_a_port_in_use_prints_one_line_and_leaves_nothing_running(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", instance.port))
        listener.listen()

        result = instance.make("setup")

    assert result.returncode != 0
    assert result.stderr.splitlines()[0].startswith(
        f"onecode: port {instance.port} for the web server is used by another program; choose another: make setup PORT="
    )
    assert instance.processes() == []


def test_a_database_url_is_used_instead_of_the_embedded_database(make_copy: Callable[[str], LocalCopy]) -> None:
    instance = make_copy("one")
    server = os.environ["TEST_DATABASE_URL"]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("create database onecode_lifecycle")
    url = server.replace("/postgres", "/onecode_lifecycle", 1)
    try:
        result = instance.make("setup", DATABASE_URL=url)
        assert result.returncode == 0, result.stderr
        assert "ready" in instance.get("/readyz")
        assert not (instance.folder / "instance" / "postgresql").exists()
        instance.make("down", DATABASE_URL=url)
    finally:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier("onecode_lifecycle")))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("PORT", "eighty", "PORT must be a whole number"),
        ("DATABASE_URL", "mysql://here", "DATABASE_URL must start with postgresql://"),
        ("DATABASE_URL", "postgresql://127.0.0.1:1/nowhere", "DATABASE_URL"),
        ("PUBLIC_URL", "example.com", "PUBLIC_URL must be a URL"),
        ("MAIL_USE_TLS", "perhaps", "MAIL_USE_TLS must be true or false"),
    ],
)
def test_an_invalid_setting_prints_one_line(
    make_copy: Callable[[str], LocalCopy], setting: str, value: str, message: str
) -> None:
    result = make_copy("one").make("setup", **{setting: value})

    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1
    assert message in lines[0]


def _is_ready(instance: LocalCopy) -> bool:
    with contextlib.suppress(OSError):
        return "ready" in instance.get("/readyz")
    return False


def _count_idle_transactions(instance: LocalCopy) -> int:
    folder = instance.folder / "instance"
    url = embedded_postgresql.locate_server(folder, socket_folder(folder)).conninfo("onecode")
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where state like 'idle in transaction%'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def _workers(instance: LocalCopy) -> list[psutil.Process]:
    return [p for p in instance.processes() if "webapp.worker" in p.cmdline()]
