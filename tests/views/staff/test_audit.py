"""The pages of the audit log, and their exports."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select

from webapp.accounts import audit
from webapp.accounts.models import AccessCount, AuditEntry
from webapp.core import log_pages
from webapp.core.extensions import db

SignIn = Callable[..., FlaskClient]
AT = datetime(2026, 5, 1, 12, tzinfo=UTC)


def record(subject: str = "SUMMER25", actor: str = "ann@example.com", action: str = "offer.changed") -> None:
    db.session.add(
        AuditEntry(actor=actor, action=action, subject=subject, at=AT, address="203.0.113.7", staff_session_id=12)
    )
    db.session.commit()


def count(kind: str, account: str = "", address: str = "", subject: str = "") -> None:
    values = {"account": account, "address": address, "subject": subject, "staff_session_id": 0}
    db.session.add(AccessCount(period=AT, kind=kind, n=1234, **values))
    db.session.commit()


def test_older_entries_follow_and_the_first_page_can_be_reached_again(sign_in: SignIn) -> None:
    client = sign_in("admin")
    for number in range(1, 121):
        audit.record_audit_entry("ann", "something.done", f"thing {number:03}")
    db.session.commit()
    first = client.get("/settings/audit").text
    next_link = re.search(r'rel="next" href="([^"]+)"', first)
    assert next_link
    second = client.get(next_link[1]).text
    first_link = re.search(r'class="page-link" href="([^"]+)"[^>]*>.*?First page', second, re.DOTALL)
    assert first_link

    shown = [re.findall(r"thing (\d+)", page) for page in (first, second, client.get(first_link[1]).text)]

    assert [(page[0], page[-1]) for page in shown] == [("120", "071"), ("070", "021"), ("120", "071")]


def test_an_entry_shows_address_and_session(sign_in: SignIn) -> None:
    record()

    page = " ".join(sign_in("admin").get("/settings/audit").text.split())

    assert "203.0.113.7, session 12" in page


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("", ["SUMMER25", "customer 1"]),
        ("?q=summer", ["SUMMER25"]),
        ("?q=SUMMER25", ["SUMMER25"]),
        ("?group=customer", ["customer 1"]),
        ("?actor=ann@example.com", ["SUMMER25"]),
        ("?first=2026-05-02", []),
        ("?first=2026-05-01&last=2026-05-01", ["SUMMER25", "customer 1"]),
        ("?first=nonsense", []),
        ("?group=nonsense", []),
        ("?q=%00", ["SUMMER25", "customer 1"]),
    ],
)
def test_page_and_export_have_the_entries_that_match(sign_in: SignIn, query: str, shown: list[str]) -> None:
    record()
    record("customer 1", "bob@example.com", "customer.changed")
    client = sign_in("admin")

    for path in ("/settings/audit", "/settings/audit.csv"):
        response = client.get(path + query, buffered=True, follow_redirects=True)
        assert response.status_code == 200
        body = re.sub(r"<(form|p) .*?</\1>", "", response.text, flags=re.DOTALL)
        assert [subject for subject in ("SUMMER25", "customer 1") if subject in body] == shown


def test_a_search_for_a_whole_subject_says_so(sign_in: SignIn) -> None:
    record("customer 1")
    record("customer 17")

    page = sign_in("admin").get("/settings/audit?q=customer 1").text

    assert "exactly “customer 1”" in page
    assert "customer 17" not in page


def test_a_search_that_stopped_can_be_continued(sign_in: SignIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_pages, "SCAN_LIMIT", 3)
    record("WINTER26")
    for _number in range(3):
        record()
    client = sign_in("admin")

    page = client.get("/settings/audit?q=winter").text

    link = re.search(r'href="([^"]+cursor=[^"]+)"', page)
    assert link
    assert "Search further back" in page
    assert "WINTER26" in client.get(link[1].replace("&amp;", "&")).text


@pytest.mark.parametrize(
    ("path", "subject"), [("/settings/audit.csv", "audit log"), ("/settings/audit/access.csv", "access")]
)
def test_exports_are_recorded(sign_in: SignIn, path: str, subject: str) -> None:
    response = sign_in("admin").get(f"{path}?q=customer 1", buffered=True)

    entry = db.session.execute(select(AuditEntry.actor, AuditEntry.action, AuditEntry.subject, AuditEntry.detail)).one()
    assert response.mimetype == "text/csv"
    assert tuple(entry) == ("admin@example.com", "audit.exported", subject, {"filter": "q=customer 1"})


@pytest.mark.parametrize("path", ["/settings/audit.csv", "/settings/audit/access.csv"])
def test_the_entry_of_an_export_contains_no_email_address(sign_in: SignIn, path: str) -> None:
    sign_in("admin").get(f"{path}?q=ada@example.com&actor=eve@example.com&first=2026-05-01", buffered=True)

    detail = db.session.scalar(select(AuditEntry.detail)) or {}

    assert "example.com" not in detail["filter"]
    assert "first=2026-05-01" in detail["filter"]


@pytest.mark.parametrize("path", ["/settings/audit", "/settings/audit/access"])
@pytest.mark.parametrize("query", ["first=nonsense", "kind=nonsense&group=nonsense"])
def test_an_invalid_filter_exports_nothing(sign_in: SignIn, path: str, query: str) -> None:
    response = sign_in("admin").get(f"{path}.csv?{query}")

    assert response.status_code == 302
    assert response.headers["Location"].startswith(f"{path}?")
    assert db.session.scalars(select(AuditEntry.action)).all() == []


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("first=0001-01-01", True),
        ("first=2300-01-01", False),
        ("last=9999-12-31", True),
        ("last=1900-01-01", False),
    ],
)
def test_days_far_in_the_past_or_future_are_filters(sign_in: SignIn, query: str, shown: bool) -> None:
    record()

    assert ("SUMMER25" in sign_in("admin").get(f"/settings/audit?{query}").text) is shown


def test_counts_are_shown_with_their_labels(sign_in: SignIn) -> None:
    count("sign_in.failed", "ann@example.com", "203.0.113.7")
    count("sign_in.failed")
    count("customer.viewed", "bob@example.com", "203.0.113.7", "customer 1")
    count("earlier.kind")

    page = sign_in("admin").get("/settings/audit/access").text

    for text in ("Sign-in failed", "ann@example.com", "203.0.113.7", "1,234", "No account", "Many addresses"):
        assert text in page
    assert 'href="/customers/1"' in page
    assert "earlier.kind" in page


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("?kind=customer.viewed", ["bob@example.com"]),
        ("?q=ANN", ["ann@example.com"]),
        ("?q=customer 1", ["bob@example.com"]),
        ("?kind=nonsense", []),
        ("?last=2026-04-30", []),
    ],
)
def test_page_and_export_have_the_counts_that_match(sign_in: SignIn, query: str, shown: list[str]) -> None:
    count("sign_in.failed", "ann@example.com", "203.0.113.7")
    count("customer.viewed", "bob@example.com", "203.0.113.7", "customer 1")
    client = sign_in("admin")

    for path in ("/settings/audit/access", "/settings/audit/access.csv"):
        text = client.get(path + query, buffered=True).text
        assert [account for account in ("ann@example.com", "bob@example.com") if account in text] == shown


@pytest.mark.parametrize("path", ["/settings/audit", "/settings/audit/access"])
@pytest.mark.parametrize(("cursor", "status"), [("AAAA", 422), ("OTk5OTk5OTk5OTk5OTk5OTk5OTk.MQ", 422), ("", 200)])
def test_an_invalid_cursor_is_refused(sign_in: SignIn, path: str, cursor: str, status: int) -> None:
    assert sign_in("admin").get(f"{path}?cursor={cursor}").status_code == status
