"""An import's life: received in pieces, queued when all of it is there, read and merged by a worker, done or failed.

The row of the import is the truth. A worker owns it for as long as it renews its lease; whoever takes it over raises
the epoch, and the former owner's next write finds that and leaves off. Reading starts anew after a kill: it costs
seconds and has written nothing yet. Merging goes on behind the last block that was committed, with its counts.
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
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from webapp.accounts.actions import record_audit_entry
from webapp.core import task_queue
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.customers.imports import staging, suppression_staging
from webapp.customers.imports.parser import Rejection, check_file_start, parse_rows, read_file_start
from webapp.customers.imports.staging import MergeStrategy
from webapp.customers.models import Audience, CustomerImport, ImportChunk
from webapp.customers.validation import clean_audience_name

log = logging.getLogger(__name__)
T = TypeVar("T")

# While a file arrives, the next piece has to come within this time; so has a worker's next block.
UPLOAD_TIMEOUT_SECONDS = 300
LEASE_SECONDS = 90
MAX_IMPORT_ATTEMPTS = 8
READ_BLOCK_ROWS = 20_000
# A file that is no list of customers must not fill the disk with explanations; its rows are counted all the same.
MAX_STORED_REJECTIONS = 100_000
MAX_AUDIENCES = 100
# Two connections merge a file of this size, one a smaller one.
PARALLEL_MERGE_MIN_BYTES = 8 * 1024 * 1024
# How often neighbours may write the same customers at the same time before an import gives the worker back.
MAX_MERGE_CONFLICTS = 100
ANALYZE_MIN_ROWS = 10_000

UPLOAD_BROKEN_MESSAGE = "The file did not arrive whole, so nothing of it was imported. Please send it again."


class _LeaseLost(Exception):
    """Another worker has taken the import over, or this one has been asked to end."""


# --- receiving -----------------------------------------------------------------------------------


def store_import_file(
    pieces: Iterable[bytes], filename: str, media_type: str, audience: str, by: str, kind: str = "customers"
) -> int:
    """Keep a file as it arrives, piece by piece, and queue it when all of it is there. Returns the import's id.

    :param pieces: the file, in pieces of about a megabyte. What it raises is passed on; the import then says that the
        file did not arrive.
    :param audience: the name of an audience that every customer of the file joins, made when missing; empty for none.
    :param kind: `customers`, or `suppressions`: a list of addresses that must not be mailed, in CSV.
    :raises Invalid: before anything is kept, when the file's beginning shows that nothing of it can be taken.
    """
    name = _parse_audience_name(audience)
    filename = " ".join(filename.replace("\0", "").split())[:200] or "customers"
    arriving = iter(pieces)
    first, whole = read_file_start(arriving)
    check_file_start(first, media_type, whole, kind)
    import_id = _create_import(filename, media_type, by, kind)
    try:
        _store_chunk(import_id, 0, first)
        for seq, piece in enumerate(arriving, 1):
            _store_chunk(import_id, seq, piece)
    except BaseException:
        db.session.rollback()
        _fail_import(import_id, "upload_broken", UPLOAD_BROKEN_MESSAGE)
        raise
    _mark_queued(import_id, filename, name, by, kind)
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


def _get_or_create_audience(name: str) -> int:
    db.session.execute(upsert(Audience).values(name=name).on_conflict_do_nothing())
    return db.session.execute(select(Audience.id).where(Audience.name == name)).scalar_one()


def _store_chunk(import_id: int, seq: int, data: bytes) -> None:
    db.session.execute(insert(ImportChunk).values(import_id=import_id, seq=seq, data=data))
    _update_receiving_import(
        import_id, size=CustomerImport.size + len(data), lease_until=_seconds_from_now(UPLOAD_TIMEOUT_SECONDS)
    )
    db.session.commit()


def _mark_queued(import_id: int, filename: str, audience: str, by: str, kind: str) -> None:
    # Only now, with the file: an upload that breaks off leaves no empty audience behind.
    audience_id = _get_or_create_audience(audience) if audience else None
    _update_receiving_import(import_id, status="queued", lease_until=None, audience_id=audience_id)
    record_audit_entry(by, f"{kind}.import", filename, id=import_id)
    db.session.commit()


def _update_receiving_import(import_id: int, **values: object) -> None:
    statement = update(CustomerImport).where(CustomerImport.id == import_id, CustomerImport.status == "receiving")
    if db.session.execute(statement.values(values)).rowcount != 1:  # type: ignore[attr-defined]
        raise DomainError("upload_broken", "This upload took too long and was closed. Please send the file again.", 408)


def _fail_import(import_id: int, code: str, sentence: str) -> None:
    """End an import without a result: it says why, and its pieces are gone."""
    db.session.execute(delete(ImportChunk).where(ImportChunk.import_id == import_id))
    db.session.execute(
        update(CustomerImport)
        .where(CustomerImport.id == import_id, CustomerImport.status.in_(("receiving", "queued", "running")))
        .values(status="failed", error_code=code, error=sentence, finished_at=func.now(), lease_until=None)
    )
    db.session.commit()


def fail_stalled_uploads() -> None:
    """Close imports whose next piece did not come in time: the web process that received them was ended."""
    for import_id in customer_queries.list_stalled_upload_ids():
        # The last piece may have come since: only what still waits for one, and in vain, is closed.
        stalled = (
            update(CustomerImport)
            .where(
                CustomerImport.id == import_id,
                CustomerImport.status == "receiving",
                CustomerImport.lease_until < func.now(),
            )
            .values(lease_until=None)
        )
        if db.session.execute(stalled).rowcount:  # type: ignore[attr-defined]
            _fail_import(import_id, "upload_broken", UPLOAD_BROKEN_MESSAGE)
        else:
            db.session.rollback()


def _seconds_from_now(seconds: int) -> Any:
    return func.now() + timedelta(seconds=seconds)


# --- running -------------------------------------------------------------------------------------


class StagingBackend(Protocol):
    """The statements of an import, of one kind of list or the other."""

    TARGET_TABLE: LiteralString

    def create_staging_tables(self, connection: staging.Connection) -> None: ...
    def copy_rows(self, connection: staging.Connection, rows: Sequence[str]) -> None: ...
    def deduplicate_rows(self, connection: staging.Connection) -> int: ...
    def merge_rows(
        self, connection: staging.Connection, import_id: int, start: int, end: int, expect: MergeStrategy
    ) -> staging.MergeCounts: ...


@dataclass
class _ImportClaim:
    """An import that this worker owns as long as the epoch holds."""

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
        """Whether it is one of addresses that must not be mailed."""
        return self.kind == "suppressions"

    @property
    def backend(self) -> StagingBackend:
        return suppression_staging if self.is_suppression_list else staging


@dataclass
class _Partition:
    """A part of the file's customers (which, their e-mail says) on a connection of its own, with its staging table."""

    claim: _ImportClaim
    index: int
    connection: staging.Connection

    def commit_progress(self, progress: LiteralString, **values: object) -> None:
        """Write progress down in the transaction of the work it tells of, renew the lease and commit.

        :raises _Lost: when the import is another worker's by now, or this one has to leave off.
        """
        self._write_progress(progress, LEASE_SECONDS, values)
        self.connection.commit()
        if task_queue.stop_requested.is_set():
            self._write_progress("epoch = epoch", 0, {})
            self.connection.commit()
        if task_queue.stop_requested.is_set() or self.claim.aborted.is_set():
            raise _LeaseLost

    def _write_progress(self, progress: LiteralString, lease: int, values: dict[str, object]) -> None:
        statement = f"""
          update customer_import set {progress}, lease_until = now() + make_interval(secs => %(lease)s)
          where id = %(import_id)s and epoch = %(epoch)s and status = 'running'
        """  # noqa: S608
        values = values | {"import_id": self.claim.import_id, "epoch": self.claim.epoch, "lease": lease}
        if self.connection.execute(statement, values).rowcount != 1:
            self.connection.rollback()
            raise _LeaseLost


