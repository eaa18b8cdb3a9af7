"""Receive the files of imports in chunks and enqueue their processing.

`customers.imports.processing` processes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import delete, func, insert, update

from webapp.accounts.audit import record_audit_entry
from webapp.core import task_queue
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.customers.audience_actions import get_or_create_audience
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports.parser import check_file_start, read_file_start
from webapp.customers.models import (
    CustomerImport,
    ImportChunk,
)
from webapp.customers.validation import clean_audience_name

# Maximum time between two chunks of an upload.
UPLOAD_TIMEOUT_SECONDS = 300

UPLOAD_BROKEN_MESSAGE = _l("The upload was interrupted, so nothing was imported. Upload the file again.")


def store_import_file(
    chunks: Iterable[bytes], filename: str, media_type: str, audience: str, by: str, kind: str = "customers"
) -> int:
    """Store a file as it arrives, and enqueue the import when complete. Commits.

    :param chunks: the file in chunks of about a megabyte. When the iterator raises, the import fails as an interrupted
        upload and the exception is passed on.
    :param audience: name of an audience that every customer of the file joins, created when missing; empty for none.
    :param by: email address of the staff member, or the name of the API key.
    :param kind: `customers`, or `suppressions` for a CSV file of addresses to suppress.
    :returns: id of the import.
    :raises InvalidInput: before anything is stored, when the start of the file shows that no row can be imported.
    """
    audience_name = _parse_audience_name(audience)
    filename = " ".join(filename.replace("\0", "").split())[:200] or "customers"
    remaining = iter(chunks)
    start, is_complete = read_file_start(remaining)
    check_file_start(start, media_type, is_complete, kind)
    import_id = _create_import(filename, media_type, by, kind)
    try:
        _store_chunk(import_id, 0, start)
        for seq, chunk in enumerate(remaining, 1):
            _store_chunk(import_id, seq, chunk)
    except BaseException:
        db.session.rollback()
        fail_import(import_id, "upload_broken", str(UPLOAD_BROKEN_MESSAGE))
        raise
    _mark_queued(import_id, filename, audience_name, by, kind)
    task_queue.enqueue("customers.process_import", import_id)
    return import_id


def _parse_audience_name(raw_name: str) -> str:
    try:
        return clean_audience_name(raw_name)
    except InvalidInput as error:
        raise InvalidInput(*(FieldError("audience", item.key, item.message) for item in error.errors)) from error


def _create_import(filename: str, media_type: str, by: str, kind: str) -> int:
    row = CustomerImport(
        filename=filename,
        media_type=media_type,
        kind=kind,
        by=by,
        lease_until=_seconds_from_now(UPLOAD_TIMEOUT_SECONDS),
    )
    db.session.add(row)
    db.session.flush()
    import_id = row.id
    db.session.commit()
    return import_id


def _store_chunk(import_id: int, seq: int, data: bytes) -> None:
    db.session.execute(insert(ImportChunk).values(import_id=import_id, seq=seq, data=data))
    _update_receiving_import(
        import_id, size=CustomerImport.size + len(data), lease_until=_seconds_from_now(UPLOAD_TIMEOUT_SECONDS)
    )
    db.session.commit()


def _mark_queued(import_id: int, filename: str, audience: str, by: str, kind: str) -> None:
    # The audience is created only now, so that an interrupted upload leaves no empty audience.
    audience_id = get_or_create_audience(audience) if audience else None
    _update_receiving_import(import_id, status="queued", lease_until=None, audience_id=audience_id)
    record_audit_entry(by, f"{kind}.import", filename, id=import_id)
    db.session.commit()


def _update_receiving_import(import_id: int, **values: object) -> None:
    statement = update(CustomerImport).where(CustomerImport.id == import_id, CustomerImport.status == "receiving")
    if db.session.execute(statement.values(values)).rowcount != 1:  # type: ignore[attr-defined]
        raise DomainError("upload_broken", _("The upload timed out. Upload the file again."), 408)


def fail_import(import_id: int, code: str, message: str) -> None:
    """Mark an import as failed with an error, and delete its chunks. Commits."""
    db.session.execute(delete(ImportChunk).where(ImportChunk.import_id == import_id))
    db.session.execute(
        update(CustomerImport)
        .where(CustomerImport.id == import_id, CustomerImport.status.in_(("receiving", "queued", "running")))
        .values(status="failed", error_code=code, error=message, finished_at=func.now(), lease_until=None)
    )
    db.session.commit()


def fail_stalled_uploads() -> None:
    """Mark the imports as failed whose next chunk did not arrive in time. Commits.

    Normally their web process has ended.
    """
    for import_id in import_queries.list_stalled_upload_ids():
        # Another chunk may have arrived since the SELECT, so the conditions are checked again.
        statement = (
            update(CustomerImport)
            .where(
                CustomerImport.id == import_id,
                CustomerImport.status == "receiving",
                CustomerImport.lease_until < func.now(),
            )
            .values(lease_until=None)
        )
        if db.session.execute(statement).rowcount:  # type: ignore[attr-defined]
            fail_import(import_id, "upload_broken", str(UPLOAD_BROKEN_MESSAGE))
        else:
            db.session.rollback()


def record_rejected_rows_export(import_id: int, by: str) -> None:
    """Record an export of the rejected rows of an import in the audit log. Commits."""
    record_audit_entry(by, "customers.refused_rows_exported", f"import {import_id}")
    db.session.commit()


def _seconds_from_now(seconds: int) -> Any:
    return func.now() + timedelta(seconds=seconds)


def replace_staff_in_imports(email: str, label: str) -> None:
    """Replace the email address of an erased user as the author of imports. The caller commits."""
    db.session.execute(update(CustomerImport).where(CustomerImport.by == email).values(by=label))
