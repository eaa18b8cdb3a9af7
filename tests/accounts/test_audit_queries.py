"""Pages, filters and exports of the audit log."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from flask import Flask

from tests.support.query_plans import explain_statements, plan_nodes
from webapp.accounts import audit_queries
from webapp.accounts.audit_queries import AccessFilter, AuditFilter
from webapp.accounts.models import AccessCount, AuditEntry
from webapp.core import log_pages
from webapp.core.extensions import db
from webapp.core.log_pages import LogPosition
from webapp.core.settings import Settings

START = datetime(2026, 5, 1, tzinfo=UTC)
ENTRIES = [
    ("ann@example.com", "customer.changed", "customer 1", "203.0.113.7"),
    ("API key Till", "customers.exported", "all customers", "198.51.100.1"),
    ("bob@example.com", "offer.changed", "SUMMER25", None),
    ("ann@example.com", "offer.paused", "SUMMER25", None),
    ("bob@example.com", "customer.changed", "customer 17", None),
    ("ann@example.com", "staff.disabled", "BOB@example.com", None),
    ("the customer", "customer.unsubscribed", "customer 1", None),
]


@pytest.fixture
def entries(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ENTRIES`, one on each day of May, and pages of three."""
    monkeypatch.setattr(log_pages, "LOG_PAGE_SIZE", 3)
    db.session.add_all(
        AuditEntry(actor=actor, action=action, subject=subject, address=address, at=START + timedelta(days=day))
        for day, (actor, action, subject, address) in enumerate(ENTRIES)
    )
    db.session.commit()


def found_days(audit_filter: AuditFilter) -> list[int]:
    """Return the indexes in `ENTRIES` of all pages of a filter."""
    days: list[int] = []
    position: LogPosition | None = None
    while True:
        page = audit_queries.load_audit_page(audit_filter, position)
        days += [(row.at - START).days for row in page.rows]
        position = page.next_position
        if position is None:
            return days


def test_pages_follow_each_other_newest_first(entries: None) -> None:
    first = audit_queries.load_audit_page(AuditFilter())

    assert [(row.at - START).days for row in first.rows] == [6, 5, 4]
    assert first.next_position == LogPosition(first.rows[-1].at, first.rows[-1].id)
    assert not first.is_cut_short
    assert found_days(AuditFilter()) == [6, 5, 4, 3, 2, 1, 0]


def test_entries_of_the_same_time_are_on_one_page_each(entries: None) -> None:
    db.session.add_all(AuditEntry(actor="x", action="shop.saved", subject=str(n), at=START) for n in range(4))
    db.session.commit()

    first = audit_queries.load_audit_page(AuditFilter(actor="x"))
    second = audit_queries.load_audit_page(AuditFilter(actor="x"), first.next_position)
    subjects = [row.subject for page in (first, second) for row in page.rows]

    assert subjects == ["3", "2", "1", "0"]
    lines = b"".join(audit_queries.export_audit_entries(AuditFilter(actor="x"))).decode()
    assert [row["subject"] for row in csv.DictReader(io.StringIO(lines))] == subjects


@pytest.mark.parametrize(
    ("values", "days"),
    [
        ({"group": "customer"}, [6, 4, 1, 0]),
        ({"group": "offer"}, [3, 2]),
        ({"group": "off"}, []),
        ({"actor": "ann@example.com"}, [5, 3, 0]),
        ({"actor": "ann"}, []),
        ({"actor": "ann@example.com", "group": "offer"}, [3]),
        ({"q": "customer 1"}, [6, 0]),
        ({"q": "customer 1", "actor": "ann@example.com", "group": "customer"}, [0]),
        ({"q": "Bob@"}, [5, 4, 2]),
        ({"q": "SUMMER"}, [3, 2]),
        ({"q": "%"}, []),
        ({"q": "203.0.113.7"}, [0]),
        ({"q": "till"}, [1]),
        ({"since": START + timedelta(days=5)}, [6, 5]),
        ({"until": START + timedelta(days=2)}, [1, 0]),
        ({"q": "bob", "since": START + timedelta(days=3), "until": START + timedelta(days=5)}, [4]),
    ],
)
def test_entries_are_filtered(entries: None, values: dict[str, Any], days: list[int]) -> None:
    assert found_days(AuditFilter(**values)) == days

    lines = b"".join(audit_queries.export_audit_entries(AuditFilter(**values))).decode()
    assert [row["at"] for row in csv.DictReader(io.StringIO(lines))] == [
        f"2026-05-{day + 1:02}T00:00:00Z" for day in days
    ]


