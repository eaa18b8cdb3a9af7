"""Lists, pages and counts of customers, audiences and imports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import func, insert, select, text, update

from tests.support.factories import MakeCustomer
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.imports import queries as import_queries
from webapp.customers.models import (
    ERASED_EMAIL_PLACEHOLDER,
    Audience,
    AudienceMember,
    Customer,
    CustomerImport,
    RejectedRow,
    Suppression,
)
from webapp.customers.suppressions import queries as suppression_queries

PAST = datetime(2026, 1, 1, tzinfo=UTC)


def add_audience(name: str, *customers: Customer) -> int:
    audience = Audience(name=name)
    db.session.add(audience)
    db.session.flush()
    db.session.add_all(AudienceMember(audience_id=audience.id, customer_id=customer.id) for customer in customers)
    db.session.commit()
    return audience.id


def add_import(**values: object) -> int:
    row = CustomerImport(filename="customers.csv", media_type="text/csv", **values)
    db.session.add(row)
    db.session.commit()
    return row.id


def test_audiences_are_sorted_by_name(make_customer: MakeCustomer) -> None:
    ada, bob = make_customer("ada@example.com"), make_customer("bob@example.com")
    for name, members in (("VIP", (ada, bob)), ("Austria", (ada,)), ("Norway", ()), ("Berlin", (bob,))):
        add_audience(name, *members)

    assert [a.name for a in customer_queries.list_audiences()] == ["Austria", "Berlin", "Norway", "VIP"]
    assert [a.name for a in customer_queries.list_customer_audiences(ada.id)] == ["Austria", "VIP"]
    assert [(a.name, a.member_count, a.is_exact) for a in customer_queries.list_audience_summaries()] == [
        ("Austria", 1, True),
        ("Berlin", 1, True),
        ("Norway", 0, True),
        ("VIP", 2, True),
    ]


def test_the_customers_of_an_audience_are_paged_by_id(make_customer: MakeCustomer) -> None:
    rows = [make_customer(f"c{n}@example.com", erased_at=PAST if n == 2 else None) for n in range(5)]
    # Joined in another order than that of the ids.
    audience_id = add_audience("VIP", *(rows[n] for n in (4, 0, 3, 2)))
    add_audience("News", *rows)

    def ids(audience: int | None, after: int, limit: int = 9) -> list[int]:
        return [
            [row.id for row in rows].index(found)
            for found in customer_queries.list_customer_ids_after(audience, after, limit)
        ]

    assert (ids(None, 0), ids(audience_id, 0)) == ([0, 1, 3, 4], [0, 3, 4])
    assert (ids(None, rows[1].id), ids(audience_id, rows[0].id)) == ([3, 4], [3, 4])
    assert (ids(None, 0, 2), ids(audience_id, 0, 2)) == ([0, 1], [0, 3])


def test_erased_customers_are_not_counted(make_customer: MakeCustomer) -> None:
    rows = [
        make_customer("ada@example.com", suppressed="bounced"),
        make_customer("bob@example.com"),
        make_customer("eve@example.com", erased_at=PAST),
    ]
    audience_id = add_audience("VIP", rows[0], rows[2])

    assert customer_queries.count_audience_members(None) == customer_queries.AudienceTotals(2, 1)
    assert customer_queries.count_audience_members(audience_id) == customer_queries.AudienceTotals(1, 1)
    assert customer_queries.count_customers() == customer_queries.CustomerCount(2, True)
    found = customer_queries.list_customers_by_ids([rows[2].id, rows[1].id, rows[0].id])
    assert [row.id for row in found] == [rows[0].id, rows[1].id]


@pytest.mark.parametrize(
    ("limit", "is_analysed", "value", "is_exact"),
    [(4, False, 3, True), (3, False, 3, False), (3, True, 5, False), (5, True, 5, False), (6, True, 3, True)],
)
def test_many_customers_are_estimated(
    make_customer: MakeCustomer,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    is_analysed: bool,
    value: int,
    is_exact: bool,
) -> None:
    monkeypatch.setattr(customer_queries, "EXACT_COUNT_LIMIT", limit)
    db.session.execute(text("truncate customer cascade"))
    db.session.execute(text("analyze customer"))
    # The statistics count erased customers, too.
    for n in range(5):
        make_customer(f"c{n}@example.com", erased_at=PAST if n > 2 else None)
    if is_analysed:
        db.session.execute(text("analyze customer"))
        db.session.commit()

    assert customer_queries.count_customers() == customer_queries.CustomerCount(value, is_exact)


def test_an_erasure_is_recent_for_one_hour(app: Flask) -> None:
    # now() is constant within a transaction.
    now = db.session.execute(select(func.now())).scalar_one()
    ids = []
    for n, age in enumerate((timedelta(), timedelta(minutes=59, seconds=59), timedelta(hours=1), timedelta(hours=2))):
        ids.append(100 - n)
        values = {"email": f"erased {ids[n]}", "email_as_given": ERASED_EMAIL_PLACEHOLDER, "name": ""}
        db.session.execute(insert(Customer).values(id=ids[n], erased_at=now - age, **values))

    assert customer_queries.list_recently_erased_ids() == [ids[1], ids[0]]


def test_a_locked_customer_is_reloaded_and_stays_locked_until_the_transaction_ends(
    make_customer: MakeCustomer,
) -> None:
    ada = make_customer(name="Ada")
    assert ada.name == "Ada"
    with db.engine.begin() as other:
        other.execute(update(Customer).values(name="Augusta Ada"))

    locked = customer_queries.lock_customer(ada.id)

    assert locked is not None
    assert locked.name == "Augusta Ada"
    with db.engine.connect() as other:
        unlocked = select(Customer.id).with_for_update(skip_locked=True)
        assert other.scalars(unlocked).all() == []
        db.session.rollback()
        assert other.scalars(unlocked).all() == [ada.id]


def test_imports_are_listed_newest_first(app: Flask) -> None:
    ids = [add_import() for _ in range(4)]

    assert [row.id for row in import_queries.list_imports()] == ids[::-1]
    assert [row.id for row in import_queries.list_imports(limit=2)] == [ids[3], ids[2], ids[1]]
    assert [row.id for row in import_queries.list_imports(before=ids[2])] == [ids[1], ids[0]]


def test_rejected_rows_are_paged_by_line_and_then_by_id(app: Flask) -> None:
    import_id, other_id = add_import(), add_import()
    for owner, line in ((import_id, 7), (import_id, 3), (other_id, 3), (import_id, 3), (import_id, 9), (import_id, 3)):
        db.session.execute(
            insert(RejectedRow).values(import_id=owner, line=line, code="email_invalid", detail="", row="")
        )
    db.session.commit()

    pages: list[list[tuple[int, int]]] = []
    for _ in range(4):
        after = pages[-1][-1] if pages else None
        rows = import_queries.list_rejected_rows(import_id, after, limit=2)[:2]
        pages.append([(row.line, row.id) for row in rows])

    first_id = pages[0][0][1]
    assert pages == [
        [(3, first_id), (3, first_id + 2)],
        [(3, first_id + 4), (7, first_id - 1)],
        [(9, first_id + 3)],
        [],
    ]
    assert len(import_queries.list_rejected_rows(import_id, limit=2)) == 3
    lines = b"".join(import_queries.export_rejected_rows(import_id)).decode().splitlines()
    assert [line.partition(",")[0] for line in lines] == ["line", "3", "3", "3", "7", "9"]


def test_an_import_without_a_worker_can_be_claimed_and_a_late_upload_is_stalled(app: Flask) -> None:
    now = db.session.execute(select(func.now())).scalar_one()
    names = {}
    for status in ("receiving", "queued", "running", "done", "failed"):
        for name, lease_until in (
            ("past", now - timedelta(microseconds=1)),
            ("now", now),
            ("future", now + timedelta(microseconds=1)),
        ):
            row = CustomerImport(filename="a", media_type="text/csv", status=status, lease_until=lease_until)
            db.session.add(row)
            db.session.flush()
            names[row.id] = f"{status} {name}"

    assert [names[row_id] for row_id in import_queries.list_claimable_import_ids()] == [
        "queued past",
        "queued now",
        "queued future",
        "running past",
        "running now",
    ]
    assert [names[row_id] for row_id in import_queries.list_stalled_upload_ids()] == ["receiving past"]


def test_the_export_starts_with_the_oldest_customer(make_customer: MakeCustomer) -> None:
    for name in ("zoe", "ada", "mia"):
        make_customer(f"{name}@example.com", name="=1+1", suppressed="bounced" if name == "ada" else "")
    make_customer("gone@example.com", erased_at=PAST)
    # Moves its row behind the others.
    db.session.execute(text("update customer set name = name where email = 'zoe@example.com'"))
    db.session.commit()

    lines = b"".join(customer_queries.export_customers(None)).decode().splitlines()

    assert [line.split(",")[:2] for line in lines[1:]] == [
        ["zoe@example.com", "'=1+1"],
        ["ada@example.com", "'=1+1"],
        ["mia@example.com", "'=1+1"],
    ]
    assert ["bounced" in line for line in lines] == [False, False, True, False]


def test_exports_have_utc_times_and_crlf_line_ends(make_customer: MakeCustomer) -> None:
    at = datetime(2026, 5, 1, 12, 30, 0, 120, tzinfo=UTC)
    customer = make_customer(created_at=at)
    db.session.add(Suppression(email=customer.email, reason="bounced", source="tests", at=at))
    import_id = add_import()
    db.session.add(RejectedRow(import_id=import_id, line=1, code="email_invalid", detail="", row="two\nlines"))
    db.session.commit()

    assert b"".join(customer_queries.export_customers(None)) == (
        b"email,name,source_id,locale,created_at,do_not_mail,do_not_mail_since\r\n"
        b"ada@example.com,Ada Lovelace,,,2026-05-01T12:30:00Z,bounced,2026-05-01T12:30:00Z\r\n"
    )
    assert b"".join(suppression_queries.export_suppressions()) == (
        b"email,reason,since,source\r\nada@example.com,bounced,2026-05-01T12:30:00Z,tests\r\n"
    )
    assert b"".join(import_queries.export_rejected_rows(import_id)) == (
        b'line,code,detail,row\r\n1,email_invalid,"","two\nlines"\r\n'
    )


def test_suppressions_are_paged_by_address(app: Flask) -> None:
    for email in ("d@example.com", "a@example.com", "c@example.com", "b@example.com"):
        db.session.add(Suppression(email=email, reason="bounced", source="tests"))
    db.session.commit()

    def page(after: str = "") -> list[str]:
        return [row.email[0] for row in suppression_queries.list_suppressions(after=after, limit=2)]

    assert (page(), page("b@example.com"), page("d@example.com")) == (["a", "b", "c"], ["c", "d"], [])
    lines = b"".join(suppression_queries.export_suppressions()).decode().splitlines()
    assert [line[0] for line in lines[1:]] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("q", ["b@example.com", " B@EX"])
def test_a_search_of_suppressions_finds_the_start_of_an_address(app: Flask, q: str) -> None:
    for email in ("a@example.com", "b@example.com", "bb@example.com"):
        db.session.add(Suppression(email=email, reason="bounced", source="tests"))
    db.session.commit()

    assert [row.email for row in suppression_queries.list_suppressions(q)] == ["b@example.com"]
    assert [row.email for row in suppression_queries.list_suppressions(q, "bounced")] == ["b@example.com"]
    assert suppression_queries.list_suppressions(q, "complained") == []
