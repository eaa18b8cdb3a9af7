"""Split the chunks of a file into lines.

After a broken CSV record, lines can be pushed back and read again.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

# Cells may contain line breaks, but an unclosed quotation mark must not swallow the rest of the file.
MAX_RECORD_LINES = 100
MAX_LINE_LENGTH = 1_000_000

_UNDECODABLE_BYTES = re.compile("[\udc80-\udcff]")


class RecordTooLong(csv.Error):
    """A CSV record with more than `MAX_RECORD_LINES` lines."""


class LineReader:
    """Iterator over the lines of a file, with their line endings.

    Bytes that are not UTF-8 become lone surrogates, so that only their row is rejected.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self.finished_lines = 0  # number of lines in finished records
        self.record_lines: list[str] = []  # lines of the current record
        self._pushed_back: deque[str] = deque()
        self._source = chain.from_iterable(_split_lines(chunks))

    def __iter__(self) -> Iterator[str]:
        record_lines, pushed_back = self.record_lines, self._pushed_back
        # Fewer than `MAX_RECORD_LINES`: they are the rest of a record.
        while pushed_back:
            record_lines.append(pushed_back.popleft())
            yield record_lines[-1]
        for line in self._source:
            record_lines.append(line)
            yield line
            if len(record_lines) >= MAX_RECORD_LINES:
                raise RecordTooLong("record too long")

    def finish_record(self) -> None:
        """Mark the current record as finished."""
        self.finished_lines += len(self.record_lines)
        self.record_lines.clear()

    def push_back_all_but_first(self) -> None:
        """Push back all lines of the current record except the first, to be read again."""
        self._pushed_back.extendleft(reversed(self.record_lines[1:]))
        del self.record_lines[1:]


def sanitise_text(text: str) -> str:
    """Return text that can be displayed and stored.

    Bytes that were not UTF-8 are decoded as Windows-1252, and NUL is replaced by a visible symbol.
    """
    if _UNDECODABLE_BYTES.search(text):
        text = _UNDECODABLE_BYTES.sub(lambda match: bytes([ord(match[0]) - 0xDC00]).decode("cp1252", "replace"), text)
    return text.replace("\0", "␀")


def _split_lines(chunks: Iterable[bytes]) -> Iterator[list[str]]:
    """Yield the complete lines of each chunk.

    Lines end with LF or CR LF, or with CR if the first chunk has no LF.
    """
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    newline = None
    tail = ""
    is_truncating = False
    for chunk in chunks:
        text = decode(chunk)
        if newline is None:
            text = text.removeprefix("\ufeff")
            newline = "\r" if "\r" in text and "\n" not in text else "\n"
        if is_truncating:
            _head, separator, text = text.partition(newline)
            is_truncating = not separator
        lines = list(io.StringIO(tail + text, newline=newline))
        tail = lines.pop() if lines and not lines[-1].endswith(newline) else ""
        if len(tail) > MAX_LINE_LENGTH:
            # The line is truncated to a single cell that is so long that the row is rejected.
            lines.append(re.sub(r"\W", " ", tail[:MAX_LINE_LENGTH]) + newline)
            tail, is_truncating = "", True
        yield lines
    tail += decode(b"", final=True)
    if tail:
        yield [tail]
