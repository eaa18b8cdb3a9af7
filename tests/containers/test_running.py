"""The commands of docker-compose.yml and of the image, run as a container runs them but without one: as a user to
whom nothing belongs, from a tree that this user can't write to, with the environment of the file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from local.supervisor import GRACE_SECONDS
from tests.support import container_files
from tests.support.databases import fresh_database
from tests.support.ports import free_port
from webapp.core.settings import ROOT

pytestmark = pytest.mark.slow

SERVICES = container_files.services()
# What the user of a container needs where the tests are run by root: to get to this Python, wherever it lies.
READ = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]


@dataclass(frozen=True)
class Machine:
    """An environment, and the user that everything runs as."""

    environment: dict[str, str]
    database: str

    def begin(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._as_nobody(), *command],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: list[str]) -> tuple[int, str]:
        process = self.begin(command)
        said = process.communicate(timeout=60)[0]
        return process.returncode, said

    def wait_until_well(self, check: list[str]) -> None:
        """Ask a health check until it is content, as an engine does."""
        deadline = time.monotonic() + 60
        while (found := self.run(check))[0] != 0:
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    def _as_nobody(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        # An embedded server of the tests lets in whom its socket belongs to, and no one else.
        folder = parse_qs(urlsplit(self.database).query).get("host", ["/nonexistent"])[0]
        owner = Path(folder).stat().st_uid if Path(folder).is_dir() else 10001
        return ["setpriv", f"--reuid={owner}", f"--regid={owner}", "--clear-groups", "--no-new-privs", *READ]


@pytest.fixture
def machine() -> Iterator[Machine]:
    """With an empty database of its own. Only where the database and the relay are is not what the file says."""
    with fresh_database() as url:
        port = str(free_port())
        environment = {
            **{name: value for name, value in os.environ.items() if name.startswith("PG")},
            **container_files.image_environment(),
            **SERVICES["web"]["environment"],
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DATABASE_URL": url,
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": "1",
            "WEB_HOST": "127.0.0.1",
            "PORT": port,
        }
        yield Machine(environment, url)


def test_they_migrate_serve_work_are_found_well_and_end_when_told(machine: Machine) -> None:
    assert machine.run(SERVICES["migrate"]["command"]) == (0, "The database is up to date.\n")

    with ExitStack() as stack:
        web = stack.enter_context(_started(machine, SERVICES["web"]["command"]))
        worker = stack.enter_context(_started(machine, SERVICES["worker"]["command"]))
        machine.wait_until_well(container_files.image_health_check())
        machine.wait_until_well(_check(SERVICES["worker"]["healthcheck"]["test"]))

        status, link = machine.run(["flask", "--app", "wsgi", "invite"])
        assert status == 0
        assert link.startswith(f"{SERVICES['web']['environment']['PUBLIC_URL']}/invitations/")

        for process in (web, worker):
            process.send_signal(signal.SIGTERM)
        for process in (web, worker):
            assert process.wait(GRACE_SECONDS) == 0

    assert machine.run(container_files.image_health_check())[0] == 1
    assert machine.run(_check(SERVICES["worker"]["healthcheck"]["test"]))[0] == 1
    assert not Path(machine.environment["INSTANCE_PATH"]).exists()


def test_the_image_and_the_file_start_the_same_server() -> None:
    assert container_files.command(dict(container_files.final_stage())["CMD"]) == SERVICES["web"]["command"]


@pytest.mark.parametrize("service", ["web", "worker", "migrate"])
def test_a_secret_that_is_not_given_and_cannot_be_kept_is_said_in_one_line(machine: Machine, service: str) -> None:
    machine.environment["SECRET_KEY"] = ""

    status, said = machine.run(SERVICES[service]["command"])

    assert status == 1
    assert said.startswith("onecode: "), said
    assert "INSTANCE_PATH" in said
    assert said.count("\n") == 1


def test_two_machines_that_migrate_at_once_do_it_once(machine: Machine) -> None:
    command = SERVICES["migrate"]["command"]
    with psycopg.connect(machine.database, autocommit=True) as other:
        # Held until both have come to it, so that neither is done before the other begins.
        other.execute("select pg_advisory_lock(hashtext('onecode.migrate'))")
        with ExitStack() as stack:
            both = [stack.enter_context(_started(machine, command)) for _ in range(2)]
            _wait_for(lambda: _waiting(other) == 2)
            other.execute("select pg_advisory_unlock(hashtext('onecode.migrate'))")
            assert [process.wait(60) for process in both] == [0, 0]
        assert other.execute("select count(*) from alembic_version").fetchall() == [(1,)]


@contextmanager
def _started(machine: Machine, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = machine.begin(command)
    try:
        yield process
    finally:
        # Whatever is left is of its session.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)


def _check(test: list[str]) -> list[str]:
    assert test[0] == "CMD"
    return test[1:]


def _waiting(connection: psycopg.Connection[tuple[int, ...]]) -> int:
    found = connection.execute(
        "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = "
        "(select oid from pg_database where datname = current_database())"
    ).fetchone()
    return found[0] if found else 0


def _wait_for(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