def run_import(import_id: int) -> None:
    """Read a queued import and merge it into the customers; go on with one whose worker has died.

    Nothing is done when another worker has it. Customers are known by their e-mail; an empty cell changes nothing, an
    unsubscription stays. What a killed worker had committed is neither done nor counted again.
    """
    with ExitStack() as connections:
        first = connections.enter_context(_open_connection())
        claim = _claim_import(first, import_id)
        if claim is None:
            return
        others = [connections.enter_context(_open_connection()) for _ in range(_count_partitions(claim.size) - 1)]
        lanes = [_Partition(claim, number, connection) for number, connection in enumerate([first, *others])]
        try:
            _stage_file(claim, lanes)
            _run_in_parallel(claim, _merge_partition, lanes)
            _finish_import(lanes[0])
        except _LeaseLost:
            log.info("import %s: left to another worker", import_id)
        except InvalidInput as refusal:
            first.rollback()
            _fail_import(import_id, refusal.errors[0].key, refusal.message)


def _count_partitions(size: int) -> int:
    """A large file is merged over two connections at once. Whoever goes on with it reckons the same."""
    return 2 if size >= PARALLEL_MERGE_MIN_BYTES else 1


def _open_connection() -> staging.Connection:
    """A connection that is closed at the end instead of given back: with it goes its staging table."""
    pooled = db.engine.raw_connection()
    connection: staging.Connection = pooled.driver_connection  # type: ignore[assignment]
    pooled.detach()
    return connection


