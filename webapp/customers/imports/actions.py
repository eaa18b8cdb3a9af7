"""Receive import files in chunks, and parse and merge them in a worker.

The row in `customer_import` holds the state. A worker owns an import while it renews its lease; a worker that takes
over increments the epoch, and the former owner stops at its next write because the epoch has changed. After a crash,
reading starts again from the beginning: it takes seconds and has merged nothing yet. Merging continues after the last
committed block, whose counts are committed with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, LiteralString, Protocol, TypeVar
from zlib import crc32

import psycopg
from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l
from sqlalchemy import delete, func, insert, update

from webapp.accounts.actions import record_audit_entry
from webapp.core import task_queue
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.actions import get_or_create_audience
from webapp.customers.imports import staging, suppression_staging
from webapp.customers.imports.parser import Rejection, check_file_start, file_error, parse_rows, read_file_start
from webapp.customers.imports.staging import MergeStrategy
from webapp.customers.models import CustomerImport, ImportChunk
from webapp.customers.validation import clean_audience_name

log = logging.getLogger(__name__)
T = TypeVar("T")

# Limits for the time until the next chunk of an upload, and until a worker's next block.
UPLOAD_TIMEOUT_SECONDS = 300
LEASE_SECONDS = 90
MAX_IMPORT_ATTEMPTS = 8
READ_BLOCK_ROWS = 20_000
# Protects the disk from a file that is not a customer list; rejected rows beyond it are counted but not stored.
MAX_STORED_REJECTIONS = 100_000
MAX_AUDIENCES = 100
# Files of at least this size are merged over two connections.
PARALLEL_MERGE_MIN_BYTES = 8 * 1024 * 1024
# Conflicts with concurrent writes to the same customers after which a merge fails.
MAX_MERGE_CONFLICTS = 100
ANALYZE_MIN_ROWS = 10_000

UPLOAD_BROKEN_MESSAGE = _l("The upload was interrupted, so nothing was imported. Upload the file again.")


class _LeaseLost(Exception):
    """Another worker has taken over the import, or this process is shutting down."""


# --- upload --------------------------------------------------------------------------------------


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
        _fail_import(import_id, "upload_broken", str(UPLOAD_BROKEN_MESSAGE))
        raise
    _mark_queued(import_id, filename, audience_name, by, kind)
    task_queue.enqueue("customers.process_import", import_id)
    return import_id


def _parse_audience_name(given: str) -> str:
    try:
        return clean_audience_name(given)
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
    # Created only now, so that an interrupted upload leaves no empty audience behind.
    audience_id = get_or_create_audience(audience) if audience else None
    _update_receiving_import(import_id, status="queued", lease_until=None, audience_id=audience_id)
    record_audit_entry(by, f"{kind}.import", filename, id=import_id)
    db.session.commit()


def _update_receiving_import(import_id: int, **values: object) -> None:
    statement = update(CustomerImport).where(CustomerImport.id == import_id, CustomerImport.status == "receiving")
    if db.session.execute(statement.values(values)).rowcount != 1:  # type: ignore[attr-defined]
        raise DomainError("upload_broken", _("The upload timed out. Upload the file again."), 408)


def _fail_import(import_id: int, code: str, message: str) -> None:
    """Mark an import as failed with an error, and delete its chunks. Commits."""
    db.session.execute(delete(ImportChunk).where(ImportChunk.import_id == import_id))
    db.session.execute(
        update(CustomerImport)
        .where(CustomerImport.id == import_id, CustomerImport.status.in_(("receiving", "queued", "running")))
        .values(status="failed", error_code=code, error=message, finished_at=func.now(), lease_until=None)
    )
    db.session.commit()


def fail_stalled_uploads() -> None:
    """Fail imports whose next chunk did not arrive in time. Commits.

    Normally their web process has ended.
    """
    for import_id in customer_queries.list_stalled_upload_ids():
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
            _fail_import(import_id, "upload_broken", str(UPLOAD_BROKEN_MESSAGE))
        else:
            db.session.rollback()


def _seconds_from_now(seconds: int) -> Any:
    return func.now() + timedelta(seconds=seconds)


# --- processing ----------------------------------------------------------------------------------


class StagingBackend(Protocol):
    """Staging and merging of one kind of import; implemented by the staging modules."""

    TARGET_TABLE: LiteralString

    def create_staging_tables(self, connection: staging.Connection) -> None: ...
    def copy_rows(self, connection: staging.Connection, rows: Sequence[str]) -> None: ...
    def deduplicate_rows(self, connection: staging.Connection) -> int: ...
    def merge_rows(
        self, connection: staging.Connection, import_id: int, start: int, end: int, strategy: MergeStrategy
    ) -> staging.MergeCounts: ...


@dataclass
class _ImportClaim:
    """An import that this worker owns until another one increments the epoch."""

    import_id: int
    epoch: int
    media_type: str
    audience_id: int | None
    size: int
    merged_to: list[int] | None
    kind: str
    aborted: threading.Event = field(default_factory=threading.Event)

    @property
    def is_suppression_list(self) -> bool:
        """Whether the file is a list of addresses to suppress."""
        return self.kind == "suppressions"

    @property
    def backend(self) -> StagingBackend:
        """The staging module for this kind of import."""
        return suppression_staging if self.is_suppression_list else staging


@dataclass
class _Partition:
    """A part of the rows with its own connection and staging tables.

    The rows are distributed by a checksum of the email address.
    """

    claim: _ImportClaim
    index: int
    connection: staging.Connection

    def commit_progress(self, assignments: LiteralString, **values: object) -> None:
        """Update the import, renew the lease and commit the work done.

        :param assignments: the SET clause, with `values` as its parameters.
        :raises _LeaseLost: when another worker owns the import, or this process is shutting down.
        """
        self._write_progress(assignments, LEASE_SECONDS, values)
        self.connection.commit()
        if task_queue.stop_requested.is_set():
            self._write_progress("epoch = epoch", 0, {})
            self.connection.commit()
        if task_queue.stop_requested.is_set() or self.claim.aborted.is_set():
            raise _LeaseLost

    def _write_progress(self, assignments: LiteralString, lease_seconds: int, values: dict[str, object]) -> None:
        statement = f"""
          update customer_import set {assignments}, lease_until = now() + make_interval(secs => %(lease_seconds)s)
          where id = %(import_id)s and epoch = %(epoch)s and status = 'running'
        """  # noqa: S608
        params = {"import_id": self.claim.import_id, "epoch": self.claim.epoch, "lease_seconds": lease_seconds}
        if self.connection.execute(statement, values | params).rowcount != 1:
            self.connection.rollback()
            raise _LeaseLost


def run_import(import_id: int) -> None:
    """Parse a queued import and merge it; continue one whose worker was lost.

    Does nothing while another worker owns the import. Customers are identified by email address; an empty cell keeps
    the stored value, and suppressions stay in force. Blocks that a lost worker committed are neither merged nor counted
    again.
    """
    with ExitStack() as connections:
        first_connection = connections.enter_context(_open_connection())
        claim = _claim_import(first_connection, import_id)
        if claim is None:
            return
        further = [connections.enter_context(_open_connection()) for n in range(1, _count_partitions(claim.size))]
        partitions = [_Partition(claim, n, connection) for n, connection in enumerate([first_connection, *further])]
        try:
            _stage_file(claim, partitions)
            _run_in_parallel(claim, _merge_partition, partitions)
            _finish_import(partitions[0])
        except _LeaseLost:
            log.info("Import %s: lease lost or shutdown requested, stopped", import_id)
        except InvalidInput as error:
            first_connection.rollback()
            _fail_import(import_id, error.errors[0].key, error.message)


def _count_partitions(size: int) -> int:
    """Return the number of partitions for a file size in bytes.

    It depends on the size only, so a worker that takes over gets the same partitions.
    """
    return 2 if size >= PARALLEL_MERGE_MIN_BYTES else 1


def _open_connection() -> staging.Connection:
    """Open a connection outside the pool; closing it drops its staging tables."""
    pooled = db.engine.raw_connection()
    connection: staging.Connection = pooled.driver_connection  # type: ignore[assignment]
    pooled.detach()
    return connection


def _run_in_parallel(claim: _ImportClaim, work: Callable[[_Partition], T], partitions: list[_Partition]) -> list[T]:
    """Run the same work on all partitions in threads.

    When one fails, the others stop at their next commit.
    """
    if len(partitions) == 1:
        return [work(partitions[0])]

    def abort_others_on_error(partition: _Partition) -> T:
        try:
            return work(partition)
        except BaseException:
            claim.aborted.set()
            raise

    with ThreadPoolExecutor(len(partitions)) as pool:
        futures = [pool.submit(abort_others_on_error, partition) for partition in partitions]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    # The cause comes first, before the _LeaseLost of a partition that stopped because of it.
    for error in sorted(errors, key=lambda error: isinstance(error, _LeaseLost)):
        raise error
    return [future.result() for future in futures]


def _claim_import(connection: staging.Connection, import_id: int) -> _ImportClaim | None:
    row = connection.execute(
        """
        update customer_import set status = 'running', epoch = epoch + 1, started_at = coalesce(started_at, now()),
          lease_until = now() + make_interval(secs => %(lease)s)
        where id = %(import_id)s and (status = 'queued' or (status = 'running' and lease_until <= now()))
        returning epoch, media_type, audience_id, size, merged_to, kind
        """,
        {"import_id": import_id, "lease": LEASE_SECONDS},
    ).fetchone()
    connection.commit()
    if row is None:
        return None
    if row[0] > MAX_IMPORT_ATTEMPTS:
        message = _("The import failed several times. Contact the server administrator.")
        _fail_import(import_id, "import_broken", message)
        return None
    return _ImportClaim(import_id, *row)


class _ImportReader:
    """Parses the file in blocks, stages and counts its rows.

    A repeated read only fills the staging tables again.
    """

    def __init__(self, claim: _ImportClaim, partitions: list[_Partition]) -> None:
        self.claim, self.partitions, self.first_partition = claim, partitions, partitions[0]
        self.is_first_read = claim.merged_to is None
        self.rows: list[list[str]] = [[] for partition in partitions]
        self.rejections: list[Rejection] = []
        self.bytes_read = self.accepted_count = self.rejected_count = self.stored_rejection_count = 0

    def read_chunks(self) -> Iterator[bytes]:
        """Yield the chunks of the file, with one of them in memory at a time."""
        seq = 0
        while chunk := self._read_chunk(seq):
            self.bytes_read += len(chunk)
            seq += 1
            yield chunk

    def _read_chunk(self, seq: int) -> bytes:
        query = "select data from import_chunk where import_id = %s and seq = %s"
        row = self.first_partition.connection.execute(query, (self.claim.import_id, seq), binary=True).fetchone()
        return row[0] if row else b""

    def read_all(self) -> None:
        """Read the whole file.

        The loop does little per row, because it runs for a million of them.
        """
        unflushed = 0
        for item in parse_rows(self.read_chunks(), self.claim.media_type, self.claim.kind):
            if isinstance(item, Rejection):
                self.rejections.append(item)
                self.rejected_count += not item.is_warning
            else:
                email, row = item
                self.rows[crc32(email.encode()) % len(self.rows)].append(row)
            unflushed += 1
            if unflushed == READ_BLOCK_ROWS:
                self.flush()
                unflushed = 0
        self.flush()

    def flush(self) -> None:
        """Stage the rows of a block, store its rejections and commit the progress."""
        capacity = max(0, MAX_STORED_REJECTIONS - self.stored_rejection_count)
        self.accepted_count += sum(map(len, self.rows))
        self.stored_rejection_count += len(self.rejections)
        for partition, rows in zip(self.partitions, self.rows, strict=True):
            self.claim.backend.copy_rows(partition.connection, rows)
            if partition is not self.first_partition:
                partition.connection.commit()
        if self.is_first_read and self.rejections:
            staging.copy_rejections(self.first_partition.connection, self.claim.import_id, self.rejections[:capacity])
        if self.is_first_read:
            progress = {
                "read": self.bytes_read,
                "rows": self.accepted_count + self.rejected_count,
                "rejected": self.rejected_count,
            }
            self.first_partition.commit_progress(
                "read = %(read)s, rows = %(rows)s, rejected = %(rejected)s", **progress
            )
        else:
            self.first_partition.commit_progress("epoch = epoch")
        self.rows, self.rejections = [[] for partition in self.partitions], []


def _stage_file(claim: _ImportClaim, partitions: list[_Partition]) -> None:
    """Stage the accepted rows, store the rejected ones and remove duplicates."""
    for partition in partitions:
        claim.backend.create_staging_tables(partition.connection)
    reader = _ImportReader(claim, partitions)
    if reader.is_first_read:
        partitions[0].connection.execute("delete from import_rejection where import_id = %s", (claim.import_id,))
    reader.read_all()
    if not reader.accepted_count and not reader.rejected_count:
        raise file_error("rows_missing")
    duplicates = sum(_run_in_parallel(claim, lambda part: claim.backend.deduplicate_rows(part.connection), partitions))
    if reader.is_first_read:
        if not claim.is_suppression_list:
            _create_named_audiences(partitions)
        claim.merged_to = [0] * len(partitions)
        progress = {"merged_to": claim.merged_to, "duplicates": duplicates}
        partitions[0].commit_progress("merged_to = %(merged_to)s, duplicates = %(duplicates)s", **progress)
    else:
        for partition in partitions:
            staging.delete_already_rejected(partition.connection, claim.import_id)
    # Committed here, so that a rollback of a merge block keeps the staged rows.
    for partition in partitions:
        partition.connection.commit()


def _create_named_audiences(partitions: list[_Partition]) -> None:
    limit = MAX_AUDIENCES + 1
    names = {name for part in partitions for name in staging.list_staged_audience_names(part.connection, limit)}
    if len(names) > MAX_AUDIENCES:
        message = _(
            "The audience column contains more than %(max)s different names. Check whether it is the right column.",
            max=MAX_AUDIENCES,
        )
        raise InvalidInput(FieldError("file", "audiences_too_many", message))
    for name in sorted(names):
        partitions[0].connection.execute("insert into audience (name) values (%s) on conflict do nothing", (name,))


def _merge_partition(partition: _Partition) -> None:
    claim, connection = partition.claim, partition.connection
    last_line = staging.find_last_line(connection)
    has_named_audiences = not claim.is_suppression_list and bool(staging.list_staged_audience_names(connection, 1))
    start = (claim.merged_to or [])[partition.index]
    # Most files contain only new customers or only existing ones. A unique violation shows that a row needs more.
    strategy, conflicts = MergeStrategy.INSERT, 0
    while start < last_line:
        end = start + staging.BLOCK_LINES
        try:
            _merge_block(partition, start, end, has_named_audiences, strategy)
            start = end
        except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected) as error:
            connection.rollback()
            strategy = _next_merge_strategy(error, strategy)
            conflicts += 1
            if conflicts > MAX_MERGE_CONFLICTS:
                raise


def _next_merge_strategy(error: psycopg.Error, previous: MergeStrategy) -> MergeStrategy:
    """Return the strategy for a retry.

    After a deadlock with a concurrent writer this is the most general one.
    """
    is_email = "email" in (error.diag.constraint_name or "")
    return (
        MergeStrategy.UPSERT
        if is_email and previous is MergeStrategy.INSERT
        else MergeStrategy.UPSERT_CHECKING_SOURCE_IDS
    )


def _merge_block(
    partition: _Partition, start: int, end: int, has_named_audiences: bool, strategy: MergeStrategy
) -> None:
    claim, connection = partition.claim, partition.connection
    counts = claim.backend.merge_rows(connection, claim.import_id, start, end, strategy)
    if not claim.is_suppression_list:
        staging.restore_suppressions(connection, start, end)
    if has_named_audiences:
        staging.add_to_named_audiences(connection, start, end)
    if claim.audience_id is not None:
        staging.add_to_audience(connection, start, end, claim.audience_id)
    partition.commit_progress(
        """created = created + %(created)s, updated = updated + %(updated)s, unchanged = unchanged + %(unchanged)s,
           rejected = rejected + %(rejected)s, merged_to[%(position)s] = %(end)s""",
        position=partition.index + 1,
        end=end,
        **vars(counts),
    )


def _finish_import(partition: _Partition) -> None:
    connection, import_id = partition.connection, partition.claim.import_id
    query = "select created + updated from customer_import where id = %s"
    changed = connection.execute(query, (import_id,)).fetchone()
    if changed and changed[0] >= ANALYZE_MIN_ROWS:
        # Gives the planner current statistics, and the screens a current estimate of the number of customers.
        connection.execute(f"analyze {partition.claim.backend.TARGET_TABLE}")
    connection.execute("delete from import_chunk where import_id = %s", (import_id,))
    partition.commit_progress("status = 'done', finished_at = now(), read = size")
