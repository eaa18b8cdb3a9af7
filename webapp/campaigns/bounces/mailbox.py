"""Mails out of a file as it is read: an mbox, a single mail, a folder of them. Never more than one in memory.

Only the beginning of a mail is kept: a report comes first in it, and what it quotes may have attachments of any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

MESSAGE_BYTES_KEPT = 512 * 1024
_LINE_MAX = 64 * 1024
# With a time and a year, as all who write mailboxes do: a sentence may begin with "From" after a blank line, too.
_TIME, _YEAR = re.compile(rb"\d\d:\d\d"), re.compile(rb"\d{4}")


def iter_messages(stream: IO[bytes]) -> Iterator[bytes]:
    """The mails of an mbox (RFC 4155), or the one mail that the file is.

    A line such as `From x Sat May  2 08:00:03 2026` starts a mail where it follows a blank one, or is the first.
    """
    held, size, cut, blank, is_mbox = bytearray(), 0, False, True, False
    for line in _iter_lines(stream):
        if blank and line.startswith(b"From ") and (is_mbox or not held.strip()) and _has_timestamp(line):
            if held.strip():
                yield bytes(held)
            held, size, cut, is_mbox, blank = bytearray(), 0, False, True, False
            continue
        size += len(line)
        cut = cut or size > MESSAGE_BYTES_KEPT
        if not cut:
            held += line[1:] if is_mbox and line.startswith(b">From ") else line
        blank = line in (b"\n", b"\r\n")
    if held.strip():
        yield bytes(held)


def iter_messages_in_path(path: Path) -> Iterator[bytes]:
    """The mails of a file, or of a folder: a maildir (its `new` and `cur`), or any folder of single mails."""
    if not path.is_dir():
        with path.open("rb") as stream:
            yield from iter_messages(stream)
        return
    folders = [path / name for name in ("new", "cur") if (path / name).is_dir()] or [path]
    for file in sorted(file for folder in folders for file in folder.iterdir() if file.is_file()):
        with file.open("rb") as stream:
            yield from iter_messages(stream)


def read_truncated(pieces: Iterable[bytes]) -> bytes:
    """As much as is kept of one mail; the rest is read and let go."""
    held = bytearray()
    for piece in pieces:
        held += piece[: max(0, MESSAGE_BYTES_KEPT - len(held))]
    return bytes(held)


def _has_timestamp(line: bytes) -> bool:
    time = _TIME.search(line)
    return time is not None and _YEAR.search(line, time.end()) is not None


def _iter_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends; one without an end for megabytes comes in pieces."""
    while line := stream.readline(_LINE_MAX):
        yield line
