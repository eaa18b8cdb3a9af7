"""Parse import files into rows and rejections, in constant memory.

The parser yields one row after another and does not access the database. A file is rejected as a whole only when it
cannot be read at all. Otherwise each invalid row becomes a `Rejection` with its line number, and the rows around it are
imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from webapp.customers.imports.csv_rows import (
    CUSTOMER_COLUMN_ALIASES,
    SUPPRESSION_COLUMN_ALIASES,
    make_customer_parser,
    make_suppression_parser,
    parse_csv_rows,
    parse_header,
)
from webapp.customers.imports.json_rows import parse_json_rows
from webapp.customers.imports.line_reader import LineReader
from webapp.customers.imports.parse_results import ParsedRow, Rejection, file_error

CSV, NDJSON = "text/csv", "application/x-ndjson"
FILE_START_SIZE = 64 * 1024


def check_file_start(start: bytes, media_type: str, is_complete: bool, kind: str = "customers") -> None:
    """Check the start of a file, so that an unusable file is rejected immediately.

    :param is_complete: whether `start` is the whole file.
    :raises InvalidInput: when no row of the file could be imported, with an error about the file.
    """
    check_text(start, is_complete)
    lines = LineReader([start])
    if media_type == CSV:
        parse_header(lines, SUPPRESSION_COLUMN_ALIASES if kind == "suppressions" else CUSTOMER_COLUMN_ALIASES)
    if is_complete and not any(line.strip() for line in lines):
        raise file_error("rows_missing" if media_type == CSV else "file_empty")


def parse_rows(chunks: Iterable[bytes], media_type: str, kind: str = "customers") -> Iterator[ParsedRow | Rejection]:
    """Yield the rows and rejections of a file in order, without blank rows.

    A warning precedes its row.

    :param kind: `customers`, or `suppressions` for a CSV file of addresses to suppress.
    :raises InvalidInput: before the first row, when the file as a whole cannot be read.
    """
    lines = LineReader(_check_chunks(chunks))
    if kind == "suppressions":
        layout = parse_header(lines, SUPPRESSION_COLUMN_ALIASES)
        yield from parse_csv_rows(lines, layout, make_suppression_parser(layout), layout.columns["email"])
    elif media_type == NDJSON:
        yield from parse_json_rows(lines)
    else:
        layout = parse_header(lines, CUSTOMER_COLUMN_ALIASES)
        yield from parse_csv_rows(lines, layout, make_customer_parser(layout))


def read_file_start(chunks: Iterator[bytes]) -> tuple[bytes, bool]:
    """Return the start of a file with its header, and whether it is complete."""
    start = bytearray()
    for chunk in chunks:
        start += chunk
        if len(start) >= FILE_START_SIZE:
            return bytes(start), False
    return bytes(start), True


def _check_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    remaining = iter(chunks)
    start, is_complete = read_file_start(remaining)
    check_text(start, is_complete)
    yield start
    yield from remaining


def check_text(start: bytes, is_complete: bool) -> None:
    """Check that a file is text, by its start.

    :raises InvalidInput: when it is empty, a workbook, another binary file, or encoded in UTF-16.
    """
    sample = start[:4096]
    if is_complete and not start.removeprefix(b"\xef\xbb\xbf").strip():
        raise file_error("file_empty")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or _looks_like_utf16(sample):
        raise file_error("encoding_utf16")
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise file_error("file_workbook")
    # A few control characters only make their rows invalid; many of them mean a binary file.
    control_count = len(
        sample.translate(None, bytes(byte for byte in range(256) if byte >= 32 or byte in b"\t\n\r\f\x1b"))
    )
    if (
        start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"%PDF", b"\x1f\x8b"))
        or control_count > 64 + len(sample) / 10
    ):
        raise file_error("file_binary")


def _looks_like_utf16(sample: bytes) -> bool:
    """Return whether every second byte is zero, as in Latin text in UTF-16."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    return max(even, odd) * 3 > len(sample) and min(even, odd) * 20 <= max(even, odd)
