"""Ownership of an import: a worker claims it and renews its lease.

The row in `customer_import` holds the state. A worker owns an import while it renews its lease; a worker that takes
over increments the epoch, and the former owner stops at its next write because the epoch has changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import LiteralString, Protocol, TypeVar, cast

from flask_babel import gettext as _

from webapp.core import database_connections, database_timeouts, task_queue
from webapp.core.database_engines import get_direct_engine
from webapp.customers.imports import staging, suppression_staging
from webapp.customers.imports.actions import fail_import
from webapp.customers.imports.staging import MergeStrategy

T = TypeVar("T")

# Maximum time between two blocks of a worker.
LEASE_SECONDS = 90
MAX_IMPORT_ATTEMPTS = 8


class LeaseLost(Exception):
    """Another worker has taken over the import, or this process is shutting down."""


class StagingBackend(Protocol):
    """Staging and merging of one kind of import; implemented by the staging modules.

    None of the functions commits.
    """

    TARGET_TABLE: LiteralString

    def create_staging_tables(self, connection: staging.Connection) -> None:
        """Create the temporary tables of a connection."""

    def copy_rows(self, connection: staging.Connection, rows: Sequence[str]) -> None:
        """Copy rows from the parser into the staging table."""

    def deduplicate_rows(self, connection: staging.Connection) -> int:
        """Delete duplicate rows after all rows were copied; return their number."""

    def merge_rows(
        self, connection: staging.Connection, import_id: int, start: int, end: int, strategy: MergeStrategy
    ) -> staging.MergeCounts:
        """Merge the rows of the lines in `(start, end]`."""


@dataclass
class ImportClaim:
    """An import that this worker owns until another one increments the epoch."""

    import_id: int
    epoch: int
    media_type: str
    audience_id: int | None
    size: int
    merged_to: list[int] | None
    kind: str
    abort_event: threading.Event = field(default_factory=threading.Event)

    @property
    def is_suppression_list(self) -> bool:
        """Whether the file is a list of addresses to suppress."""
        return self.kind == "suppressions"

    @property
    def backend(self) -> StagingBackend:
        """The staging module for this kind of import."""
        return suppression_staging if self.is_suppression_list else staging


@dataclass
class Partition:
    """A part of the rows with its own connection and staging tables.

    The rows are distributed by a checksum of the email address.
    """

    claim: ImportClaim
    index: int
    connection: staging.Connection

    def commit_progress(self, assignments: LiteralString, **values: object) -> None:
        """Update the import, renew the lease and commit the work done.

        :param assignments: the SET clause, with `values` as its parameters.
        :raises LeaseLost: when another worker owns the import, or this process is shutting down.
        """
        self._write_progress(assignments, LEASE_SECONDS, values)
        self.connection.commit()
        if task_queue.stop_requested.is_set():
            self._write_progress("epoch = epoch", 0, {})
            self.connection.commit()
        if task_queue.stop_requested.is_set() or self.claim.abort_event.is_set():
            raise LeaseLost

    def _write_progress(self, assignments: LiteralString, lease_seconds: int, values: dict[str, object]) -> None:
        statement = f"""
          update customer_import set {assignments}, lease_until = now() + make_interval(secs => %(lease_seconds)s)
          where id = %(import_id)s and epoch = %(epoch)s and status = 'running'
        """  # noqa: S608
        params = {"import_id": self.claim.import_id, "epoch": self.claim.epoch, "lease_seconds": lease_seconds}
        if self.connection.execute(statement, values | params).rowcount != 1:
            self.connection.rollback()
            raise LeaseLost


def open_connection() -> staging.Connection:
    """Open a connection outside the pool; closing it drops its staging tables."""
    pooled = get_direct_engine().raw_connection()
    connection = cast("database_connections.DeadlineConnection", pooled.driver_connection)
    pooled.detach()
    # An attribute of the connection, because the threads of `run_in_parallel` do not inherit the deadline of the task.
    connection.statement_seconds = database_timeouts.LONG_STATEMENT_SECONDS
    return connection


def run_in_parallel(claim: ImportClaim, work: Callable[[Partition], T], partitions: list[Partition]) -> list[T]:
    """Run the same work on all partitions in threads.

    When one fails, the others stop at their next commit.
    """
    if len(partitions) == 1:
        return [work(partitions[0])]

    def abort_others_on_error(partition: Partition) -> T:
        try:
            return work(partition)
        except BaseException:
            claim.abort_event.set()
            raise

    with ThreadPoolExecutor(len(partitions)) as pool:
        futures = [pool.submit(abort_others_on_error, partition) for partition in partitions]
    errors = [error for error in (future.exception() for future in futures) if error is not None]
    # The cause comes first, before the LeaseLost of a partition that stopped because of it.
    for error in sorted(errors, key=lambda error: isinstance(error, LeaseLost)):
        raise error
    return [future.result() for future in futures]


def claim_import(connection: staging.Connection, import_id: int) -> ImportClaim | None:
    """Claim an import that no worker owns; None when there is nothing to do. Commits.

    An import fails after `MAX_IMPORT_ATTEMPTS` workers whose lease has expired.
    """
    # `least` ignores null, so the first start is kept. Citus refuses now() in `coalesce` as long as this table has a
    # foreign key to a reference table (docs/operations/scaling.md drops those).
    row = connection.execute(
        """
        update customer_import set status = 'running', epoch = epoch + 1, started_at = least(started_at, now()),
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
        fail_import(import_id, "import_broken", message)
        return None
    return ImportClaim(import_id, *row)
