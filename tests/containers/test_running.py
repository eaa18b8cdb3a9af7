"""The commands of docker-compose.yml and the image, run without a container.

They run as in a container: as an unprivileged user, from a read-only tree, with the environment of the compose file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from local import system_user
from local.supervisor import GRACE_SECONDS
from tests.support import container_files
from tests.support.databases import fresh_database
from tests.support.live_server import wait_until
from tests.support.ports import free_port
from webapp.core.settings import ROOT

pytestmark = pytest.mark.slow

SERVICES = container_files.services()
# The unprivileged user must be able to read this Python's folder, even when it belongs to root.
READ_CAPABILITY = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]


@dataclass(frozen=True)
class ContainerMachine:
    """Runs commands with an environment and as an unprivileged user."""

    environment: dict[str, str]
    database: str

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._unprivileged(), *command],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: list[str]) -> tuple[int, str]:
        process = self.start(command)
        output = process.communicate(timeout=60)[0]
        return process.returncode, output

    def wait_until_healthy(self, check: list[str]) -> None:
        """Run a health check until it succeeds, as a container engine does."""
        wait_until(lambda: self.run(check)[0] == 0, what=lambda: self.run(check))

    def find_user(self) -> int:
        """Return the id of the user who runs the commands."""
        if os.geteuid() != 0:
            return os.geteuid()
        # The embedded server of the tests accepts only the owner of its socket.
        folder = parse_qs(urlsplit(self.database).query).get("host", ["/nonexistent"])[0]
        return Path(folder).stat().st_uid if Path(folder).is_dir() else 10001

    def _unprivileged(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        user = self.find_user()
        return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs", *READ_CAPABILITY]


@pytest.fixture
def machine() -> Iterator[ContainerMachine]:
    """A machine with an empty database; only the addresses differ from the file's."""
    if os.geteuid() == 0 and not system_user.can_access(ROOT, system_user.ensure_system_user()):
        pytest.skip("this clone lies in a folder that others may not enter")
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
        yield ContainerMachine(environment, url)


def test_the_services_start_become_healthy_and_shut_down(machine: ContainerMachine) -> None:
    assert machine.run(SERVICES["migrate"]["command"]) == (0, "The database schema is up to date.\n")

    with ExitStack() as stack:
        web = stack.enter_context(_started(machine, SERVICES["web"]["command"]))
        worker = stack.enter_context(_started(machine, SERVICES["worker"]["command"]))
        machine.wait_until_healthy(container_files.image_health_check())
        machine.wait_until_healthy(_check(SERVICES["worker"]["healthcheck"]["test"]))

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


def test_the_web_processes_count_together(machine: ContainerMachine, database_url: str, tmp_path: Path) -> None:
    instance = _make_instance_folder(tmp_path, machine.find_user())
    machine.environment.update(INSTANCE_PATH=str(instance), DATABASE_URL=database_url)

    with _started(machine, SERVICES["web"]["command"]) as web:
        machine.wait_until_healthy(container_files.image_health_check())
        web.send_signal(signal.SIGTERM)
        output = web.communicate(timeout=GRACE_SECONDS)[0]

    assert "reports only its own requests" not in output
    # One file for all processes.
    assert len(list((instance / "metrics").iterdir())) == 1


def test_the_image_and_the_compose_file_start_the_same_server() -> None:
    assert container_files.command(dict(container_files.final_stage())["CMD"]) == SERVICES["web"]["command"]


@pytest.mark.parametrize("service", ["web", "worker", "migrate"])
def test_a_missing_secret_that_cannot_be_stored_is_reported_in_one_line(
    machine: ContainerMachine, service: str
) -> None:
    machine.environment["SECRET_KEY"] = ""

    status, output = machine.run(SERVICES[service]["command"])

    assert status == 1
    assert output.startswith("onecode: "), output
    assert "INSTANCE_PATH" in output
    assert output.count("\n") == 1


def test_concurrent_migrations_run_once(machine: ContainerMachine) -> None:
    command = SERVICES["migrate"]["command"]
    with psycopg.connect(machine.database, autocommit=True) as blocker:
        # Locked until both wait, so that neither ends before the other starts.
        blocker.execute("select pg_advisory_lock(hashtext('onecode.migrate'))")
        with ExitStack() as stack:
            both = [stack.enter_context(_started(machine, command)) for _ in range(2)]
            wait_until(lambda: _count_waiters(blocker) == 2)
            blocker.execute("select pg_advisory_unlock(hashtext('onecode.migrate'))")
            assert [process.wait(60) for process in both] == [0, 0]
        assert blocker.execute("select count(*) from alembic_version").fetchall() == [(1,)]


def _make_instance_folder(parent: Path, user: int) -> Path:
    """Create a folder that is read-only for a user, except for what the compose file mounts in INSTANCE_PATH."""
    instance = parent / "instance"
    instance.mkdir()
    for mount in SERVICES["web"]["tmpfs"]:
        path = Path(mount.partition(":")[0])
        if path.is_relative_to(SERVICES["web"]["environment"]["INSTANCE_PATH"]):
            (instance / path.name).mkdir(mode=0o700)
            os.chown(instance / path.name, user, user if os.geteuid() == 0 else -1)
    instance.chmod(0o555)
    return instance


@contextmanager
def _started(machine: ContainerMachine, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = machine.start(command)
    try:
        yield process
    finally:
        # Remaining processes are in its session.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=10)


def _check(test: list[str]) -> list[str]:
    assert test[0] == "CMD"
    return test[1:]


def _count_waiters(connection: psycopg.Connection[tuple[int, ...]]) -> int:
    found = connection.execute(
        "select count(*) from pg_locks where locktype = 'advisory' and not granted and database = "
        "(select oid from pg_database where datname = current_database())"
    ).fetchone()
    return found[0] if found else 0
