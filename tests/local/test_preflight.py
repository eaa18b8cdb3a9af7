"""Checks before set-up, against real servers: each error is one line."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from flask import Flask

from local import commands, preflight
from local import postgresql as embedded_postgresql
from local.preflight import SetupError
from tests.support.ports import free_port
from webapp.core import setting_parsers
from webapp.core import settings as app_settings


class Server:
    """A PostgreSQL server on a port, which requires passwords."""

    def __init__(self, port: int, admin: str) -> None:
        self.port, self.admin = port, admin

    def url(self, database: str = "empty", user: str = "shop", password: str = ":se%2Fcret", more: str = "") -> str:
        return f"postgresql://{user}{password}@127.0.0.1:{self.port}/{database}{more}"

    def run(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.admin, dbname=database, autocommit=True) as connection:
            connection.execute(statement.encode())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with TemporaryDirectory(prefix="onecode-preflight-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        port = free_port()
        parameters = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": str(port)}
        embedded = embedded_postgresql.locate_server(folder, folder / "s", parameters)
        # The socket's name contains the port, so the connection string needs it as well.
        embedded = _OnPort(embedded.home, embedded.socket_folder, embedded.parameters, embedded.system_user)
        embedded.start()
        (embedded.data_folder / "pg_hba.conf").write_text(
            "local all all trust\nhost all shop 127.0.0.1/32 scram-sha-256\n"
        )
        started = Server(port, embedded.conninfo())
        started.run("select pg_reload_conf()")
        started.run("create role shop login password 'se/cret'")
        for database in ("empty", "blog", "closed", "reads", "newer", "current"):
            started.run(f"create database {database} owner shop")
        started.run(
            "create database latin owner shop encoding LATIN1 template template0 locale_provider libc locale 'C'"
        )
        try:
            yield started
        finally:
            embedded.stop()


class _OnPort(embedded_postgresql.EmbeddedServer):
    def conninfo(self, database: str = "postgres") -> str:
        return psycopg.conninfo.make_conninfo(super().conninfo(database), port=self.parameters["port"])


def _settings(url: str, tmp_path: Path, **more: str) -> app_settings.Settings:
    return app_settings.load_settings({"DATABASE_URL": url, "INSTANCE_PATH": str(tmp_path), **more})


def _find_error(url: str, tmp_path: Path) -> str:
    with pytest.raises(SetupError) as raised:
        preflight.check_database(_settings(url, tmp_path))
    line = str(raised.value)
    assert "\n" not in line
    assert "cret" not in line, "the message contains a password"
    return line


def test_an_empty_database_is_accepted(server: Server, tmp_path: Path) -> None:
    assert preflight.check_database(_settings(server.url(), tmp_path)) == []


def test_failed_connections_are_explained(server: Server, tmp_path: Path) -> None:
    assert _find_error(server.url(password=":secret"), tmp_path) == "the password for shop in DATABASE_URL is wrong"
    assert _find_error(server.url(password=""), tmp_path).startswith("the database asks for a password; ")
    assert _find_error(server.url("nowhere"), tmp_path) == (
        "there is no database nowhere on the server of DATABASE_URL; create it: createdb nowhere"
    )
    assert _find_error(server.url(user="stranger"), tmp_path).startswith("the database rejects unencrypted ")
    assert _find_error(server.url(more="?sslmode=require"), tmp_path).startswith("sslmode requires SSL")
    assert _find_error(f"postgresql://u:secret@127.0.0.1:{free_port()}/d", tmp_path).startswith(
        "nothing answers at 127.0."
    )
    assert _find_error("postgresql://u:secret@nowhere.invalid/d", tmp_path) == (
        "the host nowhere.invalid cannot be resolved; check the name in DATABASE_URL"
    )


def test_an_invalid_database_url_does_not_reveal_its_password(tmp_path: Path) -> None:
    for url in ("postgresql://u:se@cret:x@h:port/d", "postgresql://u:secret@h/d?nonsense=1"):
        with pytest.raises(setting_parsers.SettingsError, match=r"^DATABASE_URL cannot be parsed") as raised:
            _settings(url, tmp_path)
        assert "cret" not in str(raised.value)


def test_a_database_of_another_program_is_refused(server: Server, tmp_path: Path) -> None:
    server.run("create table wp_posts (id int); create table wp_users (id int)", "blog")
    message = "the database blog contains tables of another program (wp_posts, wp_users); "
    assert _find_error(server.url("blog"), tmp_path).startswith(message)

    server.run("create table alembic_version (version_num text)", "blog")
    assert "has no permission for table alembic_version" in _find_error(server.url("blog"), tmp_path)

    # Another program's migrations may be numbered like ours.
    server.run("insert into alembic_version values ('0001'); grant select on alembic_version to shop", "blog")
    assert _find_error(server.url("blog"), tmp_path).startswith(message)


def test_a_database_that_cannot_be_set_up_is_refused(server: Server, tmp_path: Path) -> None:
    server.run("alter schema public owner to onecode; revoke all on schema public from shop, public", "closed")
    assert _find_error(server.url("closed"), tmp_path) == (
        "shop has no permission to create tables in the database closed; as its owner, run: "
        "grant create on schema public to shop"
    )

    server.run("alter database reads set default_transaction_read_only = on")
    assert _find_error(server.url("reads"), tmp_path).startswith("the database reads is read-only (a standby?); ")

    writable = "?target_session_attrs=read-write"
    assert _find_error(server.url("reads", more=writable), tmp_path).startswith(
        "the server of DATABASE_URL does not accept writes (a standby?); "
    )

    assert "uses the encoding LATIN1" in _find_error(server.url("latin"), tmp_path)


def test_an_up_to_date_database_needs_no_create_privilege(session_app: Flask, tmp_path: Path) -> None:
    url = session_app.config["SETTINGS"].libpq_url
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop role if exists reader_of_tables")
        connection.execute("create role reader_of_tables login password 'x'")
        connection.execute("grant select on alembic_version to reader_of_tables")
        try:
            as_reader = f"{url}{'&' if '?' in url else '?'}options=-c%20role%3Dreader_of_tables"
            assert preflight.check_database(_settings(as_reader, tmp_path)) == []
        finally:
            connection.execute("drop owned by reader_of_tables; drop role reader_of_tables")


def test_a_wrong_clock_causes_a_warning(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=1)

    monkeypatch.setattr(preflight, "datetime", Tomorrow)

    assert preflight.check_database(_settings(server.url(), tmp_path)) == [
        "this machine's clock is 1 day ahead of the database's, "
        "so offers and emails would start at the wrong time; synchronise it: timedatectl set-ntp true"
    ]


@pytest.fixture
def postgresql_13() -> Iterator[int]:
    """The port of a server that only performs the start-up of PostgreSQL 13."""
    listener = socket.create_server(("127.0.0.1", 0))

    def parameter(name: str, value: str) -> bytes:
        body = f"{name}\0{value}\0".encode()
        return b"S" + struct.pack("!i", len(body) + 4) + body

    def serve() -> None:
        with listener.accept()[0] as client:
            size, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
            while code in (80877103, 80877104):  # Refuse the requests for TLS and GSS.
                client.sendall(b"N")
                size, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
            client.recv(size - 8, socket.MSG_WAITALL)
            parameters = parameter("server_version", "13.14") + parameter("client_encoding", "UTF8")
            client.sendall(b"R" + struct.pack("!ii", 8, 0) + parameters + b"Z" + struct.pack("!i", 5) + b"I")
            client.recv(100)

    thread = threading.Thread(target=serve)
    thread.start()
    yield int(listener.getsockname()[1])
    thread.join(timeout=10)
    listener.close()


def test_an_old_postgresql_is_refused_before_any_query(postgresql_13: int, tmp_path: Path) -> None:
    assert _find_error(f"postgresql://u:secret@127.0.0.1:{postgresql_13}/d", tmp_path) == (
        "PostgreSQL 15 or newer is needed, but the server of DATABASE_URL is version 13; "
        "upgrade it, or use another server"
    )


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_port_in_use_is_reported_with_its_purpose_and_a_free_port(tmp_path: Path, offset: int) -> None:
    purpose = ("the web server", "the mail sink", "the mail sink's page")[offset]
    for _ in range(20):
        with socket.create_server(("127.0.0.1", 0)) as other:
            used_port = int(other.getsockname()[1])
            with pytest.raises(SetupError) as raised:
                preflight.check_ports(
                    app_settings.load_settings({"INSTANCE_PATH": str(tmp_path), "PORT": str(used_port - offset)})
                )
        message, _, port = str(raised.value).partition("; choose another: make setup PORT=")
        # Another test may use a neighbouring port, which is then reported instead: try again.
        if message == f"port {used_port} for {purpose} is used by another program":
            break
    else:
        pytest.fail(message)
    preflight.check_ports(app_settings.load_settings({"INSTANCE_PATH": str(tmp_path), "PORT": port}))


def test_an_unreachable_relay_causes_a_warning(tmp_path: Path) -> None:
    port = free_port()
    unreachable = app_settings.load_settings(
        {"INSTANCE_PATH": str(tmp_path), "MAIL_SERVER": "127.0.0.1", "MAIL_PORT": str(port)}
    )
    assert preflight.collect_warnings(unreachable) == [
        f"the relay 127.0.0.1 port {port} can't be reached (Connection refused), "
        "so emails stay queued; check MAIL_SERVER and MAIL_PORT"
    ]
    unknown = app_settings.load_settings({"INSTANCE_PATH": str(tmp_path), "MAIL_SERVER": "relay.invalid"})
    assert "relay.invalid port 25 can't be reached (unknown host)" in preflight.collect_warnings(unknown)[0]


def test_incomplete_relay_settings_are_rejected(tmp_path: Path) -> None:
    relay = {"INSTANCE_PATH": str(tmp_path), "MAIL_SERVER": "relay.example.com"}
    for settings, message in (
        ({"MAIL_USE_TLS": "1", "MAIL_USE_SSL": "1"}, "MAIL_USE_TLS and MAIL_USE_SSL can't both be true"),
        ({"MAIL_USERNAME": "me"}, "set both MAIL_USERNAME and MAIL_PASSWORD"),
        (
            {"MAIL_SERVER": "", "MAIL_USERNAME": "me", "MAIL_PASSWORD": "x"},
            "MAIL_USERNAME is set and MAIL_SERVER is not",
        ),
    ):
        with pytest.raises(setting_parsers.SettingsError, match=f"^{message}"):
            app_settings.load_settings(relay | settings)


def test_misspelt_settings_cause_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("MAIL_SEVER=relay.example.com\nPOSTGRES_PASSWORD=x\nSHOP_NAME=Shop\n")
    monkeypatch.setattr(app_settings, "ROOT", tmp_path)

    assert preflight.collect_warnings(app_settings.load_settings({"INSTANCE_PATH": str(tmp_path)})) == [
        "MAIL_SEVER in .env is not a setting; did you mean MAIL_SERVER?"
    ]


def test_every_setting_that_is_read_has_a_known_name() -> None:
    read = set(re.findall(r'given(?:\.get\(|\[|, )"([A-Z_]+)"', Path(app_settings.__file__).read_text()))

    assert read <= set(app_settings.SETTING_NAMES)


@pytest.mark.parametrize(
    ("is_running", "is_embedded", "is_refused"),
    [(False, False, True), (False, True, True), (True, True, True), (True, False, False)],
)
def test_a_full_disk_prevents_only_what_needs_space(
    test_settings: app_settings.Settings,
    monkeypatch: pytest.MonkeyPatch,
    is_running: bool,
    is_embedded: bool,
    is_refused: bool,
) -> None:
    monkeypatch.setattr(preflight, "MIN_FREE_BYTES", 2**62)
    settings = replace(test_settings, uses_embedded_database=is_embedded)

    with pytest.raises(SetupError, match="the disk is full") if is_refused else nullcontext():
        commands.check_disk_if_needed(settings, is_running)
