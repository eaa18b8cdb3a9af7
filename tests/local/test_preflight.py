"""What set-up makes sure of, asked of real servers: each refusal is one line with the one thing to do."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest
from flask import Flask

from local import postgresql as embedded_postgresql
from local import preflight
from local.preflight import SetupError
from tests.support.ports import free_port
from webapp.core import setting_parsers
from webapp.core import settings as app_settings


class Server:
    """A PostgreSQL on a port, which asks for passwords."""

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
        quick = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": str(port)}
        made = embedded_postgresql.locate_server(folder, folder / "s", quick)
        # The port is in the socket's name, too, and so in the address.
        made = _OnPort(made.home, made.socket_folder, made.parameters, made.system_user)
        made.start()
        (made.data_folder / "pg_hba.conf").write_text("local all all trust\nhost all shop 127.0.0.1/32 scram-sha-256\n")
        ours = Server(port, made.conninfo())
        ours.run("select pg_reload_conf()")
        ours.run("create role shop login password 'se/cret'")
        for database in ("empty", "blog", "closed", "reads", "newer", "current"):
            ours.run(f"create database {database} owner shop")
        ours.run("create database latin owner shop encoding LATIN1 template template0 locale_provider libc locale 'C'")
        try:
            yield ours
        finally:
            made.stop()


class _OnPort(embedded_postgresql.EmbeddedServer):
    def conninfo(self, database: str = "postgres") -> str:
        return psycopg.conninfo.make_conninfo(super().conninfo(database), port=self.parameters["port"])


def _settings(url: str, tmp_path: Path, **more: str) -> app_settings.Settings:
    return app_settings.load_settings({"DATABASE_URL": url, "INSTANCE_PATH": str(tmp_path), **more})


def _refused(url: str, tmp_path: Path) -> str:
    with pytest.raises(SetupError) as refused:
        preflight.check_database(_settings(url, tmp_path))
    line = str(refused.value)
    assert "\n" not in line
    assert "cret" not in line, "a password was said"
    return line


def test_an_empty_database_will_do(server: Server, tmp_path: Path) -> None:
    assert preflight.check_database(_settings(server.url(), tmp_path)) == []


def test_who_is_not_let_in_is_told_why(server: Server, tmp_path: Path) -> None:
    assert _refused(server.url(password=":secret"), tmp_path) == "the password for shop in DATABASE_URL is wrong"
    assert _refused(server.url(password=""), tmp_path).startswith("the database asks for a password; ")
    assert _refused(server.url("nowhere"), tmp_path) == (
        "there is no database nowhere on the server of DATABASE_URL; create it: createdb nowhere"
    )
    assert _refused(server.url(user="stranger"), tmp_path).startswith("the database rejects unencrypted ")
    assert _refused(server.url(more="?sslmode=require"), tmp_path).startswith("sslmode requires SSL")
    assert _refused(f"postgresql://u:secret@127.0.0.1:{free_port()}/d", tmp_path).startswith(
        "nothing answers at 127.0."
    )
    assert _refused("postgresql://u:secret@nowhere.invalid/d", tmp_path) == (
        "the host nowhere.invalid cannot be resolved; check the name in DATABASE_URL"
    )


def test_an_address_that_can_not_be_read_says_nothing_of_its_password(tmp_path: Path) -> None:
    for url in ("postgresql://u:se@cret:x@h:port/d", "postgresql://u:secret@h/d?nonsense=1"):
        with pytest.raises(setting_parsers.SettingsError, match=r"^DATABASE_URL cannot be parsed") as refused:
            _settings(url, tmp_path)
        assert "cret" not in str(refused.value)


def test_tables_of_another_program_are_left_alone(server: Server, tmp_path: Path) -> None:
    server.run("create table wp_posts (id int); create table wp_users (id int)", "blog")
    said = "the database blog has tables of another program (wp_posts, wp_users); "
    assert _refused(server.url("blog"), tmp_path).startswith(said)

    server.run("create table alembic_version (version_num text)", "blog")
    assert "has no permission for table alembic_version" in _refused(server.url("blog"), tmp_path)

    # Another program's migrations may count as ours do.
    server.run("insert into alembic_version values ('0001'); grant select on alembic_version to shop", "blog")
    assert _refused(server.url("blog"), tmp_path).startswith(said)


def test_tables_of_a_newer_version_are_left_alone(server: Server, tmp_path: Path) -> None:
    server.run("alter schema public owner to onecode; revoke all on schema public from shop, public", "closed")
    assert _refused(server.url("closed"), tmp_path) == (
        "shop may not make tables in the database closed; as its owner, say: grant create on schema public to shop"
    )

    server.run("alter database reads set default_transaction_read_only = on")
    assert _refused(server.url("reads"), tmp_path).startswith("the database reads only reads (a standby?); ")

    assert "keeps LATIN1" in _refused(server.url("latin"), tmp_path)


def test_a_database_that_is_up_to_date_needs_no_rights_to_make_tables(session_app: Flask, tmp_path: Path) -> None:
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


def test_a_clock_that_is_off_is_a_remark(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=1)

    monkeypatch.setattr(preflight, "datetime", Tomorrow)

    assert preflight.check_database(_settings(server.url(), tmp_path)) == [
        "this machine's clock is 1 day ahead of the database's; "
        "set it, or offers and mails come at the wrong time: timedatectl set-ntp true"
    ]


@pytest.fixture
def postgresql_13() -> Iterator[int]:
    """A server that greets as PostgreSQL 13 does (protocol 3.0) and answers nothing else; its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def parameter(name: str, value: str) -> bytes:
        body = f"{name}\0{value}\0".encode()
        return b"S" + struct.pack("!i", len(body) + 4) + body

    def greet() -> None:
        with listening.accept()[0] as client:
            size, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
            while code in (80877103, 80877104):  # It asks for TLS or GSS first, and there is none.
                client.sendall(b"N")
                size, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
            client.recv(size - 8, socket.MSG_WAITALL)
            told = parameter("server_version", "13.14") + parameter("client_encoding", "UTF8")
            client.sendall(b"R" + struct.pack("!ii", 8, 0) + told + b"Z" + struct.pack("!i", 5) + b"I")
            client.recv(100)

    thread = threading.Thread(target=greet)
    thread.start()
    yield int(listening.getsockname()[1])
    thread.join(timeout=10)
    listening.close()


