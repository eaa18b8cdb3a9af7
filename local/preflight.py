"""What set-up makes sure of before it starts or changes anything: ports, the database it was given, clock, relay.

A refusal is a `SetupError`, one line that says the one thing to do. What need not stop the start is a remark.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from textwrap import shorten

import psycopg
from alembic.script import ScriptDirectory
from psycopg.rows import class_row

from webapp.core import settings as app_settings
from webapp.core.database_health import explain_connection_error
from webapp.core.settings import ROOT, Settings

MIN_POSTGRESQL_VERSION = 15
VERSION_TABLE = "alembic_version"
# Of this machine's clock from the database's. Less is a slow connection; more shows in when offers start and end.
MAX_CLOCK_SKEW_SECONDS = 30
# What a table of another program is not: made by an extension such as PostGIS.
SELECT_TABLES = """
    select c.relname as name from pg_class c
    where c.relnamespace = current_schema()::regnamespace and c.relkind in ('r', 'p', 'f')
      and not exists (select from pg_depend d where d.classid = 'pg_class'::regclass and d.objid = c.oid
                      and d.deptype = 'e')
    order by c.relname
"""
# Of any version: with a version in `alembic_version` they tell our database from that of another program.
OWN_TABLES = {"staff_user", "redemption"}
SELECT_DATABASE_INFO = """
    select current_database() as database, current_user as user, current_schema() as schema, now() as now,
           current_setting('server_encoding') as encoding,
           pg_is_in_recovery() or current_setting('transaction_read_only')::bool as is_read_only,
           coalesce(has_schema_privilege(current_schema(), 'create'), false) as can_create_tables
"""


@dataclass(frozen=True)
class DatabaseInfo:
    """What a server says about itself, and about who has come."""

    database: str
    user: str
    schema: str | None
    now: datetime
    encoding: str
    is_read_only: bool
    can_create_tables: bool


class SetupError(Exception):
    """Set-up can't go on; the message is one line and says what to do."""


def check_ports(settings: Settings, command: str = "make setup") -> None:
    """See to it that all ports are free.

    :param command: what to run with another PORT when one is not.
    :raises SetupError: with the port that is not, what it is for, and ports that are free.
    """
    wanted = {settings.port: "the web server"}
    if settings.uses_mail_sink:
        wanted |= {settings.mail_port: "the mail sink", settings.sink_page_port: "the mail sink's page"}
    for port, purpose in wanted.items():
        try:
            _try_bind(port)
        except PermissionError as error:
            raise SetupError(
                f"port {port} for {purpose} is not for ordinary users; "
                f"choose another: {command} PORT={find_free_port(8000)}"
            ) from error
        except OSError as error:
            raise SetupError(
                f"port {port} for {purpose} is taken by another program; "
                f"choose another: {command} PORT={find_free_port(settings.port + 10)}"
            ) from error


def check_running_port(settings: Settings) -> None:
    """See to it that what runs already runs where it is wanted.

    :raises SetupError: when it runs on another port than the one that was asked for.
    """
    running = app_settings.read_saved_port(settings.instance_path)
    if running not in (None, settings.port):
        raise SetupError(
            f"Onecode runs on port {running} already; to have it on {settings.port}: "
            f"make down, then make setup PORT={settings.port}"
        )


def check_install_path() -> None:
    """See to it that the program lies where it can work. Alembic reads a % in the path of its folder as one of its own.

    :raises SetupError: when it does not.
    """
    if "%" in str(ROOT):
        raise SetupError(f"the path of the program has a % in it, {ROOT}; rename that folder")


