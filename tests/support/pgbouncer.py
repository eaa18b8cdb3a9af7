"""PgBouncer in front of the test server."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.live_server import wait_until
from tests.support.ports import free_port

# Debian installs it where only root's PATH looks.
PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def pgbouncer(database_url: str, pool_mode: str, **more: str) -> Iterator[str]:
    """Run PgBouncer on a free port; yield the connection string of the database through it.

    :param more: further lines of its section `[pgbouncer]`.
    """
    if PROGRAM is None:
        if os.environ.get("REQUIRE_SERVERS"):
            pytest.fail("PgBouncer is not installed")
        pytest.skip("PgBouncer is not installed")
    server = {keyword: str(value) for keyword, value in conninfo_to_dict(database_url).items()}
    port = free_port()
    user, group = _find_user(server.get("host", ""))
    with tempfile.TemporaryDirectory(prefix="onecode-pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        _write_configuration(folder, server, port, {"pool_mode": pool_mode, **more})
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [PROGRAM, str(folder / "pgbouncer.ini")],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                user=user,
                group=group,
            )
        url = make_conninfo(
            host="127.0.0.1",
            port=str(port),
            user=server.get("user", "postgres"),
            password="secret",
            dbname=server["dbname"],
        )
        try:
            wait_until(lambda: _accepts(url, process))
            yield url
        finally:
            process.terminate()
            process.wait()


def _write_configuration(folder: Path, server: Mapping[str, str], port: int, options: Mapping[str, str]) -> None:
    variables = {"host": "PGHOST", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD"}
    values = {keyword: server.get(keyword) or os.environ.get(variable) for keyword, variable in variables.items()}
    address = " ".join(f"{keyword}={value}" for keyword, value in values.items() if value)
    lines = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "trust",
        "auth_file": str(folder / "users.txt"),
        **options,
    }
    (folder / "users.txt").write_text(f'"{server.get("user", "postgres")}" "secret"\n')
    section = "\n".join(f"{name} = {value}" for name, value in lines.items())
    (folder / "pgbouncer.ini").write_text(f"[databases]\n* = {address}\n[pgbouncer]\n{section}\n")


def _find_user(socket_folder: str) -> tuple[int | None, int | None]:
    """Return the user and group of the process: PgBouncer refuses to run as root."""
    if os.geteuid() != 0:
        return None, None
    uid = os.stat(socket_folder).st_uid if socket_folder.startswith("/") else 0
    user = pwd.getpwuid(uid) if uid else pwd.getpwnam("nobody")
    return user.pw_uid, user.pw_gid


def _accepts(url: str, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"PgBouncer ended with status {process.returncode}")
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.OperationalError:
        return False
    return True