def _run_in_parallel(claim: _ImportClaim, work: Callable[[_Partition], T], lanes: list[_Partition]) -> list[T]:
    """The same work in every lane at the same time. When one breaks, the others leave off at their next commit."""
    if len(lanes) == 1:
        return [work(lanes[0])]

    def guarded(lane: _Partition) -> T:
        try:
            return work(lane)
        except BaseException:
            claim.aborted.set()
            raise

    with ThreadPoolExecutor(len(lanes)) as pool:
        futures = [pool.submit(guarded, lane) for lane in lanes]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    # Not the one that only left off because of the other.
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
        _fail_import(import_id, "import_broken", "This import broke off again and again. Tell whoever runs Onecode.")
        return None
    return _ImportClaim(import_id, *row)


class _ImportReader:
    """Takes what the file gives, in blocks, and counts it. A second reading only fills the staging tables again."""

    def __init__(self, claim: _ImportClaim, lanes: list[_Partition]) -> None:
        self.claim, self.partitions, self.first_partition = claim, lanes, lanes[0]
        self.is_first_read = claim.merged_to is None
        self.rows: list[list[str]] = [[] for _ in lanes]
        self.rejections: list[Rejection] = []
        self.bytes_read = self.accepted_count = self.rejected_count = self.stored_rejection_count = 0

    def read_chunks(self) -> Iterator[bytes]:
        """The file, one piece in memory at a time."""
        seq = 0
        while piece := self._read_chunk(seq):
            self.bytes_read += len(piece)
            seq += 1
            yield piece

    def _read_chunk(self, seq: int) -> bytes:
        query = "select data from import_chunk where import_id = %s and seq = %s"
        row = self.first_partition.connection.execute(query, (self.claim.import_id, seq), binary=True).fetchone()
        return row[0] if row else b""

    def read_all(self) -> None:
        """Read the whole file. One loop for a million rows: what it does for each is little."""
        waiting = 0
        for item in parse_rows(self.read_chunks(), self.claim.media_type, self.claim.kind):
            if isinstance(item, Rejection):
                self.rejections.append(item)
                self.rejected_count += not item.is_warning
            else:
                email, row = item
                self.rows[crc32(email.encode()) % len(self.rows)].append(row)
            waiting += 1
            if waiting == READ_BLOCK_ROWS:
                self.flush()
                waiting = 0
        self.flush()

    def flush(self) -> None:
        kept = max(0, MAX_STORED_REJECTIONS - self.stored_rejection_count)
        self.accepted_count += sum(map(len, self.rows))
        self.stored_rejection_count += len(self.rejections)
        for lane, rows in zip(self.partitions, self.rows, strict=True):
            self.claim.backend.copy_rows(lane.connection, rows)
            if lane is not self.first_partition:
                lane.connection.commit()
        if self.is_first_read and self.rejections:
            staging.copy_rejections(self.first_partition.connection, self.claim.import_id, self.rejections[:kept])
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
        self.rows, self.rejections = [[] for _ in self.partitions], []


