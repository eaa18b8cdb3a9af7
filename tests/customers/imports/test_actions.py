"""Imports from the first piece to the last row, on the real database."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import func, select, update

from tests.support.imports import Import, customers_by_email, import_counts, rejected_rows
from webapp.accounts.models import AuditEntry
from webapp.core import task_queue
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db, huey
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import claims as import_claims
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports import staging
from webapp.customers.imports.parser import NDJSON
from webapp.customers.models import Audience, AudienceMember, Customer, CustomerImport, ImportChunk
from webapp.customers.validation import CustomerValues
from webapp.tasks import customers as customer_tasks

Make = Callable[..., Customer]
Receive = Callable[..., int]


def many(number: int, start: int = 0) -> str:
    return "email,name,source_id\n" + "".join(
        f"customer{n}@example.com,Customer {n},C{n}\n" for n in range(start, start + number)
    )


def members(name: str) -> set[str]:
    return set(
        db.session.scalars(
            select(Customer.email)
            .join(AudienceMember, AudienceMember.customer_id == Customer.id)
            .join(Audience, Audience.id == AudienceMember.audience_id)
            .where(Audience.name == name)
        )
    )


@pytest.fixture
def one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks so small that a short file has many."""
    monkeypatch.setattr(staging, "BLOCK_LINES", 10)
    monkeypatch.setattr(import_processing, "READ_BLOCK_ROWS", 7)


