"""Errors of the database: kinds, meaning for a commit, explanations."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import OperationalError

from tests.support.server_errors import build_server_error, build_unlogged_table_error
from webapp.core import database_health
from webapp.core.database_connections import CommitRefused, StatementTimeout
from webapp.core.database_errors import get_error_kind


def build_refused_commit(cause: BaseException | None) -> CommitRefused:
    """Build the error of a commit that was not sent because of an earlier error."""
    error = CommitRefused("no commits")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.DiskFull(), "disk_full"),
        (errors.ReadOnlySqlTransaction(), "read_only"),
        (build_unlogged_table_error(), "read_only"),
        (errors.FeatureNotSupported(), "other"),
        (errors.TooManyConnections(), "too_many_connections"),
        (errors.LockNotAvailable(), "lock_timeout"),
        (errors.QueryCanceled(), "statement_timeout"),
        (errors.SerializationFailure(), "conflict"),
        (errors.DeadlockDetected(), "conflict"),
        (errors.AdminShutdown(), "unavailable"),
        (errors.CannotConnectNow(), "unavailable"),
        (errors.ConnectionFailure(), "unavailable"),
        (psycopg.OperationalError("connection failed: Connection refused"), "unavailable"),
        (psycopg.InterfaceError("the connection is closed"), "unavailable"),
        (StatementTimeout("no response"), "no_response"),
        (build_refused_commit(None), "no_response"),
        (build_refused_commit(StatementTimeout("no response")), "no_response"),
        (build_refused_commit(errors.DiskFull()), "disk_full"),
        (errors.UndefinedTable(), "other"),
        (errors.IndexCorrupted(), "other"),
        # The program provokes and handles these.
        (errors.UniqueViolation(), None),
        (errors.InvalidDatetimeFormat(), None),
        (psycopg.ProgrammingError("the query has 1 placeholder but 0 parameters were passed"), None),
        (ValueError(), None),
        (None, None),
    ],
)
def test_an_error_has_the_kind_of_its_cause(error: BaseException | None, kind: str | None) -> None:
    assert get_error_kind(error) == kind


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (errors.DiskFull(), True),
        (build_refused_commit(errors.DiskFull()), True),
        (build_server_error(errors.DiskFull, severity="PANIC"), False),
        (build_refused_commit(StatementTimeout("no response")), False),
        (errors.OutOfMemory(), False),
        (None, False),
    ],
)
def test_a_full_disk_is_recognised_by_its_error_or_cause(error: BaseException | None, is_full: bool) -> None:
    assert database_health.is_disk_full(error) is is_full
    assert database_health.is_disk_full(OperationalError("", {}, error or ValueError())) is is_full


@pytest.mark.parametrize(
    ("error", "is_read_only"),
    [
        (errors.ReadOnlySqlTransaction(), True),
        (build_refused_commit(errors.ReadOnlySqlTransaction()), True),
        (build_unlogged_table_error(), True),
        (build_server_error(errors.FeatureNotSupported, function="transformColumnDefinition"), False),
        (errors.DiskFull(), False),
        (None, False),
    ],
)
def test_a_standby_is_recognised_by_its_errors(error: BaseException | None, is_read_only: bool) -> None:
    assert database_health.is_read_only(error) is is_read_only


@pytest.mark.parametrize(
    ("error", "is_rejected"),
    [
        (build_refused_commit(None), True),
        (build_server_error(errors.DiskFull), True),
        (build_server_error(errors.SerializationFailure), True),
        # The server may have written the commit before.
        (build_server_error(errors.DiskFull, severity="PANIC"), False),
        (build_server_error(errors.AdminShutdown, severity="FATAL"), False),
        # A pooler that has lost the server does not know whether it has committed.
        (build_server_error(errors.ConnectionFailure), False),
        (build_server_error(errors.ProtocolViolation), False),
        (psycopg.OperationalError("server closed the connection unexpectedly"), False),
        (StatementTimeout("no response"), False),
    ],
)
def test_a_failed_commit_has_saved_nothing_only_if_the_server_says_so(error: psycopg.Error, is_rejected: bool) -> None:
    assert database_health.is_commit_rejected(error) is is_rejected
    wrapped = OperationalError("commit", {}, error)
    assert not database_health.is_commit_unconfirmed(wrapped)
    error.__dict__["is_of_commit"] = True
    assert database_health.is_commit_unconfirmed(wrapped) is not is_rejected


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (psycopg.OperationalError("server closed the connection unexpectedly"), True),
        (errors.AdminShutdown(), True),
        (errors.CrashShutdown(), True),
        (errors.ConnectionFailure(), True),
        (psycopg.OperationalError("connection failed: Connection refused"), False),
        (psycopg.OperationalError("connection timeout expired"), False),
        (errors.CannotConnectNow(), False),
        (errors.TooManyConnections(), False),
        (StatementTimeout("no response"), False),
        (build_refused_commit(None), False),
        (errors.UndefinedTable(), False),
    ],
)
def test_only_an_open_connection_can_be_lost(error: psycopg.Error, is_lost: bool) -> None:
    assert database_health.is_connection_lost(error) is is_lost


FAILED = 'connection failed: connection to server at "10.0.0.1", port 5433 failed: '


@pytest.mark.parametrize(
    ("message", "explanation"),
    [
        (f"{FAILED}Connection refused", "nothing answers at 10.0.0.1 port 5433, the address in URL; "),
        (f"{FAILED}No route to host", "nothing answers at 10.0.0.1 port 5433, the address in URL; "),
        (f"{FAILED}Connection timed out", "nothing answers at 10.0.0.1 port 5433, the address in URL; "),
        ("connection timeout expired", "nothing answers at the address in URL; is it reachable from this host?"),
        (
            f'{FAILED}FATAL:  password authentication failed for user "shop"',
            "the password for shop in URL is wrong",
        ),
        (
            f'{FAILED}FATAL:  role "shop" does not exist',
            "there is no user shop on the server of URL; create it: ",
        ),
        (
            f'{FAILED}FATAL:  database "shop" does not exist',
            "there is no database shop on the server of URL; ",
        ),
        (
            f'{FAILED}FATAL:  no pg_hba.conf entry for host "::1", user "u", database "d", no encryption',
            "the database rejects unencrypted connections; add ?sslmode=require to URL, ",
        ),
        (
            f'{FAILED}FATAL:  no pg_hba.conf entry for host "::1", user "u", database "d", SSL off',
            "the database rejects unencrypted connections; add ?sslmode=require to URL, ",
        ),
        (
            f'{FAILED}FATAL:  no pg_hba.conf entry for host "::1", user "u", database "d", SSL encryption',
            "the database rejects connections from this host; ",
        ),
        (
            f"{FAILED}server does not support SSL, but SSL was required",
            "sslmode requires SSL, which the server of URL ",
        ),
        (f"{FAILED}session is read-only", "the server of URL does not accept writes (a standby?); "),
        (
            f"{FAILED}server is in hot standby mode",
            "the server of URL does not accept writes (a standby?); ",
        ),
        ('definition of service "shop" not found', "there is no service shop in the service file of libpq; "),
        ('service file "/etc/pg" not found', "the service file /etc/pg of libpq does not exist; "),
        (
            f"{FAILED}FATAL:  unsupported startup parameter in options: search_path",
            "the connection pooler of URL rejects the parameter search_path; remove it from URL, ",
        ),
        ("permission denied for schema public", "the user of URL has no permission for schema public; grant it, "),
        (
            f"{FAILED}FATAL:  something new\nLINE 1",
            f"the database of URL cannot be used: {FAILED}FATAL: something new",
        ),
    ],
)
def test_a_failed_connection_is_explained_in_one_line_with_its_setting(message: str, explanation: str) -> None:
    error = psycopg.OperationalError(message)
    error.__dict__["setting"] = "URL"

    line = database_health.explain_connection_error(error)

    assert line.startswith(explanation)
    assert "\n" not in line
