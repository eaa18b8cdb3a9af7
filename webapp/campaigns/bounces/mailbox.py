"""Read messages from an mbox, a single message or a folder.

At most one message is in memory.

Only the beginning of a message is kept: the report comes first, and the quoted email may have attachments of any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

MAX_MESSAGE_BYTES = 512 * 1024
_MAX_LINE_BYTES = 64 * 1024
# All mbox writers put a time and a year into the separator. Without this check, a sentence that begins with "From"
# after a blank line would start a new message.
_TIME, _YEAR = re.compile(rb"\d\d:\d\d"), re.compile(rb"\d{4}")


def iter_messages(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield the messages of an mbox (RFC 4155), or the single message of a file.

    A line such as `From x Sat May  2 08:00:03 2026` starts a message if it is the first or follows a blank line.
    """
    message, size, is_truncated, after_blank, is_mbox = bytearray(), 0, False, True, False
    for line in _iter_lines(stream):
        if after_blank and line.startswith(b"From ") and (is_mbox or not message.strip()) and _has_timestamp(line):
            if message.strip():
                yield bytes(message)
            message, size, is_truncated, is_mbox, after_blank = bytearray(), 0, False, True, False
            continue
        size += len(line)
        is_truncated = is_truncated or size > MAX_MESSAGE_BYTES
        if not is_truncated:
            message += line[1:] if is_mbox and line.startswith(b">From ") else line
        after_blank = line in (b"\n", b"\r\n")
    if message.strip():
        yield bytes(message)


def iter_messages_in_path(path: Path) -> Iterator[bytes]:
    """Yield the messages of a file, a maildir or a folder of single messages.

    The messages of a maildir are those in `new` and `cur`.
    """
    if not path.is_dir():
        with path.open("rb") as stream:
            yield from iter_messages(stream)
        return
    folders = [path / name for name in ("new", "cur") if (path / name).is_dir()] or [path]
    for file in sorted(file for folder in folders for file in folder.iterdir() if file.is_file()):
        with file.open("rb") as stream:
            yield from iter_messages(stream)


def read_truncated(chunks: Iterable[bytes]) -> bytes:
    """Return the first `MAX_MESSAGE_BYTES` bytes of one message.

    The rest is read and discarded.
    """
    start = bytearray()
    for chunk in chunks:
        start += chunk[: max(0, MAX_MESSAGE_BYTES - len(start))]
    return bytes(start)


def _has_timestamp(line: bytes) -> bool:
    time = _TIME.search(line)
    return time is not None and _YEAR.search(line, time.end()) is not None


def _iter_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """Yield lines with their line breaks; longer ones than `_MAX_LINE_BYTES` in parts."""
    while line := stream.readline(_MAX_LINE_BYTES):
        yield line
