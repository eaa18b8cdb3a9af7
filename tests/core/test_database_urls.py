"""The connection string: every form of libpq, read in one way by every part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from flask import Flask
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import text

from local import preflight
from tests.support.ports import free_port
from webapp import create_app
from webapp.core import database_connections, database_engines, database_urls, task_queue
from webapp.core import settings as app_settings
from webapp.core.database_health import explain_connection_error
from webapp.core.extensions import db, huey
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import Settings, load_settings


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "postgresql://u:p%40@db1:5433,db2:5434/onecode",
            {"host": "db1,db2", "port": "5433,5434", "password": "p@", "target_session_attrs": "read-write"},
        ),
        ("postgresql://u@db1,db2/onecode", {"host": "db1,db2", "target_session_attrs": "read-write"}),
        ("postgresql://u@db1:5433,db2/onecode", {"host": "db1,db2", "port": "5433,"}),
        ("postgresql://u@[::1]:5433,[::2]:5434/onecode", {"host": "::1,::2", "port": "5433,5434"}),
        ("postgresql://u@db1,db2/onecode?target_session_attrs=any", {"target_session_attrs": "any"}),
        ("postgresql://db1/onecode?hostaddr=10.0.0.1,10.0.0.2&host=db1,db2", {"hostaddr": "10.0.0.1,10.0.0.2"}),
        ("postgresql:///onecode?host=db1,db2&port=5433,5434", {"host": "db1,db2", "port": "5433,5434"}),
        ("postgresql://%2Frun%2Fpostgresql/onecode", {"host": "/run/postgresql", "connect_timeout": "5"}),
        ("postgresql+psycopg://u@db1:5433,db2:5434/onecode", {"host": "db1,db2", "port": "5433,5434"}),
        ("postgres://u:a#b+c@[::1]/onecode", {"host": "::1", "password": "a#b+c"}),
        ("host=db1,db2 port=5433,5434 user=u dbname=onecode", {"host": "db1,db2", "port": "5433,5434"}),
        (r"host=/run/postgresql password='a b\'c@/' dbname=onecode", {"password": "a b'c@/"}),
        ("postgresql:///onecode?host=/run/pg@15", {"host": "/run/pg@15"}),
        ("postgresql://u@db1/onecode?connect_timeout=9&options=-c%20role%3Dr", {"connect_timeout": "9"}),
        ("postgresql://u@db1/onecode?options=-c%20role%3Dr", {"options": "-c role=r", "tcp_user_timeout": "10000"}),
        ("postgresql://u@db1?connect_timeout=9", {"host": "db1", "user": "u", "connect_timeout": "9"}),
        ("postgresql://u@db1,db2?dbname=d&target_session_attrs=read-write", {"host": "db1,db2", "dbname": "d"}),
        ("postgresql://u@?host=/run/postgresql&dbname=d", {"host": "/run/postgresql", "user": "u", "dbname": "d"}),
    ],
)
def test_every_form_of_libpq_is_accepted(url: str, expected: dict[str, str]) -> None:
    parameters = database_urls.build_connection_parameters(database_urls.parse_database_url(url))

    assert {name: parameters.get(name) for name in expected} == expected
    # What libpq reads from the parameters is what was given.
    assert conninfo_to_dict(make_conninfo(**parameters)) == parameters


def test_one_server_needs_no_property() -> None:
    assert "target_session_attrs" not in database_urls.build_connection_parameters("postgresql://u@db1/onecode")


@pytest.mark.parametrize(
    ("value", "password"),
    [
        # Written as docs/operations/database.md advises.
        (r"host=db user=u password='a b' dbname=x", "a b"),
        (r"host=db password='a\'b\\c$d'", r"a'b\c$d"),
        ("postgresql://u:a%24{HOME}%23b@db/x", "a${HOME}#b"),
        # With quotes around the list, the backslash is removed before libpq reads the list.
        (r""" "host=db password='a\\bc'" """, "abc"),
    ],
)
def test_what_is_written_in_the_env_file_is_the_password(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, password: str
) -> None:
    monkeypatch.setattr(app_settings, "ROOT", tmp_path)
    (tmp_path / ".env").write_text(f"DATABASE_URL={value}\n")

    url = database_urls.parse_database_url(app_settings.read_env_file()["DATABASE_URL"])

    assert database_urls.build_connection_parameters(url)["password"] == password


@pytest.mark.parametrize("variable", ["PGSERVICE", ""])
def test_hosts_of_a_service_are_tried_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "services").write_text("[shop]\nhost=db1,db2\nport=5433,5434\nuser=u\ndbname=onecode\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    if variable:
        monkeypatch.setenv(variable, "shop")
    url = database_urls.parse_database_url("dbname=other" if variable else "service=shop dbname=other")

    parameters = database_urls.build_connection_parameters(url)

    assert [parameters[name] for name in ("host", "port", "user", "dbname", "target_session_attrs")] == [
        "db1,db2", "5433,5434", "u", "other", "read-write",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://here", "must start with postgresql://"),
        ("mysql://here?x=S3cret", "must start with postgresql://"),
        ("onecode", "must start with postgresql://"),
        ("postgresql://u:a@S3cret@h/d", "cannot be parsed"),
        ("postgresql://u:1/S3cret@h/d", "cannot be parsed"),
        ("postgresql://u:a/S3cret@h/d", "cannot be parsed"),
        ("postgresql://u:a@b/S3cret@h/d", "cannot be parsed"),
        ("postgresql://h?user=u&password=S3@cret", "cannot be parsed"),
        ("postgresql://u@h:port/d", "cannot be parsed"),
        ("postgresql://u@h:70000/d", "cannot be parsed"),
        ("postgresql://u@h1:1,h2:x/d", "cannot be parsed"),
        ("postgresql://u@h/d?nonsense=1", "cannot be parsed"),
        ("host=h password=a S3cret", "cannot be parsed; write a value with spaces in single quotes"),
        ("host=a,b,c port=1,2", "has 3 hosts and 2 ports"),
        ("host=a,b hostaddr=10.0.0.1", "must have as many addresses in hostaddr as hosts"),
        ("postgresql://u@a,b/d?target_session_attrs=standby", "must be any, read-write or primary"),
        ("postgresql://u@a,b/d?target_session_attrs=nonsense", "must be any, read-write or primary"),
        ("postgresql://u@a/d?connect_timeout=soon", "must be a whole number of seconds, at least 1"),
        ("postgresql://u@a/d?connect_timeout=0", "must be a whole number of seconds, at least 1"),
        ("postgresql://u@a/d?client_encoding=latin1", "must be UTF8"),
    ],
)
def test_a_wrong_connection_string_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match="DATABASE_DIRECT_URL") as raised:
        database_urls.parse_database_url(url, "DATABASE_DIRECT_URL")

    assert message in str(raised.value)
    assert "cret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture(params=["uri", "key-value"])
def two_hosts(test_settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """Settings with two hosts; nothing listens at the first."""
    server = {name: str(value) for name, value in conninfo_to_dict(test_settings.libpq_url).items()}
    host, port = server.pop("host", "") or psycopg_host(test_settings), server.pop("port", "")
    hosts, ports = f"127.0.0.1,{host}", f"{free_port()},{port}"
    url = make_conninfo(host=hosts, port=ports, **server)
    if request.param == "uri":
        query = "&".join(f"{name}={value}" for name, value in ({"host": hosts, "port": ports} | server).items())
        url = f"postgresql:///?{query}"
    return replace(test_settings, database_url=url)


def psycopg_host(settings: Settings) -> str:
    """Return the host that libpq takes from the environment."""
    with psycopg.connect(settings.libpq_url) as connection:
        return connection.info.host


def test_every_part_skips_a_server_that_does_not_answer(app: Flask, two_hosts: Settings) -> None:
    other = create_app(two_hosts)
    try:
        with other.app_context():
            assert db.session.scalar(text("select 1")) == 1
            assert db.session.scalar(text("show timezone")) == "UTC"
            db.session.remove()
            db.engine.dispose()
        assert huey.storage.queue_size() == 0
        assert preflight.check_database(two_hosts) == []
    finally:
        task_queue.init_app(app)


def test_every_address_of_a_host_name_is_named() -> None:
    port = free_port()
    with pytest.raises(psycopg.OperationalError) as raised:
        database_connections.connect(f"host=db.shop,db.shop hostaddr=127.0.0.1,127.0.0.2 port={port} user=u dbname=x")

    line = explain_connection_error(raised.value)
    assert f"be used: db.shop (127.0.0.1) port {port}: Connection refused" in line
    assert f"; db.shop (127.0.0.2) port {port}: Connection refused" in line


@pytest.mark.parametrize("start", ["host=db.shop,db.shop user=u dbname=x ", "postgresql://u@db.shop,db.shop/x?"])
def test_a_missing_port_is_not_named(start: str) -> None:
    with pytest.raises(psycopg.OperationalError) as raised:
        database_connections.connect(f"{start}hostaddr=127.0.0.1,127.0.0.2")

    line = explain_connection_error(raised.value)
    assert "be used: db.shop (127.0.0.1): " in line
    assert "; db.shop (127.0.0.2): " in line


def test_the_embedded_server_is_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "postgresql").mkdir()
    settings = load_settings({"INSTANCE_PATH": str(tmp_path)})
    connect = database_engines.build_creator(settings)
    with pytest.raises(psycopg.OperationalError) as raised:
        connect()

    line = explain_connection_error(raised.value)
    assert line.startswith(f"PostgreSQL in {tmp_path / 'postgresql'} cannot be used (")
    assert line.endswith("); see its log, postgresql.log")
    assert "DATABASE_URL" not in line
    assert settings.direct_url_setting == settings.url_setting


def test_every_unusable_server_is_named(test_settings: Settings) -> None:
    first, second = free_port(), free_port()
    url = f"postgresql://u:S3cret@127.0.0.1:{first},127.0.0.1:{second}/onecode"

    with pytest.raises(psycopg.OperationalError) as raised:
        database_connections.connect(url)

    line = explain_connection_error(raised.value)
    assert line.startswith(f"none of the servers of DATABASE_URL can be used: 127.0.0.1 port {first}: ")
    assert f"; 127.0.0.1 port {second}: Connection refused" in line
    assert "S3cret" not in line
