"""Finding mails again: a small SQLite file beside the folder, made of the files and of nothing else.

Taking a mail does not touch it. Whoever asks first brings it up to date, so a process that is killed between a file
and its row, files deleted or dropped in by hand, and an index that is lost or spoilt all end the same way: it is
compared with the folder and mended.
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

SCHEMA_VERSION = 1
SCHEMA = f"""
create table mail (
    place text primary key, name text not null, recipient text not null, subject text not null,
    at integer not null, size integer not null, attachments integer not null, words text not null
) without rowid;
pragma user_version = {SCHEMA_VERSION};
"""
# Rows of one transaction: whoever is killed begins again there.
INSERT_BATCH_SIZE = 500
# While nobody asks: seconds for which no mail has come before the index is brought up to date, and after which it is
# at the latest. So taking a mailing costs nothing more, and whoever asks never waits for much.
QUIET_SECONDS, MAX_DELAY_SECONDS = 2, 30
# A folder's time of change may be this coarse, in ns: one that is younger is looked at again.
MTIME_GRANULARITY_NS = 2_000_000_000
RECEIVED_AT_PATTERN = re.compile(r"(\d{19})-")


@dataclass(frozen=True)
class MessageRow:
    """A mail of the list. `place` orders mails, the newest highest; `at` is when it came, in ns; `size` in bytes."""

    sort_key: str
    file_name: str
    recipient: str
    subject: str
    received_at_ns: int
    size_bytes: int
    attachment_count: int


class MailIndex:
    """The mails of one folder, newest first. Safe to ask from many threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.with_name(folder.name + ".sqlite3")
        self.lock = threading.Lock()
        self.indexed_mtime_ns: int | None = None

    def list_messages(self, sought: str, before: str, most: int) -> list[MessageRow]:
        """The newest mails before a place, or of all, that have every sought word among recipients or subject."""
        words, having = _search_condition(sought)
        sql = (
            "select place, name, recipient, subject, at, size, attachments from mail"  # noqa: S608
            f" where place < ?{having} order by place desc limit ?"
        )
        # Places are digits first; a tilde is above them all.
        return [MessageRow(*found) for found in self._query(sql, before or "~", *words, most)]

    def count_messages(self, sought: str = "") -> int:
        """How many mails are kept, or have every sought word."""
        words, having = _search_condition(sought)
        return int(self._query(f"select count(*) from mail where true{having}", *words)[0][0])  # noqa: S608

    def delete_up_to(self, up_to: str) -> int:
        """Delete the mails up to a place for good and tell how many; those that came later stay."""
        names = [name for (name,) in self._query("select name from mail where place <= ?", up_to)]
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        self.indexed_mtime_ns = None
        return len(names)

    def start_background_refresh(self) -> None:
        """Keep up with the folder in the background, so that a page after a mailing need not wait."""
        threading.Thread(target=self._refresh_loop, name="mail-index", daemon=True).start()

    def refresh(self) -> None:
        """Compare with the folder, if that has changed, and mend what differs.

        :raises sqlite3.Error, OSError: when the index can't be written, because the disk is full for example.
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
        last = 0.0
        while True:
            quiet = time.time_ns() - _folder_mtime_ns(self.folder) > QUIET_SECONDS * 1_000_000_000
            if quiet or time.monotonic() - last > MAX_DELAY_SECONDS:
                try:
                    self.refresh()
                except (OSError, sqlite3.Error):
                    log.exception("the index of mails is not up to date")
                last = time.monotonic()
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
        there = set(_list_file_names(self.folder))
        with self._connect() as connection:
            known = dict(connection.execute("select name, place from mail"))
            missing = iter(sorted(there - known.keys(), reverse=True))
            while names := list(islice(missing, INSERT_BATCH_SIZE)):
                with connection:
                    connection.execute("begin")
                    connection.executemany("insert into mail values (?, ?, ?, ?, ?, ?, ?, ?)", self._build_rows(names))
            with connection:
                connection.execute("begin")
                gone = [(known[name],) for name in known.keys() - there]
                connection.executemany("delete from mail where place = ?", gone)
        self.indexed_mtime_ns = changed if now - changed > MTIME_GRANULARITY_NS else None

    def _build_rows(self, names: list[str]) -> Iterator[tuple[object, ...]]:
        for name in names:
            try:
                taken = RECEIVED_AT_PATTERN.match(name)
                at = int(taken[1]) if taken else max(0, (self.folder / name).stat().st_mtime_ns)
                mail = message_parser.parse_summary(self.folder / name)
            except OSError:
                # Deleted meanwhile, or nothing that we may read.
                continue
            place = f"{at:020d}-{name}"
            yield (
                place,
                name,
                mail.recipient,
                mail.subject,
                at,
                mail.size_bytes,
                mail.attachment_count,
                mail.search_text,
            )

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        # Addresses stand in it: nobody else on the machine is to read them.
        self.path.touch(mode=0o600)
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            # Nothing waits for the disk: what a crash of the machine spoils is made anew.
            connection.executescript("pragma journal_mode = wal; pragma synchronous = off;")
            if connection.execute("pragma user_version").fetchone()[0] != SCHEMA_VERSION:
                connection.executescript(f"drop table if exists mail; {SCHEMA}")
            yield connection
        finally:
            connection.close()

    def _delete_index(self) -> None:
        for end in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)
        self.indexed_mtime_ns = None


def _search_condition(sought: str) -> tuple[list[str], str]:
    """The words to look for, and the condition that has a place for each."""
    words = message_parser.normalise_search_text(sought).split()[:10]
    return words, " and instr(words, ?) > 0" * len(words)


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is damaged; a full disk or a lock are other classes of error."""
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
                # Names that are no text can't be asked for either.
                if entry.name.endswith(".eml") and not entry.name.startswith(".") and entry.name.isprintable():
                    yield entry.name
    except FileNotFoundError:
        return
