"""A file's lines, out of its pieces, with a way back: what an unclosed quotation mark has swallowed is read again."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain

# A record of a CSV file may have line breaks in its cells, but not run away with the file.
MAX_RECORD_LINES = 100
LINE_MAX_LENGTH = 1_000_000

_UNDECODABLE_BYTES = re.compile("[\udc80-\udcff]")


class RecordTooLong(csv.Error):
    """A record that goes on and on."""


class LineReader:
    """The lines of a file, one after another, each with its end.

    Bytes that are not UTF-8 are kept as lone surrogates, so that only their row is refused.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.finished_lines = 0  # lines of the records that are done with
        self.record_lines: list[str] = []  # lines of the record in hand
        self._pushed_back: deque[str] = deque()
        self._source = chain.from_iterable(_split_lines(pieces))

    def __iter__(self) -> Iterator[str]:
        taken, again = self.record_lines, self._pushed_back
        while again:
            yield self._add_to_record(again.popleft())
        for line in self._source:
            taken.append(line)
            yield line
            if len(taken) >= MAX_RECORD_LINES:
                raise RecordTooLong("the record does not end")
            while again:
                yield self._add_to_record(again.popleft())

    def finish_record(self) -> None:
        """The record in hand is done with."""
        self.finished_lines += len(self.record_lines)
        self.record_lines.clear()

    def push_back_all_but_first(self) -> None:
        """Hand out all lines of the record in hand once more, but for the first."""
        self._pushed_back.extendleft(reversed(self.record_lines[1:]))
        del self.record_lines[1:]

    def _add_to_record(self, line: str) -> str:
        if len(self.record_lines) >= MAX_RECORD_LINES:
            self._pushed_back.appendleft(line)
            raise RecordTooLong("the record does not end")
        self.record_lines.append(line)
        return line


def sanitise_text(text: str) -> str:
    """Text that can be shown and stored: bytes that were not UTF-8 as the letters they most likely are."""
    if _UNDECODABLE_BYTES.search(text):
        text = _UNDECODABLE_BYTES.sub(lambda m: bytes([ord(m[0]) - 0xDC00]).decode("cp1252", "replace"), text)
    return text.replace("\0", "␀")


def _split_lines(pieces: Iterable[bytes]) -> Iterator[list[str]]:
    """The whole lines of each piece. A line is ended by LF or CR LF; by CR only in a file that has no LF."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    newline = None
    tail = ""
    cut = False
    for piece in pieces:
        text = decode(piece)
        if newline is None:
            text = text.removeprefix("\ufeff")
            newline = "\r" if "\r" in text and "\n" not in text else "\n"
        if cut:
            _, found, text = text.partition(newline)
            cut = not found
        lines = list(io.StringIO(tail + text, newline=newline))
        tail = lines.pop() if lines and not lines[-1].endswith(newline) else ""
        if len(tail) > LINE_MAX_LENGTH:
            # Nobody's customer: what is left is one cell so long that the row is refused.
            lines.append(re.sub(r"\W", " ", tail[:LINE_MAX_LENGTH]) + newline)
            tail, cut = "", True
        yield lines
    tail += decode(b"", final=True)
    if tail:
        yield [tail]
