"""Imports in several blocks: every row is merged exactly once, and only the rows of the file are changed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest
from flask import Flask
from sqlalchemy import func, select, text, update

from tests.support.factories import MakeCustomer
from tests.support.imports import ImportFileFixture, customers_by_email, import_counts, rejected_rows
from tests.support.suppressions import add_suppression, suppression_reasons
from webapp.core.email_addresses import hash_email
from webapp.core.extensions import db
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports import staging, suppression_staging
from webapp.customers.models import Customer, CustomerImport

BLOCK_LINES = 10
# The last lines of the blocks of a file with a header and 30 rows.
LAST_LINES = (10, 20, 30)


@pytest.fixture(params=["one connection", "two connections"])
def small_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "BLOCK_LINES", BLOCK_LINES)
    if request.param == "two connections":
        monkeypatch.setattr(import_processing, "PARALLEL_MERGE_MIN_BYTES", 0)


@pytest.fixture
def import_list(app: Flask) -> Callable[[dict[str, str]], CustomerImport]:
    """Imports a suppression list: reasons by address."""

    def run(reasons: dict[str, str]) -> CustomerImport:
        file = "email,reason\n" + "".join(f"{email},{reason}\n" for email, reason in reasons.items())
        import_id = import_actions.store_import_file(
            iter([file.encode()]), "list.csv", "text/csv", "", by="tests", kind="suppressions"
        )
        import_processing.run_import(import_id)
        row = import_queries.find_import(import_id)
        assert row is not None
        return row

    return run


def email_of(line: int) -> str:
    return f"line{line}@example.com"


# --- customers -----------------------------------------------------------------------------------


def test_new_customers_are_inserted_in_the_order_of_their_addresses(import_file: ImportFileFixture) -> None:
    """Two imports of the same new customers then cannot deadlock."""
    import_file("email\nzoe@example.com\nada@example.com\nmia@example.com\n")

    emails = db.session.scalars(select(Customer.email).order_by(Customer.id)).all()
    assert emails == ["ada@example.com", "mia@example.com", "zoe@example.com"]


def test_every_changed_customer_is_updated(
    import_file: ImportFileFixture, make_customer: MakeCustomer, small_blocks: None
) -> None:
    for line in range(2, 32):
        make_customer(email_of(line), name="Old")
    make_customer("other@example.com", name="Old")

    row = import_file("email,name\n" + "".join(f"{email_of(line)},New\n" for line in range(2, 32)))

    assert import_counts(row) == {"rows": 30, "updated": 30}
    assert [email for email, customer in customers_by_email().items() if customer.name == "Old"] == [
        "other@example.com"
    ]


def test_only_unchanged_customers_of_the_file_become_active(
    import_file: ImportFileFixture, make_customer: MakeCustomer, small_blocks: None
) -> None:
    for line in range(2, 32):
        make_customer(email_of(line), name="Same")
    make_customer("other@example.com")
    db.session.execute(update(Customer).values(active_at=func.now() - timedelta(days=8)))
    recent = update(Customer).where(Customer.email == email_of(5)).values(active_at=func.now() - timedelta(days=6))
    db.session.execute(recent)
    db.session.commit()

    row = import_file("email,name\n" + "".join(f"{email_of(line)},Same\n" for line in range(2, 32)))

    days = {email: customer.active_at.date() for email, customer in customers_by_email().items()}
    today = db.session.execute(select(func.now())).scalar_one().date()
    assert import_counts(row) == {"rows": 30, "unchanged": 30}
    assert {email for email, day in days.items() if day != today} == {email_of(5), "other@example.com"}


def test_the_hashes_of_the_imported_addresses_are_replaced(import_file: ImportFileFixture, small_blocks: None) -> None:
    for email in (*map(email_of, LAST_LINES), "other@example.com"):
        add_suppression(hash_email(email), "complained")

    import_file("email\n" + "".join(f"{email_of(line)}\n" for line in range(2, 32)))

    expected = dict.fromkeys((*map(email_of, LAST_LINES), hash_email("other@example.com")), "complained")
    assert suppression_reasons() == expected


def test_a_taken_source_id_is_rejected_in_every_line_of_a_block(
    import_file: ImportFileFixture, make_customer: MakeCustomer, small_blocks: None
) -> None:
    make_customer("other@example.com", source_id="taken")
    taken_lines = {*LAST_LINES, 11}
    file = "email,source_id\n" + "".join(
        f"{email_of(line)},{'taken' if line in taken_lines else line}\n" for line in range(2, 32)
    )

    row = import_file(file)

    assert rejected_rows(row) == [(line, "source_id_taken") for line in sorted(taken_lines)]
    assert import_counts(row) == {"rows": 30, "created": 26, "rejected": 4}


def test_a_source_id_that_an_earlier_block_has_freed_can_be_used(
    import_file: ImportFileFixture, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "BLOCK_LINES", BLOCK_LINES)
    make_customer("ada@example.com", source_id="C1")
    make_customer("other@example.com", source_id="taken")
    filler = "".join(f"{email_of(line)},{line}\n" for line in range(4, 13))

    row = import_file(f"email,source_id\nada@example.com,C2\nbob@example.com,taken\n{filler}grace@example.com,C1\n")

    assert rejected_rows(row) == [(3, "source_id_taken")]
    found = customers_by_email()
    assert (found["ada@example.com"].source_id, found["grace@example.com"].source_id) == ("C2", "C1")


def test_an_empty_cell_is_filled_from_the_nearest_earlier_row(import_file: ImportFileFixture) -> None:
    rows = ("First,de,C1", "Second,en,C2", ",,")

    import_file("email,name,locale,source_id\n" + "".join(f"ada@example.com,{row}\n" for row in rows))

    ada = customers_by_email()["ada@example.com"]
    assert (ada.name, ada.locale, ada.source_id) == ("Second", "en", "C2")


def test_a_merge_fails_after_too_many_conflicts(
    app: Flask, receive_file: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def conflict(*arguments: object) -> None:
        calls.append(arguments[-1])
        raise psycopg.errors.DeadlockDetected

    monkeypatch.setattr(import_processing, "MAX_MERGE_CONFLICTS", 2)
    monkeypatch.setattr(staging, "merge_rows", conflict)

    with pytest.raises(psycopg.errors.DeadlockDetected):
        import_processing.run_import(receive_file("email\nada@example.com\n"))

    strategies = staging.MergeStrategy
    assert calls == [strategies.INSERT, *[strategies.UPSERT_CHECKING_SOURCE_IDS] * 2]


@pytest.mark.parametrize(("min_rows", "estimate"), [(2, 2), (3, 0)])
def test_a_large_import_updates_the_statistics(
    import_file: ImportFileFixture, monkeypatch: pytest.MonkeyPatch, min_rows: int, estimate: int
) -> None:
    monkeypatch.setattr(import_processing, "ANALYZE_MIN_ROWS", min_rows)
    db.session.execute(text("truncate customer cascade"))
    db.session.execute(text("analyze customer"))
    db.session.commit()

    import_file("email\nada@example.com\nbob@example.com\nbad\n")

    found = db.session.execute(text("select reltuples from pg_class where oid = 'customer'::regclass")).scalar_one()
    assert found == estimate


# --- the suppression list ------------------------------------------------------------------------


def test_every_address_of_a_list_is_merged_once(
    import_list: Callable[..., CustomerImport], make_customer: MakeCustomer, small_blocks: None
) -> None:
    for line, reason in ((11, "bounced"), (12, "unsubscribed"), (13, "complained")):
        add_suppression(email_of(line), reason)
    make_customer(email_of(2))

    row = import_list({email_of(line): "unsubscribed" for line in range(2, 32)})

    assert import_counts(row) == {"rows": 30, "created": 27, "updated": 1, "unchanged": 2}
    assert suppression_reasons() == {email_of(line): "unsubscribed" for line in range(2, 32)} | {
        email_of(13): "complained"
    }


@pytest.mark.parametrize("line", LAST_LINES)
def test_hashes_of_customers_become_addresses_and_others_stay(
    import_list: Callable[..., CustomerImport], make_customer: MakeCustomer, small_blocks: None, line: int
) -> None:
    make_customer("ada@example.com")
    hashes = {number: hash_email(email_of(number)) for number in range(2, 32)}
    hashes[line] = hash_email("ada@example.com")

    row = import_list(dict.fromkeys(hashes.values(), "bounced"))

    assert import_counts(row) == {"rows": 30, "created": 30}
    assert suppression_reasons().keys() == {*hashes.values(), "ada@example.com"} - {hashes[line]}


def test_an_address_that_is_changed_before_the_merge_stays_hashed(
    import_list: Callable[..., CustomerImport], make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = make_customer("ada@example.com")
    make_customer("bob@example.com")
    hashes = [hash_email(email) for email in ("ada@example.com", "bob@example.com")]
    merge_rows = suppression_staging.merge_rows

    def change_address_first(*arguments: object) -> object:
        with db.engine.begin() as other:
            other.execute(update(Customer).where(Customer.id == ada.id).values(email="countess@example.com"))
        return merge_rows(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(suppression_staging, "merge_rows", change_address_first)
    import_list(dict.fromkeys(hashes, "bounced"))

    assert suppression_reasons().keys() == {hashes[0], "bob@example.com"}


@pytest.mark.parametrize("reasons", [("bounced", "complained", "unsubscribed"), ("complained", "bounced", "bounced")])
def test_the_strongest_reason_of_an_address_is_imported(
    import_list: Callable[..., CustomerImport], small_blocks: None, reasons: tuple[str, ...]
) -> None:
    spellings = ("ada@example.com", "ADA@example.com", "Ada@example.com")

    row = import_list(dict(zip(spellings, reasons, strict=True)) | {"bob@example.com": "bounced"})

    assert import_counts(row) == {"rows": 4, "created": 2, "duplicates": 2}
    assert suppression_reasons() == {"ada@example.com": "complained", "bob@example.com": "bounced"}
