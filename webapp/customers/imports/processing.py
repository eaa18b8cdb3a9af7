"""Parse, stage and merge the files of imports in a worker.

After a crash, reading starts again from the beginning: it takes seconds and has merged nothing yet. Merging continues
after the last committed block, whose counts are committed with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from zlib import crc32

import psycopg
from flask_babel import gettext as _

from webapp.core.database_health import is_disk_full
from webapp.core.errors import FieldError, InvalidInput
from webapp.customers.imports import staging
from webapp.customers.imports.actions import fail_import
from webapp.customers.imports.claims import (
    ImportClaim,
    LeaseLost,
    Partition,
    claim_import,
    open_connection,
    run_in_parallel,
)
from webapp.customers.imports.parse_results import Rejection, file_error
from webapp.customers.imports.parser import parse_rows
from webapp.customers.imports.staging import MergeStrategy

log = logging.getLogger(__name__)

READ_BLOCK_ROWS = 20_000
# Protects the disk from a file that is not a customer list; rejected rows beyond it are counted but not stored.
MAX_STORED_REJECTIONS = 100_000
MAX_AUDIENCES = 100
# Files of at least this size are merged over two connections.
PARALLEL_MERGE_MIN_BYTES = 8 * 1024 * 1024
# Conflicts with concurrent writes to the same customers after which a merge fails.
MAX_MERGE_CONFLICTS = 100
ANALYZE_MIN_ROWS = 10_000


def run_import(import_id: int) -> None:
    """Parse a queued import and merge it; continue one whose lease has expired.

    Does nothing while another worker owns the import. Customers are identified by email address; an empty cell keeps
    the stored value, and suppressions stay in force. Blocks that a former worker committed are neither merged nor
    counted again. On a full disk the import fails, which frees the space of its file.
    """
    with ExitStack() as connections:
        first_connection = connections.enter_context(open_connection())
        claim = claim_import(first_connection, import_id)
        if claim is None:
            return
        other_connections = [
            connections.enter_context(open_connection()) for _index in range(1, _count_partitions(claim.size))
        ]
        partitions = [
            Partition(claim, index, connection)
            for index, connection in enumerate([first_connection, *other_connections])
        ]
        try:
            _stage_file(claim, partitions)
            run_in_parallel(claim, _merge_partition, partitions)
            _finish_import(partitions[0])
        except LeaseLost:
            log.info("import %s stopped: lease expired or shutdown requested", import_id)
        except InvalidInput as error:
            first_connection.rollback()
            fail_import(import_id, error.errors[0].key, error.message)
        except psycopg.OperationalError as error:
            if not is_disk_full(error):
                raise
            for partition in partitions:
                partition.connection.rollback()
            message = _(
                "The disk of the database is full. Import the file again after the server administrator has freed "
                "space. This creates no duplicates."
            )
            fail_import(import_id, "disk_full", message)


def _count_partitions(size: int) -> int:
    """Return the number of partitions for a file size in bytes.

    It depends on the size only, so a worker that takes over gets the same partitions.
    """
    return 2 if size >= PARALLEL_MERGE_MIN_BYTES else 1


class _ImportReader:
    """Parses the file in blocks, stages and counts its rows.

    A repeated read only fills the staging tables again.
    """

    def __init__(self, claim: ImportClaim, partitions: list[Partition]) -> None:
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

        The loop does little per row, because a file may have millions of rows.
        """
        unflushed_count = 0
        for item in parse_rows(self.read_chunks(), self.claim.media_type, self.claim.kind):
            if isinstance(item, Rejection):
                self.rejections.append(item)
                self.rejected_count += not item.is_warning
            else:
                email, row = item
                self.rows[crc32(email.encode()) % len(self.rows)].append(row)
            unflushed_count += 1
            if unflushed_count == READ_BLOCK_ROWS:
                self.flush()
                unflushed_count = 0
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


def _stage_file(claim: ImportClaim, partitions: list[Partition]) -> None:
    """Stage the accepted rows, store the rejected ones and remove duplicates."""
    for partition in partitions:
        claim.backend.create_staging_tables(partition.connection)
    reader = _ImportReader(claim, partitions)
    if reader.is_first_read:
        partitions[0].connection.execute("delete from import_rejection where import_id = %s", (claim.import_id,))
    reader.read_all()
    if not reader.accepted_count and not reader.rejected_count:
        raise file_error("rows_missing")
    duplicates = sum(run_in_parallel(claim, lambda part: claim.backend.deduplicate_rows(part.connection), partitions))
    if reader.is_first_read:
        if not claim.is_suppression_list:
            _create_named_audiences(partitions)
        claim.merged_to = [0] * len(partitions)
        progress = {"merged_to": claim.merged_to, "duplicates": duplicates}
        partitions[0].commit_progress("merged_to = %(merged_to)s, duplicates = %(duplicates)s", **progress)
    # Committed here, so that a rollback of a merge block keeps the staged rows.
    for partition in partitions:
        partition.connection.commit()


def _create_named_audiences(partitions: list[Partition]) -> None:
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


def _merge_partition(partition: Partition) -> None:
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
    partition: Partition, start: int, end: int, has_named_audiences: bool, strategy: MergeStrategy
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


def _finish_import(partition: Partition) -> None:
    connection, import_id = partition.connection, partition.claim.import_id
    query = "select created + updated from customer_import where id = %s"
    changed_count = connection.execute(query, (import_id,)).fetchone()
    if changed_count and changed_count[0] >= ANALYZE_MIN_ROWS:
        # Updates the statistics of the planner, from which the pages also estimate the number of customers.
        connection.execute(f"analyze {partition.claim.backend.TARGET_TABLE}")
    connection.execute("delete from import_chunk where import_id = %s", (import_id,))
    partition.commit_progress("status = 'done', finished_at = now(), read = size")