def test_the_last_entry_of_an_action_on_a_subject_is_found(entries: None) -> None:
    for hours in (1, -1):
        time = START + timedelta(hours=hours)
        db.session.add(AuditEntry(actor="x", action="customer.changed", subject="customer 1", at=time))
        db.session.commit()

    found = audit_queries.find_last_audit_entry("customer.changed", "customer 1")

    assert found is not None
    assert found.at == START + timedelta(hours=1)
    assert audit_queries.find_last_audit_entry("customer.changed", "SUMMER25") is None


def test_a_search_stops_and_continues_where_it_stopped(entries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_pages, "SCAN_LIMIT", 4)

    page = audit_queries.load_audit_page(AuditFilter(q="till"))

    assert page.rows == []
    assert page.is_cut_short
    assert page.next_position is not None
    assert (page.next_position.at - START).days == 3
    assert found_days(AuditFilter(q="till")) == [1]


@pytest.mark.parametrize("microseconds", [0, 1_777_593_600_000_000, 2**63 - 1])
def test_every_position_of_a_cursor_is_a_time(entries: None, microseconds: int) -> None:
    position = LogPosition.from_integers(microseconds, 1)

    audit_queries.load_audit_page(AuditFilter(), position)

    assert microseconds > 2**62 or position.to_integers() == (microseconds, 1)


def test_exports_escape_formulas(app: Flask) -> None:
    origin: dict[str, Any] = {"address": "203.0.113.7", "staff_session_id": 12, "api_key_id": 7}
    values = {"actor": "=cmd", "action": "audience.created", "subject": "+1", "detail": {"id": 1}}
    db.session.add(AuditEntry(at=START, **values, **origin))
    db.session.commit()

    text = b"".join(audit_queries.export_audit_entries(AuditFilter())).decode()

    assert text == (
        "at,actor,action,subject,detail,address,session,api_key\r\n"
        '2026-05-01T00:00:00Z,\'=cmd,audience.created,\'+1,"{""id"": 1}",203.0.113.7,12,7\r\n'
    )


@pytest.fixture
def access_rows(app: Flask) -> None:
    """Counts of one minute each."""
    rows = [
        ("sign_in.failed", "ann@example.com", "203.0.113.7", 0, "", 40),
        ("sign_in.failed", "", "", 0, "", 1_000_000),
        ("customer.viewed", "bob@example.com", "203.0.113.7", 12, "customer 1", 2),
    ]
    db.session.add_all(
        AccessCount(
            period=START + timedelta(minutes=n), kind=kind, account=account, address=address,
            staff_session_id=session, subject=subject, n=count,
        )
        for n, (kind, account, address, session, subject, count) in enumerate(rows)
    )  # fmt: skip
    db.session.commit()