def _stage_file(claim: _ImportClaim, lanes: list[_Partition]) -> None:
    """Stage the file's good rows and keep its bad ones; then drop the rows that a later one stands in for."""
    for lane in lanes:
        claim.backend.create_staging_tables(lane.connection)
    reading = _ImportReader(claim, lanes)
    if reading.is_first_read:
        lanes[0].connection.execute("delete from import_rejection where import_id = %s", (claim.import_id,))
    reading.read_all()
    if not reading.accepted_count and not reading.rejected_count:
        raise InvalidInput(FieldError("file", "rows_missing", "This file has a header and no rows beneath it."))
    duplicates = sum(_run_in_parallel(claim, lambda lane: claim.backend.deduplicate_rows(lane.connection), lanes))
    if reading.is_first_read:
        if not claim.is_suppression_list:
            _create_named_audiences(lanes)
        claim.merged_to = [0] * len(lanes)
        progress = {"merged_to": claim.merged_to, "duplicates": duplicates}
        lanes[0].commit_progress("merged_to = %(merged_to)s, duplicates = %(duplicates)s", **progress)
    else:
        for lane in lanes:
            staging.delete_already_rejected(lane.connection, claim.import_id)
    # What is staged stays when a block of the merge has to be taken back.
    for lane in lanes:
        lane.connection.commit()


def _create_named_audiences(lanes: list[_Partition]) -> None:
    names = {name for lane in lanes for name in staging.list_staged_audience_names(lane.connection, MAX_AUDIENCES + 1)}
    if len(names) > MAX_AUDIENCES:
        sentence = f"The column audience names more than {MAX_AUDIENCES} audiences. Is it another column?"
        raise InvalidInput(FieldError("file", "audiences_too_many", sentence))
    for name in sorted(names):
        lanes[0].connection.execute("insert into audience (name) values (%s) on conflict do nothing", (name,))


def _merge_partition(lane: _Partition) -> None:
    last = staging.find_last_line(lane.connection)
    named = not lane.claim.is_suppression_list and bool(staging.list_staged_audience_names(lane.connection, 1))
    start = (lane.claim.merged_to or [])[lane.index]
    # Nearly every file is one of these: all new, or all known. The database says when it is more than that.
    expect, collisions = MergeStrategy.INSERT, 0
    while start < last:
        end = start + staging.BLOCK_LINES
        try:
            _merge_block(lane, start, end, named, expect)
            start = end
        except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected) as error:
            lane.connection.rollback()
            expect = _next_merge_strategy(error, expect)
            collisions += 1
            if collisions > MAX_MERGE_CONFLICTS:
                raise


def _next_merge_strategy(error: psycopg.Error, before: MergeStrategy) -> MergeStrategy:
    """What to reckon with from now on. After a deadlock with a neighbour: with everything."""
    is_email = "email" in (error.diag.constraint_name or "")
    return (
        MergeStrategy.UPSERT
        if is_email and before is MergeStrategy.INSERT
        else MergeStrategy.UPSERT_CHECKING_SOURCE_IDS
    )


def _merge_block(lane: _Partition, start: int, end: int, named: bool, expect: MergeStrategy) -> None:
    merged = lane.claim.backend.merge_rows(lane.connection, lane.claim.import_id, start, end, expect)
    if not lane.claim.is_suppression_list:
        staging.restore_suppressions(lane.connection, start, end)
    if named:
        staging.add_to_named_audiences(lane.connection, start, end)
    if lane.claim.audience_id is not None:
        staging.add_to_audience(lane.connection, start, end, lane.claim.audience_id)
    lane.commit_progress(
        """created = created + %(created)s, updated = updated + %(updated)s, unchanged = unchanged + %(unchanged)s,
           rejected = rejected + %(rejected)s, merged_to[%(lane)s] = %(end)s""",
        lane=lane.index + 1,
        end=end,
        **vars(merged),
    )


def _finish_import(lane: _Partition) -> None:
    connection, import_id = lane.connection, lane.claim.import_id
    query = "select created + updated from customer_import where id = %s"
    changed = connection.execute(query, (import_id,)).fetchone()
    if changed and changed[0] >= ANALYZE_MIN_ROWS:
        # The planner, and the number of customers on the screen, follow at once.
        connection.execute(f"analyze {lane.claim.backend.TARGET_TABLE}")
    connection.execute("delete from import_chunk where import_id = %s", (import_id,))
    lane.commit_progress("status = 'done', finished_at = now(), read = size")
