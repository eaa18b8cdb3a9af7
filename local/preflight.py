"""Checks before the start: ports, database, clock, mail relay.

A failed check raises `SetupError` with one line that says what to do. Problems that do not prevent the start are
returned as warnings.
"""

from __future__ import annotations

import shutil
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten

import psycopg
from alembic.script import ScriptDirectory
from psycopg.rows import TupleRow, class_row

from webapp.core import database_connections, pooler_check
from webapp.core import settings as app_settings
from webapp.core.database_health import explain_connection_error
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import ROOT, Settings

MIN_POSTGRESQL_VERSION = 15
VERSION_TABLE = "alembic_version"
# Between this machine's clock and the database's. Less may be a slow connection; with more, offers would start and end
# at the wrong time.
MAX_CLOCK_SKEW_SECONDS = 30
# With less, configuration, logs or files of PostgreSQL could not be written; a new database needs more.
MIN_FREE_BYTES = 2 * 1024 * 1024
# All tables except those of extensions such as PostGIS.
SELECT_TABLES = """
    select c.relname as name from pg_class c
    where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'f')
      and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
                      and d.deptype = 'e')
    order by c.relname
"""
# Tables of every version of Onecode: other programs may have an `alembic_version`, but not these as well.
OWN_TABLES = {"staff_user", "redemption"}
SELECT_DATABASE_INFO = """
    select current_database() as database, current_user as user, current_schema() as schema, now() as now,
           current_setting('server_encoding') as encoding,
           pg_is_in_recovery() or current_setting('transaction_read_only')::bool as is_read_only,
           coalesce(has_schema_privilege(current_schema(), 'create'), false) as can_create_tables
"""


@dataclass(frozen=True)
class DatabaseInfo:
    """Properties of a database and of the role that connects to it."""

    database: str
    user: str
    schema: str | None
    now: datetime
    encoding: str
    is_read_only: bool
    can_create_tables: bool


class SetupError(Exception):
    """A check failed; the message is one line and says what to do."""


def check_ports(settings: Settings, command: str = "make setup") -> None:
    """Check that all ports are free.

    :param command: the command that the error suggests, with another PORT.
    :raises SetupError: with the port that is in use, its purpose and a free port.
    """
    wanted = {settings.port: "the web server"}
    if settings.uses_mail_sink:
        wanted |= {settings.mail_port: "the mail sink", settings.sink_page_port: "the mail sink's page"}
    for port, purpose in wanted.items():
        try:
            _try_bind(port)
        except PermissionError as error:
            raise SetupError(
                f"port {port} for {purpose} needs root; choose another: {command} PORT={find_free_port(8000)}"
            ) from error
        except OSError as error:
            raise SetupError(
                f"port {port} for {purpose} is used by another program; "
                f"choose another: {command} PORT={find_free_port(settings.port + 10)}"
            ) from error


def check_running_port(settings: Settings) -> None:
    """Check that an instance which is running already uses the configured port.

    :raises SetupError: when it uses another one.
    """
    running = app_settings.read_saved_port(settings.instance_path)
    if running not in (None, settings.port):
        raise SetupError(
            f"Onecode is already running on port {running}; to move it to port {settings.port}: "
            f"make down, then make setup PORT={settings.port}"
        )


def check_disk(*folders: Path) -> None:
    """Check that the disk of each folder has space left, before anything is stopped or started.

    A folder that does not exist yet is on the disk of its nearest parent.

    :raises SetupError: when one has not.
    """
    for folder in folders:
        existing = folder
        while not existing.exists():
            existing = existing.parent
        if shutil.disk_usage(existing).free < MIN_FREE_BYTES:
            raise SetupError(
                f"the disk is full; free some space in {existing} and run the same command again. "
                "Nothing was started or stopped."
            )


def check_install_path() -> None:
    """Check that the path of the program has no %.

    Alembic interpolates it in its configuration.

    :raises SetupError: when it has one.
    """
    if "%" in str(ROOT):
        raise SetupError(f"the path of the program contains a %, which Alembic can't use: {ROOT}; rename that folder")


def check_database(settings: Settings) -> list[str]:
    """Check that the database can be used, and return warnings. Writes nothing.

    It has to be empty or to belong to Onecode.

    :raises SetupError: when it can't be used.
    """
    try:
        with database_connections.connect(
            settings.direct_libpq_url, setting=settings.direct_url_setting, autocommit=True
        ) as connection:
            _check_server_version(connection.info.server_version)
            info = connection.cursor(row_factory=class_row(DatabaseInfo)).execute(SELECT_DATABASE_INFO).fetchone()
            clock_skew = (datetime.now(UTC) - info.now).total_seconds() if info else 0
            tables = [name for (name,) in connection.execute(SELECT_TABLES)]
            revision = (
                connection.execute("select version_num from alembic_version").fetchone()
                if VERSION_TABLE in tables
                else None
            )
    except psycopg.Error as error:
        raise SetupError(explain_connection_error(error)) from error
    _check_pooling(settings)
    assert info is not None  # noqa: S101
    _check_database_info(info)
    _check_tables(info, set(tables), revision[0] if revision else None)
    if abs(clock_skew) <= MAX_CLOCK_SKEW_SECONDS:
        return []
    return [
        f"this machine's clock is {_format_duration(abs(clock_skew))} "
        f"{'ahead of' if clock_skew > 0 else 'behind'} the database's, "
        "so offers and emails would start at the wrong time; synchronise it: timedatectl set-ntp true"
    ]


