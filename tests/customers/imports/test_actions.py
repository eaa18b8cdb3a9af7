"""Imports from the first chunk to the last row, on the real database."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import psycopg
import pytest
from flask import Flask, current_app
from sqlalchemy import func, literal_column, select, update

from tests.support.factories import MakeCustomer
from tests.support.imports import ImportFileFixture, customers_by_email, import_counts, rejected_rows
from tests.support.redemptions import count_lock_waiters
from tests.support.rejected_writes import rejected_writes
from webapp.accounts.models import AuditEntry
from webapp.core import database_timeouts, task_queue
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db, huey
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import claims as import_claims
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports import staging
from webapp.customers.imports.parser import NDJSON
from webapp.customers.models import Audience, AudienceMember, Customer, CustomerImport, ImportChunk, Suppression
from webapp.customers.validation import CustomerValues
from webapp.tasks import customers as customer_tasks

Receive = Callable[..., int]


def make_file(number: int, start: int = 0) -> str:
    return "email,name,source_id\n" + "".join(
        f"customer{n}@example.com,Customer {n},C{n}\n" for n in range(start, start + number)
    )


def audience_members(name: str) -> set[str]:
    return set(
        db.session.scalars(
            select(Customer.email)
            .join(AudienceMember, AudienceMember.customer_id == Customer.id)
            .join(Audience, Audience.id == AudienceMember.audience_id)
            .where(Audience.name == name)
        )
    )


@pytest.fixture
def tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes blocks so small that a short file has many."""
    monkeypatch.setattr(staging, "BLOCK_LINES", 10)
    monkeypatch.setattr(import_processing, "READ_BLOCK_ROWS", 7)


