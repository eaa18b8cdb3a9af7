"""The search index of the stored emails: a SQLite file beside the folder.

Receiving an email does not change the index. Each query first compares the index with the folder and corrects it.
This covers every case in the same way: a process killed before it indexed a file, files added or deleted by hand, an
index that is missing or damaged.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from local.mailsink import message_parser

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
SCHEMA = f"""
create table email (
    sort_key text primary key, file_name text not null, recipient text not null, subject text not null,
    received_at_ns integer not null, size_bytes integer not null, attachment_count integer not null,
    search_text text not null
) without rowid;
pragma user_version = {SCHEMA_VERSION};
"""
# Rows per transaction: a process that was killed continues after the last one committed.
INSERT_BATCH_SIZE = 500
# The background refresh waits until no email has arrived for QUIET_SECONDS, but at most MAX_DELAY_SECONDS: receiving a
# campaign stays fast, and a query has little left to index.
QUIET_SECONDS, MAX_DELAY_SECONDS = 2, 30
# Resolution of a folder's modification time on coarse file systems, in ns. A younger one does not prove that the folder
# is unchanged.
MTIME_GRANULARITY_NS = 2_000_000_000
RECEIVED_AT_PATTERN = re.compile(r"(\d{19})-")


@dataclass(frozen=True)
class MessageRow:
    """An email in the list.

    `sort_key` ascends with the time of receipt; `received_at_ns` is the time since 1970.
    """

    sort_key: str
    file_name: str
    recipient: str
    subject: str
    received_at_ns: int
    size_bytes: int
    attachment_count: int


class MailIndex:
    """The emails of one folder, newest first. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.with_name(folder.name + ".sqlite3")
        self.lock = threading.Lock()
        self.indexed_mtime_ns: int | None = None

    def list_messages(self, query: str, before: str, limit: int) -> list[MessageRow]:
        """Return the newest emails with all words of a query in recipients or subject.

        :param query: the words; all emails match an empty one.
        :param before: a sort key; only older emails are returned. The newest ones if it is empty.
        """
        terms, condition = _search_condition(query)
        sql = (
            "select sort_key, file_name, recipient, subject, received_at_ns, size_bytes, attachment_count"  # noqa: S608
            f" from email where sort_key < ?{condition} order by sort_key desc limit ?"
        )
        # Sort keys start with a digit; a tilde is greater than all of them.
        return [MessageRow(*row) for row in self._query(sql, before or "~", *terms, limit)]

    def count_messages(self, query: str = "") -> int:
        """Return the number of emails that match a query."""
        terms, condition = _search_condition(query)
        return int(self._query(f"select count(*) from email where true{condition}", *terms)[0][0])  # noqa: S608

    def delete_up_to(self, last: str) -> int:
        """Delete the emails up to a sort key; return how many.

        Emails that arrived later are kept.
        """
        names = [name for (name,) in self._query("select file_name from email where sort_key <= ?", last)]
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        self.indexed_mtime_ns = None
        return len(names)

    def start_background_refresh(self) -> None:
        """Refresh the index in the background.

        The page then loads quickly after a campaign was received.
        """
        threading.Thread(target=self._refresh_loop, name="mail-sink-index", daemon=True).start()

    def refresh(self) -> None:
        """Update the index if the folder has changed.

        :raises sqlite3.Error: when the index can't be written, for example because the disk is full.
        :raises OSError: when the folder can't be read.
        """
        with self.lock:
            try:
                self._refresh_locked()
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                self._delete_index()
                self._refresh_locked()

    def _refresh_loop(self) -> None:
        refreshed_at = 0.0
        while True:
            is_quiet = time.time_ns() - _folder_mtime_ns(self.folder) > QUIET_SECONDS * 1_000_000_000
            if is_quiet or time.monotonic() - refreshed_at > MAX_DELAY_SECONDS:
                try:
                    self.refresh()
                except (OSError, sqlite3.Error):
                    log.exception("the index of emails could not be refreshed")
                refreshed_at = time.monotonic()
            time.sleep(QUIET_SECONDS)

    def _query(self, sql: str, *values: object) -> list[Any]:
        self.refresh()
        try:
            with self._connect() as connection:
                return connection.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
        with self.lock:
            self._delete_index()
        self.refresh()
        with self._connect() as connection:
            return connection.execute(sql, values).fetchall()

    def _refresh_locked(self) -> None:
        now, changed = time.time_ns(), _folder_mtime_ns(self.folder)
        if changed == self.indexed_mtime_ns and self.path.exists():
            return
        stored = set(_list_file_names(self.folder))
        with self._connect() as connection:
            indexed = dict(connection.execute("select file_name, sort_key from email"))
            missing = iter(sorted(stored - indexed.keys(), reverse=True))
            while names := list(islice(missing, INSERT_BATCH_SIZE)):
                with connection:
                    connection.execute("begin")
                    connection.executemany("insert into email values (?, ?, ?, ?, ?, ?, ?, ?)", self._build_rows(names))
            with connection:
                connection.execute("begin")
                deleted = [(indexed[name],) for name in indexed.keys() - stored]
                connection.executemany("delete from email where sort_key = ?", deleted)
        self.indexed_mtime_ns = changed if now - changed > MTIME_GRANULARITY_NS else None

    def _build_rows(self, names: list[str]) -> Iterator[tuple[object, ...]]:
        for name in names:
            try:
                match = RECEIVED_AT_PATTERN.match(name)
                received_at = int(match[1]) if match else max(0, (self.folder / name).stat().st_mtime_ns)
                email = message_parser.parse_summary(self.folder / name)
            except OSError:
                # Deleted since it was listed, or not readable.
                continue
            yield (
                f"{received_at:020d}-{name}",
                name,
                email.recipient,
                email.subject,
                received_at,
                email.size_bytes,
                email.attachment_count,
                email.search_text,
            )

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # It contains addresses, so other users must not be able to read it.
        self.path.touch(mode=0o600)
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            # No fsync: an index damaged by a crash of the machine is built again.
            connection.executescript("pragma journal_mode = wal; pragma synchronous = off;")
            if connection.execute("pragma user_version").fetchone()[0] != SCHEMA_VERSION:
                connection.executescript(f"drop table if exists mail; drop table if exists email; {SCHEMA}")
            yield connection
        finally:
            connection.close()

    def _delete_index(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.indexed_mtime_ns = None


def _search_condition(query: str) -> tuple[list[str], str]:
    """Return the words of a query (ten at most) and the SQL condition for them."""
    terms = message_parser.normalise_search_text(query).split()[:10]
    return terms, " and instr(search_text, ?) > 0" * len(terms)


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    """Return whether the index is damaged.

    A full disk or a lock raise subclasses of this error.
    """
    return type(error) is sqlite3.DatabaseError


def _folder_mtime_ns(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _list_file_names(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # A name that is not printable can't be part of a URL.
                if entry.name.endswith(".eml") and not entry.name.startswith(".") and entry.name.isprintable():
                    yield entry.name
    except FileNotFoundError:
        return