@pytest.mark.parametrize(
    ("values", "minutes"),
    [
        ({}, [2, 1, 0]),
        ({"kind": "sign_in.failed"}, [1, 0]),
        ({"q": "ANN"}, [0]),
        ({"q": "203.0.113"}, [2, 0]),
        ({"q": "customer 1"}, [2]),
        ({"kind": "sign_in.failed", "q": "203.0.113"}, [0]),
        ({"since": START + timedelta(minutes=1), "until": START + timedelta(minutes=2)}, [1]),
    ],
)
def test_counts_are_filtered(access_rows: None, values: dict[str, Any], minutes: list[int]) -> None:
    page = audit_queries.load_access_page(AccessFilter(**values))
    lines = b"".join(audit_queries.export_access_counts(AccessFilter(**values))).decode()

    assert [(row.period - START).seconds // 60 for row in page.rows] == minutes
    assert [row["since"] for row in csv.DictReader(io.StringIO(lines))] == [
        f"2026-05-01T00:{minute:02}:00Z" for minute in minutes
    ]


def test_the_views_of_a_customer_are_added_up_by_hour_oldest_first(app: Flask) -> None:
    rows = [
        (1, "customer.viewed", "ann@example.com", "customer 1", 2),
        (0, "redemption.viewed", "ann@example.com", "customer 1", 1),
        (0, "customer.viewed", "ann@example.com", "customer 1", 3),
        (0, "customer.viewed", "bob@example.com", "customer 1", 4),
        (0, "customer.viewed", "ann@example.com", "customer 17", 5),
    ]
    db.session.add_all(
        AccessCount(
            period=START + timedelta(hours=hour), kind=kind, account=account, address="", staff_session_id=0,
            subject=subject, n=n,
        )
        for hour, kind, account, subject, n in rows
    )  # fmt: skip
    db.session.commit()

    assert list(audit_queries.iter_customer_views(1)) == [
        (START, "customer.viewed", 7),
        (START, "redemption.viewed", 1),
        (START + timedelta(hours=1), "customer.viewed", 2),
    ]


def test_counts_are_exported_with_all_columns(access_rows: None) -> None:
    assert b"".join(audit_queries.export_access_counts(AccessFilter())).decode() == (
        "since,kind,account,address,subject,session,count\r\n"
        "2026-05-01T00:02:00Z,customer.viewed,bob@example.com,203.0.113.7,customer 1,12,2\r\n"
        '2026-05-01T00:01:00Z,sign_in.failed,"","","",,1000000\r\n'
        '2026-05-01T00:00:00Z,sign_in.failed,ann@example.com,203.0.113.7,"",,40\r\n'
    )


def test_pages_of_counts_follow_each_other(access_rows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_pages, "LOG_PAGE_SIZE", 2)
    first = audit_queries.load_access_page(AccessFilter())
    second = audit_queries.load_access_page(AccessFilter(), first.next_position)
    assert [row.n for page in (first, second) for row in page.rows] == [2, 1_000_000, 40]
    assert second.next_position is None


@pytest.fixture(scope="module")
def large_log(session_app: Flask, test_settings: Settings) -> Iterator[psycopg.Connection]:
    """A hundred thousand entries; emptied afterwards."""
    disable = "alter table audit_entry disable trigger user"
    empty = f"{disable}; truncate audit_entry; {disable.replace('disable', 'enable')}; truncate access_count"
    with session_app.app_context(), psycopg.connect(test_settings.libpq_url, autocommit=True) as connection:
        connection.execute(empty)
        connection.execute(
            "insert into audit_entry (at, actor, action, subject)"
            " select timestamptz '2026-01-01' + n * interval '1 minute',"
            "   case when n % 10000 = 0 then 'rare@example.com' else 'ann@example.com' end,"
            "   case when n % 5000 = 0 then 'shop.saved' else 'offer.changed' end, 'offer ' || n % 1000"
            " from generate_series(1, 100000) n"
        )
        connection.execute(
            "insert into access_count (period, kind, account, address, staff_session_id, subject, n)"
            " select timestamptz '2026-01-01' + n * interval '1 minute', 'sign_in.failed', '', n::text, 0, '', 1"
            " from generate_series(1, 100000) n"
        )
        connection.execute("vacuum (analyze) audit_entry, access_count")
        yield connection
        db.session.remove()
        connection.execute(empty)


@pytest.mark.parametrize(
    ("values", "max_rows"),
    [
        ({}, 60),
        ({"actor": "rare@example.com"}, 60),
        ({"group": "shop"}, 60),
        ({"q": "offer 7"}, 250),
        ({"until": START - timedelta(days=100)}, 60),
        ({"actor": "ann@example.com", "group": "shop"}, 20_100),
        ({"q": "in no entry"}, 20_100),
    ],
)
def test_a_page_reads_few_entries(large_log: psycopg.Connection, values: dict[str, Any], max_rows: int) -> None:
    plans = explain_statements(large_log, lambda: audit_queries.load_audit_page(AuditFilter(**values)))

    assert_reads_at_most(max_rows, plans)


@pytest.mark.parametrize(
    ("values", "max_rows"),
    [({}, 60), ({"q": "in no row"}, 20_100), ({"kind": "csrf.refused"}, 20_100), ({"until": START}, 20_100)],
)
def test_a_page_of_counts_reads_few_rows(large_log: psycopg.Connection, values: dict[str, Any], max_rows: int) -> None:
    plans = explain_statements(large_log, lambda: audit_queries.load_access_page(AccessFilter(**values)))

    assert_reads_at_most(max_rows, plans)


def assert_reads_at_most(max_rows: int, plans: list[tuple[str, dict[str, Any]]]) -> None:
    for statement, plan in plans:
        for node in plan_nodes(plan):
            if "Relation Name" in node or node["Node Type"].startswith("Bitmap Index"):
                read = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                assert read <= max_rows, (read, statement, node)
