"""Imports in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from sqlalchemy import select

from webapp.core.extensions import db
from webapp.customers.imports import actions as import_actions
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports.parser import CSV
from webapp.customers.models import Customer, CustomerImport, RejectedRow

ImportFileFixture = Callable[..., CustomerImport]


def file_chunks(file: bytes, size: int = 1024 * 1024) -> Iterator[bytes]:
    for start in range(0, len(file), size):
        yield file[start : start + size]


@pytest.fixture
def receive_file(app: Flask) -> Callable[..., int]:
    """Stores a file as if it had been uploaded and returns the import's id."""

    def receive(
        file: str | bytes,
        media_type: str = CSV,
        audience: str = "",
        size: int = 1024 * 1024,
        kind: str = "customers",
    ) -> int:
        data = file.encode() if isinstance(file, str) else file
        return import_actions.store_import_file(
            file_chunks(data, size), "customers.csv", media_type, audience, by="tests", kind=kind
        )

    return receive


@pytest.fixture
def import_file(receive_file: Callable[..., int]) -> ImportFileFixture:
    """Stores a file, runs its import and returns the finished import."""

    def run(file: str | bytes, **options: object) -> CustomerImport:
        import_id = receive_file(file, **options)
        import_processing.run_import(import_id)
        row = import_queries.find_import(import_id)
        assert row is not None
        return row

    return run


def customers_by_email() -> dict[str, Customer]:
    """Return all customers by email."""
    db.session.expire_all()
    return {customer.email: customer for customer in db.session.scalars(select(Customer))}


def rejected_rows(row: CustomerImport) -> list[tuple[int, str]]:
    """Return line and code of each row that the report lists."""
    rejected = db.session.scalars(
        select(RejectedRow).where(RejectedRow.import_id == row.id).order_by(RejectedRow.line, RejectedRow.id)
    )
    return [(entry.line, entry.code) for entry in rejected]


def import_counts(row: CustomerImport) -> dict[str, int]:
    names = ("rows", "created", "updated", "unchanged", "duplicates", "rejected")
    return {name: getattr(row, name) for name in names if getattr(row, name)}