def test_an_old_postgresql_is_refused_before_anything_is_asked_of_it(postgresql_13: int, tmp_path: Path) -> None:
    assert _refused(f"postgresql://u:secret@127.0.0.1:{postgresql_13}/d", tmp_path) == (
        "PostgreSQL 15 or newer is needed, and the server of DATABASE_URL is 13; upgrade it, or name another"
    )


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_taken_port_is_named_with_what_needs_it_and_one_that_is_free(tmp_path: Path, which: int) -> None:
    purpose = ("the web server", "the mail sink", "the mail sink's page")[which]
    for _ in range(20):
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = int(other.getsockname()[1])
            with pytest.raises(SetupError) as refused:
                preflight.check_ports(
                    app_settings.load_settings({"INSTANCE_PATH": str(tmp_path), "PORT": str(taken - which)})
                )
        said, _, port = str(refused.value).partition("; choose another: make setup PORT=")
        # Now and then a neighbouring port is another test's, and that is what it says; then once more.
        if said == f"port {taken} for {purpose} is taken by another program":
            break
    else:
        pytest.fail(said)
    preflight.check_ports(app_settings.load_settings({"INSTANCE_PATH": str(tmp_path), "PORT": port}))


def test_a_relay_that_is_away_is_a_remark(tmp_path: Path) -> None:
    port = free_port()
    away = app_settings.load_settings(
        {"INSTANCE_PATH": str(tmp_path), "MAIL_SERVER": "127.0.0.1", "MAIL_PORT": str(port)}
    )
    assert preflight.collect_warnings(away) == [
        f"the relay 127.0.0.1 port {port} can't be reached (Connection refused); "
        "mails wait until it can: check MAIL_SERVER and MAIL_PORT"
    ]
    unknown = app_settings.load_settings({"INSTANCE_PATH": str(tmp_path), "MAIL_SERVER": "relay.invalid"})
    assert "relay.invalid port 25 can't be reached (there is no such name)" in preflight.collect_warnings(unknown)[0]


def test_the_relay_is_described_whole_or_not_at_all(tmp_path: Path) -> None:
    relay = {"INSTANCE_PATH": str(tmp_path), "MAIL_SERVER": "relay.example.com"}
    for given, said in (
        ({"MAIL_USE_TLS": "1", "MAIL_USE_SSL": "1"}, "MAIL_USE_TLS and MAIL_USE_SSL exclude each other"),
        ({"MAIL_USERNAME": "me"}, "set both MAIL_USERNAME and MAIL_PASSWORD"),
        (
            {"MAIL_SERVER": "", "MAIL_USERNAME": "me", "MAIL_PASSWORD": "x"},
            "MAIL_USERNAME is set and MAIL_SERVER is not",
        ),
    ):
        with pytest.raises(setting_parsers.SettingsError, match=f"^{said}"):
            app_settings.load_settings(relay | given)


def test_names_that_are_nearly_settings_are_remarked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("MAIL_SEVER=relay.example.com\nPOSTGRES_PASSWORD=x\nSHOP_NAME=Shop\n")
    monkeypatch.setattr(app_settings, "ROOT", tmp_path)

    assert preflight.collect_warnings(app_settings.load_settings({"INSTANCE_PATH": str(tmp_path)})) == [
        "MAIL_SEVER in .env is no setting; probably MAIL_SERVER was meant"
    ]


def test_every_setting_that_is_read_is_known_by_name() -> None:
    read = set(re.findall(r'given(?:\.get\(|\[|, )"([A-Z_]+)"', Path(app_settings.__file__).read_text()))

    assert read <= set(app_settings.SETTING_NAMES)