@pytest.fixture(params=["one connection", "two connections"])
def small_blocks(request: pytest.FixtureRequest, tiny_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes blocks small; rows are merged over one connection or over two."""
    if request.param == "two connections":
        monkeypatch.setattr(import_processing, "PARALLEL_MERGE_MIN_BYTES", 0)


# --- rows ----------------------------------------------------------------------------------------


def test_an_import_creates_customers(import_file: ImportFileFixture) -> None:
    row = import_file("email,name,source_id,locale\nAda@Example.com,Ada Lovelace,C1,en-GB\n")

    ada = customers_by_email()["ada@example.com"]
    assert (ada.email_as_given, ada.name, ada.source_id, ada.locale) == (
        "Ada@Example.com",
        "Ada Lovelace",
        "C1",
        "en-GB",
    )
    assert (row.status, import_counts(row)) == ("done", {"rows": 1, "created": 1})


def test_the_counts_match_the_rows(import_file: ImportFileFixture, make_customer: MakeCustomer) -> None:
    make_customer("same@example.com", name="Same")
    make_customer("other@example.com", name="Other")

    row = import_file(
        "email,name\nsame@example.com,Same\nother@example.com,Changed\nnew@example.com,New\nbad,X\nnew@example.com,Newer\n"
    )

    assert import_counts(row) == {"rows": 5, "created": 1, "updated": 1, "unchanged": 1, "rejected": 1, "duplicates": 1}


def test_a_second_import_of_the_same_file_changes_nothing(import_file: ImportFileFixture, small_blocks: None) -> None:
    # Enough repeated addresses that each connection has some.
    repeated = "".join(f"customer{n}@example.com,Customer {n},C{n}\n" for n in range(4, 14))
    file = f"{make_file(50)}customer3@example.com,Another Name,C3\nbad,x,y\n{repeated}"
    first = import_file(file)
    before = {email: (c.id, c.name) for email, c in customers_by_email().items()}

    again = import_file(file)

    assert import_counts(first) == {"rows": 62, "created": 50, "duplicates": 11, "rejected": 1}
    assert import_counts(again) == {"rows": 62, "unchanged": 50, "duplicates": 11, "rejected": 1}
    assert {email: (c.id, c.name) for email, c in customers_by_email().items()} == before


def test_the_last_row_of_an_email_wins(import_file: ImportFileFixture, small_blocks: None) -> None:
    filler = "".join(f"f{n}@example.com,F\n" for n in range(30))

    row = import_file(f"email,name\nada@example.com,First\n{filler}ADA@example.com,Last\n")

    assert customers_by_email()["ada@example.com"].name == "Last"
    assert row.duplicates == 1


def test_an_empty_cell_keeps_the_value_of_an_earlier_row(import_file: ImportFileFixture) -> None:
    import_file("email,name,locale\nada@example.com,First,en\nada@example.com,Second,\nada@example.com,,\n")

    ada = customers_by_email()["ada@example.com"]
    assert (ada.name, ada.locale) == ("Second", "en")


def test_an_empty_cell_or_a_missing_column_keeps_the_value(
    import_file: ImportFileFixture, make_customer: MakeCustomer
) -> None:
    make_customer("ada@example.com", name="Ada", locale="en", source_id="C1")

    row = import_file("email,name\nada@example.com,\n")
    import_file("email,name\nada@example.com,Ada Lovelace\n")

    ada = customers_by_email()["ada@example.com"]
    assert (ada.name, ada.locale, ada.source_id) == ("Ada Lovelace", "en", "C1")
    assert import_counts(row) == {"rows": 1, "unchanged": 1}


def test_an_import_updates_the_language_and_the_spelling(
    import_file: ImportFileFixture, make_customer: MakeCustomer
) -> None:
    make_customer("ada@example.com", name="Ada", locale="en")

    rows = [import_file("email,locale\nada@example.com,de\n"), import_file("email\nAda@Example.com\n")]

    ada = customers_by_email()["ada@example.com"]
    assert (ada.locale, ada.email_as_given, ada.name) == ("de", "Ada@Example.com", "Ada")
    assert [import_counts(row) for row in rows] == [{"rows": 1, "updated": 1}] * 2


def test_an_import_keeps_the_rejected_rows_of_other_imports(import_file: ImportFileFixture) -> None:
    first, second = import_file("email\nbad\n"), import_file("email\nada@example.com\nworse\n")

    assert (rejected_rows(first), rejected_rows(second)) == ([(2, "email_invalid")], [(3, "email_invalid")])


def test_an_import_keeps_a_customer_unsubscribed(import_file: ImportFileFixture, make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", name="Ada", suppressed="unsubscribed")

    import_file("email,name\nada@example.com,Ada Lovelace\n")

    assert customers_by_email()["ada@example.com"].name == "Ada Lovelace"
    assert customer_queries.find_suppression_reasons([ada.id]) == {ada.id: "unsubscribed"}


def test_ndjson_is_imported_like_csv(import_file: ImportFileFixture) -> None:
    row = import_file('{"email": "ada@example.com", "name": "Ada"}\nnonsense\n', media_type=NDJSON)

    assert list(customers_by_email()) == ["ada@example.com"]
    assert rejected_rows(row) == [(2, "json_invalid")]


def test_special_characters_are_imported_unchanged(import_file: ImportFileFixture) -> None:
    names = ["a\\b", "\\N", "\\.", "<script>alert(1)</script>", 'He said "hi"', "%s {x}", "عائشة"]
    lines = "".join('c{}@example.com,"{}"\n'.format(n, name.replace('"', '""')) for n, name in enumerate(names))

    import_file("email,name\n" + lines)

    assert sorted(c.name for c in customers_by_email().values()) == sorted(names)


def test_a_row_with_a_nul_character_is_rejected_and_stored(import_file: ImportFileFixture) -> None:
    """The database cannot store that character."""
    row = import_file("email,name\nada@example.com,A\0da\nbob@example.com,Bob\n")

    assert (row.status, import_counts(row)) == ("done", {"rows": 2, "created": 1, "rejected": 1})
    assert [rejected.row for rejected in import_queries.list_rejected_rows(row.id)] == ["ada@example.com,A␀da"]


def test_only_the_row_that_is_not_utf_8_is_rejected(import_file: ImportFileFixture) -> None:
    row = import_file("email,name\na@example.com,J\xfcrgen\nb@example.com,Bob\n".encode("latin-1"))

    assert list(customers_by_email()) == ["b@example.com"]
    assert rejected_rows(row) == [(2, "encoding_invalid")]


def test_counts_are_exact_for_ten_thousand_rows(import_file: ImportFileFixture) -> None:
    lines = [f"customer{n}@example.com,N{n},C{n}" if n % 100 else f"broken{n},N,C{n}" for n in range(10_000)]

    row = import_file("email,name,source_id\n" + "\n".join(lines), size=70_000)

    assert import_counts(row) == {"rows": 10_000, "created": 9_900, "rejected": 100}
    assert rejected_rows(row)[:2] == [(2, "email_invalid"), (102, "email_invalid")]


def test_a_finished_import_keeps_its_counts_but_not_its_file(
    import_file: ImportFileFixture, receive_file: Receive
) -> None:
    waiting = receive_file("email\nbob@example.com\n")

    row = import_file("email\n" + "".join(f"c{n}@example.com\n" for n in range(50)), size=100)

    assert (row.status, row.read, row.finished_at is not None) == ("done", row.size, True)
    assert set(db.session.scalars(select(ImportChunk.import_id))) == {waiting}


@pytest.mark.parametrize("kind", ["customers", "suppressions"])
def test_rows_are_locked_in_the_order_of_their_addresses(app: Flask, make_customer: MakeCustomer, kind: str) -> None:
    """Two writers that lock the same rows in one order cannot deadlock."""
    for name in "amz":
        make_customer(f"{name}@example.com", name="Old", suppressed="bounced")
    file = "email,name,reason\n" + "".join(f"{name}@example.com,New,complained\n" for name in "zma")
    import_id = import_actions.store_import_file(iter([file.encode()]), "a.csv", "text/csv", "", by="tests", kind=kind)
    emails = select(Customer.email if kind == "customers" else Suppression.email)
    worker = threading.Thread(target=in_context, args=(app, import_processing.run_import, import_id))

    with db.engine.connect() as other, db.engine.connect() as third:
        other.execute(emails.where(literal_column("email") == "m@example.com").with_for_update())
        worker.start()
        while worker.is_alive() and not count_lock_waiters("transactionid"):
            db.session.rollback()
        unlocked = third.scalars(emails.with_for_update(skip_locked=True)).all()
        third.rollback()
        other.rollback()
    worker.join()

    assert unlocked == ["z@example.com"]
    assert [row.updated for row in import_queries.list_imports()] == [3]


@pytest.mark.parametrize(
    ("merged_to", "seconds", "speed"), [(None, 10, 10), ([30], 1, 40), (None, 0.9, None)], ids=["read", "merged", "new"]
)
def test_the_speed_is_that_of_the_current_step(merged_to: list[int] | None, seconds: float, speed: int | None) -> None:
    started_at = datetime(2026, 5, 1, tzinfo=UTC)
    counts = {"rows": 100, "rejected": 10, "duplicates": 5, "created": 20, "updated": 4, "unchanged": 1}
    row = CustomerImport(started_at=started_at, merged_to=merged_to, **counts)
    now = started_at + timedelta(seconds=seconds)

    assert row.rows_per_second(now) == speed
    row.finished_at = now
    assert row.rows_per_second(now + timedelta(days=1)) == speed


# --- source ids ----------------------------------------------------------------------------------


def test_only_the_row_with_a_taken_source_id_is_rejected(
    import_file: ImportFileFixture, make_customer: MakeCustomer
) -> None:
    make_customer("ada@example.com", source_id="C1")

    row = import_file("email,source_id\ngrace@example.com,C1\nbob@example.com,C2\n")

    assert sorted(customers_by_email()) == ["ada@example.com", "bob@example.com"]
    assert rejected_rows(row) == [(2, "source_id_taken")]
    assert import_counts(row) == {"rows": 2, "created": 1, "rejected": 1}


def test_the_first_row_with_a_source_id_wins(import_file: ImportFileFixture, tiny_blocks: None) -> None:
    filler = "".join(f"f{n}@example.com,F{n}\n" for n in range(30))

    row = import_file(f"email,source_id\nada@example.com,C1\ngrace@example.com,C1\n{filler}bob@example.com,C1\n")

    assert customers_by_email()["ada@example.com"].source_id == "C1"
    assert rejected_rows(row) == [(3, "source_id_taken"), (34, "source_id_taken")]


def test_one_row_of_each_source_id_is_imported(import_file: ImportFileFixture, small_blocks: None) -> None:
    file = "email,source_id\n" + "".join(f"c{n}@example.com,C{n // 3}\n" for n in range(120))

    first, again = import_file(file), import_file(file)

    assert import_counts(first) == {"rows": 120, "created": 40, "rejected": 80}
    assert import_counts(again) == {"rows": 120, "unchanged": 40, "rejected": 80}


def test_a_source_id_may_change(import_file: ImportFileFixture, make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com", source_id="C1")

    row = import_file("email,source_id\nada@example.com,C2\n")

    assert customers_by_email()["ada@example.com"].source_id == "C2"
    assert row.updated == 1


def test_partitions_that_may_share_source_ids_are_merged_sequentially(
    app: Flask, receive_file: Receive, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_processing, "PARALLEL_MERGE_MIN_BYTES", 0)
    make_customer("ada@example.com", source_id="C1")
    import_id = receive_file("email,source_id\n" + "".join(f"c{n}@example.com,C1\n" for n in range(8)))
    worker = threading.Thread(target=in_context, args=(app, import_processing.run_import, import_id))

    with db.engine.connect() as other:
        other.execute(select(func.pg_advisory_xact_lock(import_id)))
        worker.start()
        while worker.is_alive() and count_lock_waiters("advisory") < 2:
            db.session.rollback()
        both_wait = worker.is_alive()
        other.rollback()
    worker.join()

    assert both_wait
    assert [row.rejected for row in import_queries.list_imports()] == [8]


# --- audiences -----------------------------------------------------------------------------------


def test_all_customers_of_a_file_join_the_chosen_audience(
    import_file: ImportFileFixture, make_customer: MakeCustomer
) -> None:
    make_customer("ada@example.com")

    import_file("email\nada@example.com\ngrace@example.com\nbad\n", audience="Newsletter")

    assert audience_members("Newsletter") == {"ada@example.com", "grace@example.com"}


def test_customers_join_the_chosen_audience_and_that_of_their_row(import_file: ImportFileFixture) -> None:
    import_file("email,audience\nada@example.com,VIP\nbob@example.com,\n", audience="Newsletter")

    assert audience_members("VIP") == {"ada@example.com"}
    assert audience_members("Newsletter") == {"ada@example.com", "bob@example.com"}


def test_a_column_names_the_audience_of_each_row(import_file: ImportFileFixture) -> None:
    db.session.add(Audience(name="VIP"))
    db.session.commit()

    import_file("email,audience\nada@example.com,VIP\ngrace@example.com, New  one \nbob@example.com,\n")

    assert [audience.name for audience in customer_queries.list_audiences()] == ["New one", "VIP"]
    assert (audience_members("VIP"), audience_members("New one")) == ({"ada@example.com"}, {"grace@example.com"})


def test_a_customer_joins_the_audiences_of_all_their_rows(import_file: ImportFileFixture, small_blocks: None) -> None:
    filler = "".join(f"f{n}@example.com,\n" for n in range(30))

    import_file(f"email,audience\nada@example.com,One\n{filler}ada@example.com,Two\n")

    assert audience_members("One") == audience_members("Two") == {"ada@example.com"}


@pytest.mark.parametrize(("column", "chosen"), [("VIP", ""), ("", "VIP")], ids=["column", "chosen"])
def test_a_row_that_a_later_block_rejects_joins_no_audience(
    import_file: ImportFileFixture, make_customer: MakeCustomer, tiny_blocks: None, column: str, chosen: str
) -> None:
    make_customer("ada@example.com", source_id="C1")
    make_customer("grace@example.com")
    filler = "".join(f"f{n}@example.com,,{column}\n" for n in range(30))

    row = import_file(f"email,source_id,audience\n{filler}grace@example.com,C1,{column}\n", audience=chosen)

    assert rejected_rows(row) == [(32, "source_id_taken")]
    assert audience_members("VIP") == {f"f{n}@example.com" for n in range(30)}


def test_a_file_with_too_many_audiences_is_rejected(import_file: ImportFileFixture) -> None:
    file = "email,audience\n" + "".join(f"c{n}@example.com,City {n}\n" for n in range(101))

    row = import_file(file)

    assert (row.status, row.error_code) == ("failed", "audiences_too_many")
    assert "more than 100 different names" in (row.error or "")
    assert customers_by_email() == {}
    assert customer_queries.list_audiences() == []
    assert import_file(file.replace("City 100", "")).status == "done"
    assert len(customer_queries.list_audiences()) == 100


# --- refused files -------------------------------------------------------------------------------


def test_a_file_that_is_rejected_at_its_start_stores_nothing(receive_file: Receive) -> None:
    with pytest.raises(InvalidInput):
        receive_file(b"\xff\xd8\xff\xe0 a picture", audience="Newsletter")

    assert import_queries.list_imports() == []
    assert customer_queries.list_audiences() == []


def test_an_import_without_rows_fails_in_the_worker(import_file: ImportFileFixture, receive_file: Receive) -> None:
    waiting = receive_file("email\nbob@example.com\n")

    row = import_file("email,name\n" + "\n" * 70_000)

    assert (row.status, row.error_code, row.finished_at is not None) == ("failed", "rows_missing", True)
    assert db.session.scalars(select(ImportChunk.import_id)).all() == [waiting]


def test_a_finished_import_cannot_fail(import_file: ImportFileFixture) -> None:
    """A worker that another one has overtaken may still report an error."""
    row = import_file("email\nada@example.com\n")

    import_actions.fail_import(row.id, "disk_full", "The disk is full.")

    assert [(found.status, found.error) for found in import_queries.list_imports()] == [("done", None)]


@pytest.mark.parametrize(("header", "code"), [("email,reason,reason", "header_ambiguous"), ("email,name,name", None)])
def test_only_columns_of_a_suppression_list_must_not_be_repeated(
    receive_file: Receive, header: str, code: str | None
) -> None:
    errors = []
    try:
        receive_file(f"{header}\nada@example.com,x,x\n", kind="suppressions")
    except InvalidInput as error:
        errors = [item.key for item in error.errors]

    assert errors == ([code] if code else [])
    assert len(import_queries.list_imports()) == (code is None)


def test_an_interrupted_upload_fails_and_keeps_no_chunk(app: Flask) -> None:
    def interrupted() -> Iterator[bytes]:
        yield make_file(5_000).encode()
        raise ConnectionError

    with pytest.raises(ConnectionError):
        import_actions.store_import_file(interrupted(), "customers.csv", "text/csv", "", by="tests")

    row = import_queries.list_imports()[0]
    assert (row.status, row.error_code) == ("failed", "upload_broken")
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0


def test_the_sweep_fails_an_upload_whose_web_process_died(app: Flask) -> None:
    row = CustomerImport(filename="x", media_type="text/csv", lease_until=datetime(2026, 1, 1, tzinfo=UTC))
    db.session.add(row)
    db.session.flush()
    db.session.add(ImportChunk(import_id=row.id, seq=0, data=b"email"))
    db.session.commit()

    task_queue.run("customers.sweep_customers")

    assert import_queries.list_imports()[0].error_code == "upload_broken"
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0


def test_an_upload_that_the_sweep_has_failed_is_not_queued(app: Flask) -> None:
    def chunks() -> Iterator[bytes]:
        yield make_file(2_500).encode()
        expire_leases()
        import_actions.fail_stalled_uploads()
        yield b"late@example.com,Late,L1\n"

    with pytest.raises(DomainError, match="timed out") as raised:
        import_actions.store_import_file(chunks(), "customers.csv", "text/csv", "Ghost", by="tests")

    assert raised.value.status == 408
    assert [(row.status, row.error_code) for row in import_queries.list_imports()] == [("failed", "upload_broken")]
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0
    assert (huey.storage.queue_size(), list(customer_queries.list_audiences())) == (0, [])


def test_the_sweep_keeps_a_running_upload(app: Flask) -> None:
    now = datetime.now(UTC)
    db.session.add(CustomerImport(filename="x", media_type="text/csv", lease_until=now.replace(year=now.year + 1)))
    db.session.commit()

    task_queue.run("customers.sweep_customers")

    assert import_queries.list_imports()[0].status == "receiving"


def test_the_number_of_stored_rejections_is_limited(
    import_file: ImportFileFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_processing, "MAX_STORED_REJECTIONS", 10)
    monkeypatch.setattr(import_processing, "READ_BLOCK_ROWS", 7)

    row = import_file("email\n" + "bad\n" * 100)

    assert row.rejected == 100
    assert len(rejected_rows(row)) == 10


# --- workers -------------------------------------------------------------------------------------


def test_an_upload_enqueues_its_import(app: Flask) -> None:
    import_actions.store_import_file(iter([make_file(1).encode()]), "customers.csv", "text/csv", "", by="tests")

    assert huey.storage.queue_size() == 1


@pytest.mark.parametrize("kind", ["customers", "suppressions"])
def test_the_audit_log_has_the_uploader(receive_file: Receive, kind: str) -> None:
    import_id = receive_file(make_file(1), kind=kind)

    entry = db.session.scalars(select(AuditEntry)).one()
    assert (entry.actor, entry.action, entry.subject) == ("tests", f"{kind}.import", "customers.csv")
    assert entry.detail == {"id": import_id}


def test_an_erased_user_is_replaced_only_in_their_own_imports(receive_file: Receive) -> None:
    receive_file(make_file(1))
    import_actions.store_import_file(iter([make_file(1).encode()]), "a.csv", "text/csv", "", by="eve@example.com")

    import_actions.replace_staff_in_imports("eve@example.com", "erased user 7")
    db.session.commit()

    assert [row.by for row in import_queries.list_imports()] == ["erased user 7", "tests"]


def test_the_sweep_enqueues_an_import_whose_task_was_lost(receive_file: Receive) -> None:
    receive_file(make_file(1))
    huey.storage.flush_queue()

    task_queue.run("customers.sweep_customers")

    assert huey.storage.queue_size() == 1


def test_two_workers_process_an_import_once(receive_file: Receive) -> None:
    import_id = receive_file(make_file(2_000))

    run_in_two_workers(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, import_counts(row)) == ("done", {"rows": 2_000, "created": 2_000})


def test_concurrent_imports_of_the_same_customers_both_succeed(receive_file: Receive, small_blocks: None) -> None:
    first = receive_file(make_file(500))
    second = receive_file("email,name,source_id\n" + "\n".join(reversed(make_file(500).splitlines()[1:])) + "\n")

    run_in_two_workers(first, second)

    rows = [row for row in import_queries.list_imports() if row.status == "done"]
    assert [row.rows for row in rows] == [500, 500]
    assert sum(row.created for row in rows) == len(customers_by_email()) == 500


def run_in_two_workers(*import_ids: int) -> None:
    """Run one or two imports in two threads at once."""
    app: Any = current_app._get_current_object()  # type: ignore[attr-defined]

    def work(import_id: int) -> None:
        with app.app_context():
            import_processing.run_import(import_id)

    ids = import_ids if len(import_ids) == 2 else import_ids * 2
    threads = [threading.Thread(target=work, args=[import_id]) for import_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_context(app: Flask, act: Callable[..., object], *arguments: object) -> None:
    """Call a function in a context of the app, for a separate thread."""
    with app.app_context():
        act(*arguments)


class ImportKilled(BaseException):
    """An exception that no `except Exception` catches."""


def expire_leases() -> None:
    db.session.execute(update(CustomerImport).values(lease_until=datetime(2026, 1, 1, tzinfo=UTC)))
    db.session.commit()


@pytest.mark.parametrize(
    ("step", "call"),
    [("copy_rows", 1), ("copy_rows", 3), ("deduplicate_rows", 1), ("merge_rows", 1), ("merge_rows", 3)],
)
def test_another_worker_completes_the_import_of_a_killed_one(
    receive_file: Receive, small_blocks: None, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    file = "email,name,source_id,audience\n" + "".join(
        f"customer{n % 60}@example.com,N{n},C{n % 55},A{n % 2}\n" if n % 9 else "bad,x,y,z\n" for n in range(90)
    )
    import_id = receive_file(file)
    calls = 0
    original = getattr(staging, step)

    def die_at_call(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise ImportKilled
        return original(*arguments)

    monkeypatch.setattr(staging, step, die_at_call)
    with pytest.raises(ImportKilled):
        task_queue.run("customers.process_import", import_id)
    monkeypatch.setattr(staging, step, original)
    expire_leases()
    task_queue.run("customers.process_import", import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert row.status == "done"
    counts = import_counts(row)
    assert counts["rows"] == 90 == sum(value for name, value in counts.items() if name != "rows")
    assert counts["created"] == len(customers_by_email())
    assert counts["rejected"] == len(rejected_rows(row))
    assert len(set(rejected_rows(row))) == len(rejected_rows(row))


def test_an_import_with_a_valid_lease_is_not_claimed(receive_file: Receive) -> None:
    import_id = receive_file(make_file(1))
    values = {"status": "running", "epoch": 1, "lease_until": func.now() + timedelta(minutes=1)}
    db.session.execute(update(CustomerImport).values(values))
    db.session.commit()

    import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, row.epoch, row.rows) == ("running", 1, 0)


def test_a_slow_worker_stops_when_another_has_taken_over(
    app: Flask, receive_file: Receive, tiny_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_id = receive_file(make_file(40))
    merge_rows = staging.merge_rows
    calls = 0

    def merge_slowly(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            with app.app_context():
                expire_leases()
                with contextlib.suppress(ImportKilled):
                    import_processing.run_import(import_id)
        elif calls == 3:
            # The worker that took over is killed halfway, too.
            raise ImportKilled
        return merge_rows(*arguments)

    monkeypatch.setattr(staging, "merge_rows", merge_slowly)
    import_processing.run_import(import_id)
    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, row.epoch) == ("running", 2)
    expire_leases()
    import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, import_counts(row)) == ("done", {"rows": 40, "created": 40})


def test_a_stopping_worker_releases_its_import(
    receive_file: Receive, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_id = receive_file(make_file(40))
    stop_requested = threading.Event()
    stop_requested.set()
    monkeypatch.setattr(task_queue, "stop_requested", stop_requested)
    import_processing.run_import(import_id)
    assert import_queries.list_claimable_import_ids() == [import_id]
    started_at = db.session.scalar(select(CustomerImport.started_at))

    monkeypatch.setattr(task_queue, "stop_requested", threading.Event())
    import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, import_counts(row)) == ("done", {"rows": 40, "created": 40})
    assert started_at is not None
    assert row.started_at == started_at


@pytest.mark.parametrize(
    ("attempts", "status", "error_code"), [(7, "done", None), (8, "failed", "import_broken")], ids=["eighth", "ninth"]
)
def test_an_import_fails_after_the_maximum_number_of_attempts(
    receive_file: Receive, attempts: int, status: str, error_code: str | None
) -> None:
    import_id = receive_file(make_file(1))
    db.session.execute(update(CustomerImport).values(epoch=attempts))
    db.session.commit()

    import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, row.error_code) == (status, error_code)


def test_each_chunk_of_an_upload_and_each_claim_renews_the_lease(app: Flask) -> None:
    remaining_seconds = select(func.extract("epoch", CustomerImport.lease_until - func.now()))
    found = []

    def chunks() -> Iterator[bytes]:
        for n in range(3):
            yield make_file(2_500, n * 2_500).encode()
            if n:
                found.append(db.session.execute(remaining_seconds).scalar_one())
                db.session.execute(update(CustomerImport).values(lease_until=None))
                db.session.commit()

    import_id = import_actions.store_import_file(chunks(), "customers.csv", "text/csv", "", by="tests")
    assert [290 < seconds <= 300 for seconds in found] == [True] * 2

    with import_claims.open_connection() as connection:
        import_claims.claim_import(connection, import_id)
    assert 80 < db.session.execute(remaining_seconds).scalar_one() <= 90


@pytest.mark.usefixtures("small_blocks")
def test_an_import_names_a_full_disk_and_keeps_committed_rows(
    receive_file: Receive, import_file: ImportFileFixture
) -> None:
    import_id = receive_file(make_file(40))
    with rejected_writes("customer", "disk_full", when="new.source_id = 'C25'"):
        import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, row.error_code) == ("failed", "disk_full")
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0
    assert 0 < len(customers_by_email()) < 40
    import_file(make_file(40))
    assert len(customers_by_email()) == 40


def test_an_import_fails_with_the_error_that_stopped_its_other_part() -> None:
    claim = import_claims.ImportClaim(1, 1, "text/csv", None, 0, None, "customers")
    connection = cast("staging.Connection", None)

    def work(partition: import_claims.Partition) -> None:
        if partition.index == 1:
            raise psycopg.errors.DiskFull
        assert claim.abort_event.wait(60)
        raise import_claims.LeaseLost

    with pytest.raises(psycopg.errors.DiskFull):
        import_claims.run_in_parallel(
            claim, work, [import_claims.Partition(claim, index, connection) for index in range(2)]
        )


def test_statements_of_an_import_have_no_short_deadline(app: Flask) -> None:
    with database_timeouts.statement_deadline(0.01), import_claims.open_connection() as connection:
        assert connection.execute("select 1 from pg_sleep(0.05)").fetchall() == [(1,)]


def test_an_import_overwrites_changes_made_after_its_upload(receive_file: Receive) -> None:
    import_id = receive_file("email,name\nada@example.com,From the file\n")
    customer_actions.upsert_customer(
        CustomerValues("ada@example.com", name="By JSON", source_id="C1"), None, by="tests"
    )

    import_processing.run_import(import_id)

    ada = customers_by_email()["ada@example.com"]
    assert (ada.name, ada.source_id) == ("From the file", "C1")


# --- concurrency ---------------------------------------------------------------------------------


def test_imports_run_one_at_a_time_and_enqueue_the_next(receive_file: Receive) -> None:
    first, second = receive_file("email\nada@example.com\n"), receive_file("email\nbob@example.com\n")
    huey.storage.flush_queue()
    with customer_tasks._import_lock:
        customer_tasks.process_import(first)
    assert set(customers_by_email()) == set()

    customer_tasks.process_import(first)

    assert set(customers_by_email()) == {"ada@example.com"}
    assert huey.storage.queue_size() == 1
    customer_tasks.process_import(second)
    assert set(customers_by_email()) == {"ada@example.com", "bob@example.com"}


def test_an_import_that_fails_does_not_prevent_the_next_one(
    receive_file: Receive, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = receive_file("email\nada@example.com\n"), receive_file("email\nbob@example.com\n")
    with monkeypatch.context() as failing:
        failing.setattr(import_processing, "run_import", lambda _import_id: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            customer_tasks.process_import(first)

    customer_tasks.process_import(second)

    assert set(customers_by_email()) == {"bob@example.com"}


def test_the_sweep_does_not_fail_an_upload_that_got_another_chunk(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    lease_until = func.now() + timedelta(minutes=5)
    row = CustomerImport(filename="x", media_type="text/csv", lease_until=lease_until)
    db.session.add(row)
    db.session.commit()
    monkeypatch.setattr(import_queries, "list_stalled_upload_ids", lambda: [row.id])

    import_actions.fail_stalled_uploads()

    assert [row.status for row in import_queries.list_imports()] == ["receiving"]


def test_the_sweep_does_not_fail_a_completed_upload(receive_file: Receive, monkeypatch: pytest.MonkeyPatch) -> None:
    import_id = receive_file("email\nada@example.com\n")
    # The sweep queried just before the last chunk arrived.
    monkeypatch.setattr(import_queries, "list_stalled_upload_ids", lambda: [import_id])

    import_actions.fail_stalled_uploads()

    row = import_queries.find_import(import_id)
    assert row is not None
    assert row.status == "queued"
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 1


def test_an_interrupted_upload_creates_no_audience(app: Flask) -> None:
    def interrupted() -> Iterator[bytes]:
        yield b"email\n" + b"x" * 2_000_000
        raise ConnectionError

    with pytest.raises(ConnectionError):
        import_actions.store_import_file(interrupted(), "a.csv", "text/csv", "Ghost", by="tests")

    assert list(customer_queries.list_audiences()) == []