@pytest.fixture(params=["one lane", "two lanes"])
def small_blocks(request: pytest.FixtureRequest, one_lane: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, merged over one connection and over two."""
    if request.param == "two lanes":
        monkeypatch.setattr(import_processing, "PARALLEL_MERGE_MIN_BYTES", 0)


# --- what becomes of rows ------------------------------------------------------------------------


def test_an_import_makes_customers(imported: Import) -> None:
    row = imported("email,name,source_id,locale\nAda@Example.com,Ada Lovelace,C1,en-GB\n")

    ada = customers_by_email()["ada@example.com"]
    assert (ada.email_as_given, ada.name, ada.source_id, ada.locale) == (
        "Ada@Example.com",
        "Ada Lovelace",
        "C1",
        "en-GB",
    )
    assert (row.status, import_counts(row)) == ("done", {"rows": 1, "created": 1})


def test_the_counts_are_those_of_the_rows(imported: Import, customer: Make) -> None:
    customer("same@example.com", name="Same")
    customer("other@example.com", name="Other")

    row = imported(
        "email,name\nsame@example.com,Same\nother@example.com,Changed\nnew@example.com,New\nbad,X\nnew@example.com,Newer\n"
    )

    assert import_counts(row) == {"rows": 5, "created": 1, "updated": 1, "unchanged": 1, "rejected": 1, "duplicates": 1}


def test_a_second_import_of_the_same_file_changes_nothing(imported: Import, small_blocks: None) -> None:
    file = many(50) + "customer3@example.com,Another Name,C3\nbad,x,y\ncustomer4@example.com,Customer 4,C4\n"
    first = imported(file)
    before = {email: (c.id, c.name) for email, c in customers_by_email().items()}

    again = imported(file)

    assert import_counts(first) == {"rows": 53, "created": 50, "duplicates": 2, "rejected": 1}
    assert import_counts(again) == {"rows": 53, "unchanged": 50, "duplicates": 2, "rejected": 1}
    assert {email: (c.id, c.name) for email, c in customers_by_email().items()} == before


def test_of_several_rows_about_one_e_mail_the_last_one_counts(imported: Import, small_blocks: None) -> None:
    filler = "".join(f"f{n}@example.com,F\n" for n in range(30))

    row = imported(f"email,name\nada@example.com,First\n{filler}ADA@example.com,Last\n")

    assert customers_by_email()["ada@example.com"].name == "Last"
    assert row.duplicates == 1


def test_an_empty_cell_of_the_last_row_leaves_what_an_earlier_one_says(imported: Import) -> None:
    imported("email,name,locale\nada@example.com,First,en\nada@example.com,Second,\nada@example.com,,\n")

    ada = customers_by_email()["ada@example.com"]
    assert (ada.name, ada.locale) == ("Second", "en")


def test_an_empty_cell_or_a_missing_column_changes_nothing(imported: Import, customer: Make) -> None:
    customer("ada@example.com", name="Ada", locale="en", source_id="C1")

    row = imported("email,name\nada@example.com,\n")

    ada = customers_by_email()["ada@example.com"]
    assert (ada.name, ada.locale, ada.source_id) == ("Ada", "en", "C1")
    assert import_counts(row) == {"rows": 1, "unchanged": 1}


def test_an_import_never_lifts_an_unsubscription(imported: Import, customer: Make) -> None:
    ada = customer("ada@example.com", name="Ada", suppressed="unsubscribed")

    imported("email,name\nada@example.com,Ada Lovelace\n")

    assert customers_by_email()["ada@example.com"].name == "Ada Lovelace"
    assert customer_queries.find_suppression_reasons([ada.id]) == {ada.id: "unsubscribed"}


def test_json_lines_are_imported_like_csv(imported: Import) -> None:
    row = imported('{"email": "ada@example.com", "name": "Ada"}\nnonsense\n', media_type=NDJSON)

    assert list(customers_by_email()) == ["ada@example.com"]
    assert rejected_rows(row) == [(2, "json_invalid")]


def test_backslashes_quotes_and_markup_arrive_as_they_are(imported: Import) -> None:
    names = ["a\\b", "\\N", "\\.", "<script>alert(1)</script>", 'He said "hi"', "%s {x}", "عائشة"]
    lines = "".join('c{}@example.com,"{}"\n'.format(n, name.replace('"', '""')) for n, name in enumerate(names))

    imported("email,name\n" + lines)

    assert sorted(c.name for c in customers_by_email().values()) == sorted(names)


def test_a_row_that_is_not_utf_8_costs_itself_alone(imported: Import) -> None:
    row = imported("email,name\na@example.com,J\xfcrgen\nb@example.com,Bob\n".encode("latin-1"))

    assert list(customers_by_email()) == ["b@example.com"]
    assert rejected_rows(row) == [(2, "encoding_invalid")]


def test_ten_thousand_rows_with_bad_ones_between_are_exact(imported: Import) -> None:
    lines = [f"customer{n}@example.com,N{n},C{n}" if n % 100 else f"broken{n},N,C{n}" for n in range(10_000)]

    row = imported("email,name,source_id\n" + "\n".join(lines))

    assert import_counts(row) == {"rows": 10_000, "created": 9_900, "rejected": 100}
    assert rejected_rows(row)[:2] == [(2, "email_invalid"), (102, "email_invalid")]


# --- source ids ----------------------------------------------------------------------------------


def test_a_source_id_of_another_customer_keeps_only_that_row_out(imported: Import, customer: Make) -> None:
    customer("ada@example.com", source_id="C1")

    row = imported("email,source_id\ngrace@example.com,C1\nbob@example.com,C2\n")

    assert sorted(customers_by_email()) == ["ada@example.com", "bob@example.com"]
    assert rejected_rows(row) == [(2, "source_id_taken")]
    assert import_counts(row) == {"rows": 2, "created": 1, "rejected": 1}


def test_of_two_rows_with_one_source_id_the_first_has_it(imported: Import, one_lane: None) -> None:
    filler = "".join(f"f{n}@example.com,F{n}\n" for n in range(30))

    row = imported(f"email,source_id\nada@example.com,C1\ngrace@example.com,C1\n{filler}bob@example.com,C1\n")

    assert customers_by_email()["ada@example.com"].source_id == "C1"
    assert rejected_rows(row) == [(3, "source_id_taken"), (34, "source_id_taken")]


def test_of_many_rows_that_share_source_ids_one_each_is_taken(imported: Import, small_blocks: None) -> None:
    file = "email,source_id\n" + "".join(f"c{n}@example.com,C{n // 3}\n" for n in range(120))

    first, again = imported(file), imported(file)

    assert import_counts(first) == {"rows": 120, "created": 40, "rejected": 80}
    assert import_counts(again) == {"rows": 120, "unchanged": 40, "rejected": 80}


def test_a_customer_may_get_another_source_id(imported: Import, customer: Make) -> None:
    customer("ada@example.com", source_id="C1")

    row = imported("email,source_id\nada@example.com,C2\n")

    assert customers_by_email()["ada@example.com"].source_id == "C2"
    assert row.updated == 1


# --- audiences -----------------------------------------------------------------------------------


def test_everybody_of_a_file_joins_the_chosen_audience(imported: Import, customer: Make) -> None:
    customer("ada@example.com")

    imported("email\nada@example.com\ngrace@example.com\nbad\n", audience="Newsletter")

    assert members("Newsletter") == {"ada@example.com", "grace@example.com"}


def test_a_column_names_the_audience_of_each_row(imported: Import) -> None:
    db.session.add(Audience(name="VIP"))
    db.session.commit()

    imported("email,audience\nada@example.com,VIP\ngrace@example.com, New  one \nbob@example.com,\n")

    assert [audience.name for audience in customer_queries.list_audiences()] == ["New one", "VIP"]
    assert (members("VIP"), members("New one")) == ({"ada@example.com"}, {"grace@example.com"})


def test_the_audiences_of_all_rows_about_one_e_mail_count(imported: Import, small_blocks: None) -> None:
    filler = "".join(f"f{n}@example.com,\n" for n in range(30))

    imported(f"email,audience\nada@example.com,One\n{filler}ada@example.com,Two\n")

    assert members("One") == members("Two") == {"ada@example.com"}


def test_a_column_with_hundreds_of_audiences_is_another_column(imported: Import) -> None:
    row = imported("email,audience\n" + "".join(f"c{n}@example.com,City {n}\n" for n in range(101)))

    assert (row.status, row.error_code) == ("failed", "audiences_too_many")
    assert customers_by_email() == {}
    assert customer_queries.list_audiences() == []


# --- files that can't be taken -------------------------------------------------------------------


def test_a_file_that_is_refused_at_once_leaves_nothing_behind(received: Receive) -> None:
    with pytest.raises(InvalidInput):
        received(b"\xff\xd8\xff\xe0 a picture", audience="Newsletter")

    assert import_queries.list_imports() == []
    assert customer_queries.list_audiences() == []


def test_what_only_the_worker_can_see_fails_the_import(imported: Import) -> None:
    row = imported("email,name\n" + "\n" * 70_000)

    assert (row.status, row.error_code) == ("failed", "rows_missing")
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0


def test_an_upload_that_breaks_off_says_so_and_keeps_no_piece(app: Flask) -> None:
    def breaking() -> Iterator[bytes]:
        yield many(5_000).encode()
        raise ConnectionError

    with pytest.raises(ConnectionError):
        import_actions.store_import_file(breaking(), "customers.csv", "text/csv", "", by="tests")

    row = import_queries.list_imports()[0]
    assert (row.status, row.error_code) == ("failed", "upload_broken")
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0


def test_an_upload_whose_web_process_died_is_closed_by_the_sweep(app: Flask) -> None:
    row = CustomerImport(filename="x", media_type="text/csv", lease_until=datetime(2026, 1, 1, tzinfo=UTC))
    db.session.add(row)
    db.session.flush()
    db.session.add(ImportChunk(import_id=row.id, seq=0, data=b"email"))
    db.session.commit()

    task_queue.run("customers.sweep_customers")

    assert import_queries.list_imports()[0].error_code == "upload_broken"
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 0


def test_an_upload_that_goes_on_is_left_alone_by_the_sweep(app: Flask) -> None:
    now = datetime.now(UTC)
    db.session.add(CustomerImport(filename="x", media_type="text/csv", lease_until=now.replace(year=now.year + 1)))
    db.session.commit()

    task_queue.run("customers.sweep_customers")

    assert import_queries.list_imports()[0].status == "receiving"


def test_explanations_do_not_fill_the_disk(imported: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_processing, "MAX_STORED_REJECTIONS", 10)
    monkeypatch.setattr(import_processing, "READ_BLOCK_ROWS", 7)

    row = imported("email\n" + "bad\n" * 100)

    assert row.rejected == 100
    assert len(rejected_rows(row)) == 10


# --- workers -------------------------------------------------------------------------------------


def test_receiving_rings_a_worker(app: Flask) -> None:
    import_actions.store_import_file(iter([many(1).encode()]), "customers.csv", "text/csv", "", by="tests")

    assert huey.storage.queue_size() == 1


def test_who_sent_a_file_is_in_the_trail(received: Receive) -> None:
    received(many(1))

    entry = db.session.scalars(select(AuditEntry)).one()
    assert (entry.actor, entry.action, entry.subject) == ("tests", "customers.import", "customers.csv")


def test_the_sweep_rings_again_for_a_lost_bell(received: Receive) -> None:
    received(many(1))
    huey.storage.flush_queue()

    task_queue.run("customers.sweep_customers")

    assert huey.storage.queue_size() == 1


def test_two_workers_with_one_import_do_it_once(received: Receive) -> None:
    import_id = received(many(2_000))

    both(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, import_counts(row)) == ("done", {"rows": 2_000, "created": 2_000})


def test_imports_of_the_same_people_at_the_same_time_do_not_harm_each_other(
    received: Receive, small_blocks: None
) -> None:
    first = received(many(500))
    second = received("email,name,source_id\n" + "\n".join(reversed(many(500).splitlines()[1:])) + "\n")

    both(first, second)

    rows = [row for row in import_queries.list_imports() if row.status == "done"]
    assert [row.rows for row in rows] == [500, 500]
    assert sum(row.created for row in rows) == len(customers_by_email()) == 500


def both(*import_ids: int) -> None:
    """Two workers at once."""
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


class Killed(BaseException):
    """What no except clause of the program knows."""


def expire_leases() -> None:
    db.session.execute(update(CustomerImport).values(lease_until=datetime(2026, 1, 1, tzinfo=UTC)))
    db.session.commit()


@pytest.mark.parametrize(
    ("step", "call"),
    [("copy_rows", 1), ("copy_rows", 3), ("deduplicate_rows", 1), ("merge_rows", 1), ("merge_rows", 3)],
)
def test_what_a_killed_worker_left_is_finished_exactly(
    received: Receive, small_blocks: None, monkeypatch: pytest.MonkeyPatch, step: str, call: int
) -> None:
    file = "email,name,source_id,audience\n" + "".join(
        f"customer{n % 60}@example.com,N{n},C{n % 55},A{n % 2}\n" if n % 9 else "bad,x,y,z\n" for n in range(90)
    )
    import_id = received(file)
    calls = 0
    real = getattr(staging, step)

    def deadly(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(staging, step, deadly)
    with pytest.raises(Killed):
        import_processing.run_import(import_id)
    monkeypatch.setattr(staging, step, real)
    expire_leases()
    task_queue.run("customers.process_import", import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert row.status == "done"
    got = import_counts(row)
    assert got["rows"] == 90 == sum(value for name, value in got.items() if name != "rows")
    assert got["created"] == len(customers_by_email())
    assert got["rejected"] == len(rejected_rows(row))
    assert len(set(rejected_rows(row))) == len(rejected_rows(row))


def test_an_import_that_another_worker_holds_is_left_alone(received: Receive) -> None:
    import_id = received(many(1))
    values = {"status": "running", "epoch": 1, "lease_until": func.now() + timedelta(minutes=1)}
    db.session.execute(update(CustomerImport).values(values))
    db.session.commit()

    import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, row.epoch, row.rows) == ("running", 1, 0)


def test_a_worker_that_was_only_slow_finds_that_it_was_replaced(
    app: Flask, received: Receive, one_lane: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_id = received(many(40))
    real = staging.merge_rows
    calls = 0

    def slow(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            with app.app_context():
                expire_leases()
                with contextlib.suppress(Killed):
                    import_processing.run_import(import_id)
        elif calls == 3:
            # The one that replaced it is killed too, half way.
            raise Killed
        return real(*arguments)

    monkeypatch.setattr(staging, "merge_rows", slow)
    import_processing.run_import(import_id)
    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, row.epoch) == ("running", 2)
    expire_leases()
    import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, import_counts(row)) == ("done", {"rows": 40, "created": 40})


def test_a_worker_that_is_asked_to_end_leaves_off_and_another_goes_on_at_once(
    received: Receive, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_id = received(many(40))
    asked = threading.Event()
    asked.set()
    monkeypatch.setattr(task_queue, "stop_requested", asked)
    import_processing.run_import(import_id)
    assert import_queries.list_claimable_import_ids() == [import_id]

    monkeypatch.setattr(task_queue, "stop_requested", threading.Event())
    import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, import_counts(row)) == ("done", {"rows": 40, "created": 40})


def test_an_import_that_kills_every_worker_is_given_up(received: Receive) -> None:
    import_id = received(many(1))
    db.session.execute(update(CustomerImport).values(epoch=import_claims.MAX_IMPORT_ATTEMPTS))
    db.session.commit()

    import_processing.run_import(import_id)

    row = import_queries.find_import(import_id)
    assert row is not None
    assert (row.status, row.error_code) == ("failed", "import_broken")


def test_a_customer_changed_meanwhile_keeps_what_the_import_says_last(received: Receive) -> None:
    import_id = received("email,name\nada@example.com,From the file\n")
    customer_actions.upsert_customer(
        CustomerValues("ada@example.com", name="By JSON", source_id="C1"), None, by="tests"
    )

    import_processing.run_import(import_id)

    ada = customers_by_email()["ada@example.com"]
    assert (ada.name, ada.source_id) == ("From the file", "C1")


# --- beside each other ---------------------------------------------------------------------------


def test_one_import_is_read_at_a_time_and_the_next_is_rung_for(received: Receive) -> None:
    first, second = received("email\nada@example.com\n"), received("email\nbob@example.com\n")
    huey.storage.flush_queue()
    with customer_tasks._import_lock:
        customer_tasks.process_import(first)
    assert set(customers_by_email()) == set()

    customer_tasks.process_import(first)

    assert set(customers_by_email()) == {"ada@example.com"}
    assert huey.storage.queue_size() == 1
    customer_tasks.process_import(second)
    assert set(customers_by_email()) == {"ada@example.com", "bob@example.com"}


def test_the_sweep_leaves_an_upload_whose_last_piece_has_come(
    received: Receive, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_id = received("email\nada@example.com\n")
    # It looked a moment ago, when the piece was still missing.
    monkeypatch.setattr(import_queries, "list_stalled_upload_ids", lambda: [import_id])

    import_actions.fail_stalled_uploads()

    row = import_queries.find_import(import_id)
    assert row is not None
    assert row.status == "queued"
    assert db.session.scalar(select(func.count()).select_from(ImportChunk)) == 1


def test_an_upload_that_breaks_off_makes_no_audience(app: Flask) -> None:
    def broken() -> Iterator[bytes]:
        yield b"email\n" + b"x" * 2_000_000
        raise ConnectionError

    with pytest.raises(ConnectionError):
        import_actions.store_import_file(broken(), "a.csv", "text/csv", "Ghost", by="tests")

    assert list(customer_queries.list_audiences()) == []