def check_database(settings: Settings) -> list[str]:
    """See to it that the server of `DATABASE_URL` can be used, and that its database is ours or empty; return remarks.

    Nothing is written. An embedded server needs no such questions but whether its tables are of our time.

    :raises SetupError: when it can't be used.
    """
    try:
        with psycopg.connect(settings.libpq_url, connect_timeout=10, autocommit=True) as connection:
            _check_server_version(connection.info.server_version)
            facts = connection.cursor(row_factory=class_row(DatabaseInfo)).execute(SELECT_DATABASE_INFO).fetchone()
            ahead = (datetime.now(UTC) - facts.now).total_seconds() if facts else 0
            tables = [name for (name,) in connection.execute(SELECT_TABLES)]
            at = (
                connection.execute("select version_num from alembic_version").fetchone()
                if VERSION_TABLE in tables
                else None
            )
    except psycopg.Error as error:
        raise SetupError(explain_connection_error(error)) from error
    assert facts is not None  # noqa: S101
    _check_database_info(facts)
    _check_tables(facts, set(tables), at[0] if at else None)
    if abs(ahead) <= MAX_CLOCK_SKEW_SECONDS:
        return []
    return [
        f"this machine's clock is {_format_duration(abs(ahead))} "
        f"{'ahead of' if ahead > 0 else 'behind'} the database's; "
        "set it, or offers and mails come at the wrong time: timedatectl set-ntp true"
    ]


def collect_warnings(settings: Settings) -> list[str]:
    """What is probably not as it was meant, one line each: misspelt names in `.env`, a relay that is away."""
    found = []
    for name in app_settings.read_env_file():
        near = get_close_matches(name.upper(), app_settings.SETTING_NAMES, 1, 0.8)
        if near and name not in app_settings.SETTING_NAMES:
            found.append(f"{name} in .env is no setting; probably {near[0]} was meant")
    if not settings.uses_mail_sink:
        try:
            socket.create_connection((settings.mail_server, settings.mail_port), timeout=5).close()
        except OSError as error:
            reason = "there is no such name" if isinstance(error, socket.gaierror) else error.strerror or "no answer"
            found.append(
                f"the relay {settings.mail_server} port {settings.mail_port} can't be reached ({reason}); "
                "mails wait until it can: check MAIL_SERVER and MAIL_PORT"
            )
    return found


def _check_server_version(version: int) -> None:
    if version < MIN_POSTGRESQL_VERSION * 10_000:
        raise SetupError(
            f"PostgreSQL {MIN_POSTGRESQL_VERSION} or newer is needed, "
            f"and the server of DATABASE_URL is {version // 10_000}; "
            "upgrade it, or name another"
        )


def _check_database_info(facts: DatabaseInfo) -> None:
    if facts.encoding != "UTF8":
        raise SetupError(
            f"the database {facts.database} keeps {facts.encoding}, which has no place for most names; "
            "make one for Onecode: createdb --encoding=UTF8 --template=template0 onecode"
        )
    if facts.is_read_only:
        raise SetupError(f"the database {facts.database} only reads (a standby?); let DATABASE_URL name the primary")


def _check_tables(facts: DatabaseInfo, tables: set[str], at: str | None) -> None:
    migrations = ScriptDirectory(str(ROOT / "migrations"))
    if at and tables >= OWN_TABLES:
        if at not in {script.revision for script in migrations.walk_revisions()}:
            raise SetupError(
                f"the database {facts.database} is of a newer Onecode ({at}); "
                "upgrade the program, or restore a backup of before"
            )
    elif tables - {VERSION_TABLE}:
        others = ", ".join(sorted(tables - {VERSION_TABLE}))
        raise SetupError(
            f"the database {facts.database} has tables of another program ({shorten(others, 60, placeholder=' …')}); "
            "make one for Onecode and name it in DATABASE_URL: createdb onecode"
        )
    if at != migrations.get_current_head() and not facts.can_create_tables:
        raise SetupError(
            f"{facts.user} may not make tables in the database {facts.database}; as its owner, say: "
            f"grant create on schema {facts.schema or 'public'} to {facts.user}"
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
    """Return the first port of `start`, `start + 10`, … that is free together with the two after it."""
    for port in range(start, 65_000, 10):
        try:
            for one in range(port, port + 3):
                _try_bind(one)
        except OSError:
            continue
        return port
    return start
