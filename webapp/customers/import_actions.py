"""An import's life: received in pieces, queued when all of it is there, read and merged by a worker, done or failed.

The row of the import is the truth. A worker owns it for as long as it renews its lease; whoever takes it over raises
the epoch, and the former owner's next write finds that and leaves off. Reading starts anew after a kill: it costs
seconds and has written nothing yet. Merging goes on behind the last block that was committed, with its counts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from webapp import bell
from webapp.accounts.actions import record
from webapp.customers import queries, staging
from webapp.customers.intake import Rejection, Row, check_opening, opening, read
from webapp.customers.models import Audience, CustomerImport, ImportChunk
from webapp.customers.values import clean_audience
from webapp.errors import DomainError, FieldError, Invalid
from webapp.extensions import db

log = logging.getLogger(__name__)

# While a file arrives, the next piece has to come within this time; so has a worker's next block.
RECEIVING_SECONDS = 300
LEASE_SECONDS = 90
TRIES = 8
READ_BLOCK = 20_000
# A file that is no list of customers must not fill the disk with explanations; its rows are counted all the same.
KEPT_REJECTIONS = 100_000
AUDIENCES_MAX = 100
ANALYZE_FROM = 10_000

BROKEN_OFF = "The file did not arrive whole, so nothing of it was imported. Please send it again."


class _Lost(Exception):
    """Another worker has taken the import over, or this one has been asked to end."""


# --- receiving -----------------------------------------------------------------------------------


def receive(pieces: Iterable[bytes], filename: str, media_type: str, audience: str, by: str) -> int:
    """Keep a file as it arrives, piece by piece, and queue it when all of it is there. Returns the import's id.

    :param pieces: the file, in pieces of about a megabyte. What it raises is passed on; the import then says that the
        file did not arrive.
    :param audience: the name of an audience that every customer of the file joins, made when missing; empty for none.
    :raises Invalid: before anything is kept, when the file's beginning shows that nothing of it can be taken.
    """
    name = _audience(audience)
    arriving = iter(pieces)
    first, whole = opening(arriving)
    check_opening(first, media_type, whole)
    import_id = _begin(filename, media_type, name, by)
    try:
        _keep(import_id, 0, first)
        for seq, piece in enumerate(arriving, 1):
            _keep(import_id, seq, piece)
    except BaseException:
        db.session.rollback()
        _close(import_id, "upload_broken", BROKEN_OFF)
        raise
    _queue(import_id, filename, by)
    return import_id


def _audience(given: str) -> str:
    try:
        return clean_audience(given)
    except Invalid as error:
        raise Invalid(*(FieldError("audience", item.key, item.message) for item in error.errors)) from error


def _begin(filename: str, media_type: str, audience: str, by: str) -> int:
    row = CustomerImport(
        filename=" ".join(filename.split())[:200].replace("\0", "") or "customers",
        media_type=media_type,
        audience_id=_ensure_audience(audience) if audience else None,
        by=by,
        lease_until=_in_seconds(RECEIVING_SECONDS),
    )
    db.session.add(row)
    db.session.flush()
    import_id = row.id
    db.session.commit()
    return import_id


def _ensure_audience(name: str) -> int:
    db.session.execute(upsert(Audience).values(name=name).on_conflict_do_nothing())
    return db.session.execute(select(Audience.id).where(Audience.name == name)).scalar_one()


def _keep(import_id: int, seq: int, data: bytes) -> None:
    db.session.execute(insert(ImportChunk).values(import_id=import_id, seq=seq, data=data))
    _while_receiving(import_id, size=CustomerImport.size + len(data), lease_until=_in_seconds(RECEIVING_SECONDS))
    db.session.commit()


def _queue(import_id: int, filename: str, by: str) -> None:
    _while_receiving(import_id, status="queued", lease_until=None)
    record(by, "customers.import", filename, id=import_id)
    db.session.commit()


def _while_receiving(import_id: int, **values: object) -> None:
    statement = update(CustomerImport).where(CustomerImport.id == import_id, CustomerImport.status == "receiving")
    if db.session.execute(statement.values(values)).rowcount != 1:  # type: ignore[attr-defined]
        raise DomainError("upload_broken", "This upload took too long and was closed. Please send the file again.", 408)


def _close(import_id: int, code: str, sentence: str) -> None:
    """End an import without a result: it says why, and its pieces are gone."""
    db.session.execute(delete(ImportChunk).where(ImportChunk.import_id == import_id))
    db.session.execute(
        update(CustomerImport)
        .where(CustomerImport.id == import_id, CustomerImport.status.in_(("receiving", "queued", "running")))
        .values(status="failed", error_code=code, error=sentence, finished_at=func.now(), lease_until=None)
    )
    db.session.commit()


def close_broken_uploads() -> None:
    """Close imports whose next piece did not come in time: the web process that received them was ended."""
    for import_id in queries.stalled_uploads():
        _close(import_id, "upload_broken", BROKEN_OFF)


def _in_seconds(seconds: int) -> Any:
    return func.now() + timedelta(seconds=seconds)


# --- running -------------------------------------------------------------------------------------


@dataclass
class _Claim:
    """An import that this worker owns as long as the epoch holds, and the connection with its staging table."""

    connection: staging.Connection
    import_id: int
    epoch: int
    media_type: str
    audience_id: int | None
    merged_to: int | None

    def commit(self, progress: LiteralString, **values: object) -> None:
        """Write progress down in the transaction of the work it tells of, renew the lease and commit.

        :raises _Lost: when the import is another worker's by now, or this one has been asked to end.
        """
        self._write(progress, LEASE_SECONDS, values)
        self.connection.commit()
        if bell.stopping.is_set():
            self._write("epoch = epoch", 0, {})
            self.connection.commit()
            raise _Lost

    def _write(self, progress: LiteralString, lease: int, values: dict[str, object]) -> None:
        statement = f"""
          update customer_import set {progress}, lease_until = now() + make_interval(secs => %(lease)s)
          where id = %(import_id)s and epoch = %(epoch)s and status = 'running'
        """  # noqa: S608
        values = values | {"import_id": self.import_id, "epoch": self.epoch, "lease": lease}
        if self.connection.execute(statement, values).rowcount != 1:
            self.connection.rollback()
            raise _Lost


def run(import_id: int) -> None:
    """Read a queued import and merge it into the customers; go on with one whose worker has died.

    Nothing is done when another worker has it. Customers are known by their e-mail; an empty cell changes nothing, an
    unsubscription stays. What a killed worker had committed is neither done nor counted again.
    """
    pooled = db.engine.raw_connection()
    connection: Any = pooled.driver_connection
    # Closed at the end instead of given back: with it goes the staging table.
    pooled.detach()
    with connection:
        claim = _claim(connection, import_id)
        if claim is None:
            return
        try:
            staging.prepare(connection)
            _read(claim)
            _merge(claim)
            _finish(claim)
        except _Lost:
            log.info("import %s: left to another worker", import_id)
        except Invalid as refusal:
            connection.rollback()
            _close(import_id, refusal.errors[0].key, refusal.message)


def _claim(connection: staging.Connection, import_id: int) -> _Claim | None:
    row = connection.execute(
        """
        update customer_import set status = 'running', epoch = epoch + 1, started_at = coalesce(started_at, now()),
          lease_until = now() + make_interval(secs => %(lease)s)
        where id = %(import_id)s and (status = 'queued' or (status = 'running' and lease_until <= now()))
        returning epoch, media_type, audience_id, merged_to
        """,
        {"import_id": import_id, "lease": LEASE_SECONDS},
    ).fetchone()
    connection.commit()
    if row is None:
        return None
    if row[0] > TRIES:
        _close(import_id, "import_broken", "This import broke off again and again. Tell whoever runs Onecode.")
        return None
    return _Claim(connection, import_id, *row)


class _Reading:
    """Takes what the file gives, in blocks, and counts it. A second reading only fills the staging table again."""

    def __init__(self, claim: _Claim) -> None:
        self.claim = claim
        self.first_time = claim.merged_to is None
        self.rows: list[Row] = []
        self.rejections: list[Rejection] = []
        self.bytes = self.taken = self.rejected = 0

    def pieces(self) -> Iterator[bytes]:
        """The file, one piece in memory at a time."""
        seq = 0
        while piece := self._piece(seq):
            self.bytes += len(piece)
            seq += 1
            yield piece

    def _piece(self, seq: int) -> bytes:
        query = "select data from import_chunk where import_id = %s and seq = %s"
        row = self.claim.connection.execute(query, (self.claim.import_id, seq), binary=True).fetchone()
        return row[0] if row else b""

    def flush(self) -> None:
        claim, kept = self.claim, max(0, KEPT_REJECTIONS - self.rejected)
        self.taken += len(self.rows)
        self.rejected += len(self.rejections)
        if self.rows:
            staging.copy_rows(claim.connection, self.rows)
        if self.first_time and self.rejections:
            staging.copy_rejections(claim.connection, claim.import_id, self.rejections[:kept])
        if self.first_time:
            progress = {"read": self.bytes, "rows": self.taken + self.rejected, "rejected": self.rejected}
            claim.commit("read = %(read)s, rows = %(rows)s, rejected = %(rejected)s", **progress)
        else:
            claim.commit("epoch = epoch")
        self.rows, self.rejections = [], []


def _read(claim: _Claim) -> None:
    """Stage the file's good rows and keep its bad ones; then drop the rows that a later one stands in for."""
    reading = _Reading(claim)
    if reading.first_time:
        claim.connection.execute("delete from import_rejection where import_id = %s", (claim.import_id,))
    # One loop for a million rows: the lists are looked up once a block.
    rows, rejections = reading.rows, reading.rejections
    for item in read(reading.pieces(), claim.media_type):
        if isinstance(item, Row):
            rows.append(item)
        else:
            rejections.append(item)
        if len(rows) + len(rejections) >= READ_BLOCK:
            reading.flush()
            rows, rejections = reading.rows, reading.rejections
    reading.flush()
    if not reading.taken and not reading.rejected:
        raise Invalid(FieldError("file", "rows_missing", "This file has a header and no rows beneath it."))
    duplicates = staging.sort_out(claim.connection)
    if reading.first_time:
        _make_audiences(claim.connection)
        claim.merged_to = 0
        claim.commit("merged_to = 0, duplicates = %(duplicates)s", duplicates=duplicates)
    else:
        staging.drop_told(claim.connection, claim.import_id)