def _check_pooling(settings: Settings) -> None:
    """Check that connections keep their session where they must, and that both URLs lead to the same database."""
    try:
        pooler_check.check_pooling(settings)
        if settings.database_direct_url is None:
            return
        identities = [
            _select_identity(settings.libpq_url, "DATABASE_URL"),
            _select_identity(settings.direct_libpq_url, "DATABASE_DIRECT_URL"),
        ]
    except SettingsError as error:
        raise SetupError(str(error)) from error
    except psycopg.Error as error:
        raise SetupError(explain_connection_error(error)) from error
    if identities[0] != identities[1]:
        raise SetupError(
            "DATABASE_URL and DATABASE_DIRECT_URL lead to different databases; set both to the same one of one server"
        )


def _select_identity(url: str, setting: str) -> TupleRow | None:
    with database_connections.connect(url, setting=setting, autocommit=True) as connection:
        return connection.execute("select current_database(), pg_postmaster_start_time()").fetchone()


def collect_warnings(settings: Settings) -> list[str]:
    """Return one line for each probable mistake.

    These are misspelt names in `.env` and a relay that can't be reached.
    """
    found = []
    for name in app_settings.read_env_file():
        near = get_close_matches(name.upper(), app_settings.SETTING_NAMES, 1, 0.8)
        if near and name not in app_settings.SETTING_NAMES:
            found.append(f"{name} in .env is not a setting; did you mean {near[0]}?")
    if not settings.uses_mail_sink:
        try:
            socket.create_connection((settings.mail_server, settings.mail_port), timeout=5).close()
        except OSError as error:
            reason = "unknown host" if isinstance(error, socket.gaierror) else error.strerror or "no response"
            found.append(
                f"the relay {settings.mail_server} port {settings.mail_port} can't be reached ({reason}), "
                "so emails stay queued; check MAIL_SERVER and MAIL_PORT"
            )
    return found


def _check_server_version(version: int) -> None:
    if version < MIN_POSTGRESQL_VERSION * 10_000:
        raise SetupError(
            f"PostgreSQL {MIN_POSTGRESQL_VERSION} or newer is needed, "
            f"but the server of DATABASE_URL is version {version // 10_000}; "
            "upgrade it, or use another server"
        )


def _check_database_info(info: DatabaseInfo) -> None:
    if info.encoding != "UTF8":
        raise SetupError(
            f"the database {info.database} uses the encoding {info.encoding}, which lacks characters of many names; "
            "create another for Onecode: createdb --encoding=UTF8 --template=template0 onecode"
        )
    if info.is_read_only:
        raise SetupError(
            f"the database {info.database} is read-only (a standby?); set DATABASE_URL to the primary server"
        )


def _check_tables(info: DatabaseInfo, tables: set[str], revision: str | None) -> None:
    migrations = ScriptDirectory(str(ROOT / "migrations"))
    if revision and tables >= OWN_TABLES:
        if revision not in {script.revision for script in migrations.walk_revisions()}:
            raise SetupError(
                f"the database {info.database} was upgraded by a newer release of Onecode (revision {revision}); "
                "install that release, or restore a backup made before the upgrade"
            )
    elif tables - {VERSION_TABLE}:
        others = ", ".join(sorted(tables - {VERSION_TABLE}))
        raise SetupError(
            f"the database {info.database} contains tables of another program "
            f"({shorten(others, 60, placeholder=' …')}); "
            "create a database for Onecode and set DATABASE_URL to it: createdb onecode"
        )
    if revision != migrations.get_current_head() and not info.can_create_tables:
        raise SetupError(
            f"{info.user} has no permission to create tables in the database {info.database}; as its owner, run: "
            f"grant create on schema {info.schema or 'public'} to {info.user}"
        )


def _format_duration(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            n = round(seconds / length)
            return f"{n} {unit}{'s' if n > 1 else ''}"
    return f"{seconds:.0f} seconds"


def _try_bind(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def find_free_port(start: int) -> int:
    """Return the first of three consecutive free ports.

    Tries `start`, `start + 10` and so on.
    """
    for port in range(start, 65_000, 10):
        try:
            for one in range(port, port + 3):
                _try_bind(one)
        except OSError:
            continue
        return port
    return start
