"""Queries for imports and their rejected rows."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import func, select

from webapp.core.csv_export import FORMULA_SAFE_COLUMN, stream_csv
from webapp.core.extensions import db
from webapp.customers.models import CustomerImport, RejectedRow
from webapp.customers.queries import PAGE_SIZE


def find_import(import_id: int) -> CustomerImport | None:
    """Return the import with this id, freshly read."""
    return db.session.get(CustomerImport, import_id, populate_existing=True)


def list_imports(before: int | None = None, limit: int = PAGE_SIZE) -> list[CustomerImport]:
    """Return imports, newest first; `limit + 1` of them if there are more.

    :param before: return only imports with a smaller id.
    """
    statement = select(CustomerImport).order_by(CustomerImport.id.desc()).limit(limit + 1)
    if before is not None:
        statement = statement.where(CustomerImport.id < before)
    return list(db.session.scalars(statement))


def list_rejected_rows(
    import_id: int, after: tuple[int, ...] | None = None, limit: int = PAGE_SIZE
) -> list[RejectedRow]:
    """Return the rejected rows of an import, sorted by line.

    Returns `limit + 1` rows if there are more.

    :param after: line and id of the last row of the previous page.
    """
    statement = select(RejectedRow).where(RejectedRow.import_id == import_id)
    if after is not None:
        line, row_id = after
        statement = statement.where(
            (RejectedRow.line > line) | ((RejectedRow.line == line) & (RejectedRow.id > row_id))
        )
    return list(db.session.scalars(statement.order_by(RejectedRow.line, RejectedRow.id).limit(limit + 1)))


def list_stalled_upload_ids() -> list[int]:
    """Return the ids of uploads whose next chunk did not arrive in time."""
    return list(
        db.session.scalars(
            select(CustomerImport.id).where(
                CustomerImport.status == "receiving", CustomerImport.lease_until < func.now()
            )
        )
    )


def list_claimable_import_ids() -> list[int]:
    """Return the ids of imports without a worker.

    Their task was lost, or the lease of their worker has expired.
    """
    return list(
        db.session.scalars(
            select(CustomerImport.id)
            .where(
                (CustomerImport.status == "queued")
                | ((CustomerImport.status == "running") & (CustomerImport.lease_until <= func.now()))
            )
            .order_by(CustomerImport.id)
        )
    )


def export_rejected_rows(import_id: int) -> Iterator[bytes]:
    """Stream the rejected rows of an import as CSV."""
    yield from stream_csv(
        f"""
        select line, code, detail, {FORMULA_SAFE_COLUMN.format("row", "row")}
        from import_rejection where import_id = %(import_id)s order by line, id
        """,  # noqa: S608
        {"import_id": import_id},
    )