def _make_audiences(connection: staging.Connection) -> None:
    names = staging.audiences(connection, AUDIENCES_MAX + 1)
    if len(names) > AUDIENCES_MAX:
        sentence = f"The column audience names more than {AUDIENCES_MAX} audiences. Is it another column?"
        raise Invalid(FieldError("file", "audiences_too_many", sentence))
    for name in sorted(names):
        connection.execute("insert into audience (name) values (%s) on conflict do nothing", (name,))


def _merge(claim: _Claim) -> None:
    last = staging.last_line(claim.connection)
    named = bool(staging.audiences(claim.connection, 1))
    careful, collisions = False, 0
    while (start := claim.merged_to or 0) < last:
        end = start + staging.BLOCK
        try:
            _merge_block(claim, start, end, named, careful)
        except (psycopg.errors.UniqueViolation, psycopg.errors.DeadlockDetected):
            # A source id is taken, or a neighbour writes the same customers at this moment.
            claim.connection.rollback()
            careful, collisions = True, collisions + 1
            if collisions > 10 + last // staging.BLOCK:
                raise
        else:
            claim.merged_to = end


def _merge_block(claim: _Claim, start: int, end: int, named: bool, careful: bool) -> None:
    merged = staging.merge(claim.connection, claim.import_id, start, end, claim.audience_id, named, careful)
    claim.commit(
        """created = created + %(created)s, updated = updated + %(updated)s, unchanged = unchanged + %(unchanged)s,
           rejected = rejected + %(rejected)s, merged_to = %(end)s""",
        end=end,
        **vars(merged),
    )


def _finish(claim: _Claim) -> None:
    connection = claim.connection
    changed = connection.execute(
        "select created + updated from customer_import where id = %s", (claim.import_id,)
    ).fetchone()
    if changed and changed[0] >= ANALYZE_FROM:
        # The planner, and the number of customers on the screen, follow at once.
        connection.execute("analyze customer")
    connection.execute("delete from import_chunk where import_id = %s", (claim.import_id,))
    claim.commit("status = 'done', finished_at = now(), read = size")
