"""From the bytes of a file to rows that can be taken and rows that can't, one after another, in constant memory.

No database here. A file is refused as a whole only when nothing in it can be read; otherwise every row that can't
be taken becomes a `Rejection` with its line in the file, and the rows around it are not lost.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, InvalidInput
from webapp.customers.imports.line_reader import LineReader, sanitise_text
from webapp.customers.models import WARNING_CODES
from webapp.customers.validation import (
    NAME_MAX_LENGTH,
    SOURCE_ID_MAX_LENGTH,
    clean_audience_name,
    clean_locale,
    clean_name,
    clean_source_id,
)

CSV, NDJSON = "text/csv", "application/x-ndjson"
ROW_EXCERPT_LENGTH = 1000
FILE_START_SIZE = 64 * 1024

# What people call the columns. Compared in small letters, without blanks, dashes and underscores.
CUSTOMER_COLUMN_ALIASES = {
    "email": ("email", "emailaddress", "mail", "mailaddress", "emailadresse", "adresseemail", "correo"),
    "name": ("name", "fullname", "customername", "displayname"),
    "first_name": ("firstname", "givenname", "forename", "vorname", "prenom"),
    "last_name": ("lastname", "surname", "familyname", "nachname"),
    "source_id": ("sourceid", "id", "customerid", "externalid", "customernumber", "kundennummer"),
    "locale": ("locale", "language", "lang", "sprache"),
    "audience": ("audience", "list", "segment", "group"),
}
CUSTOMER_COLUMNS = ("email", "name", "source_id", "locale", "audience")
# Of a list of addresses that must not be mailed.
SUPPRESSION_COLUMN_ALIASES = {"email": CUSTOMER_COLUMN_ALIASES["email"], "reason": ("reason", "why", "type")}
# What other mailers call the reasons.
SUPPRESSION_REASON_ALIASES = {
    "": "unsubscribed",
    "unsubscribed": "unsubscribed",
    "unsubscribe": "unsubscribed",
    "bounced": "bounced",
    "bounce": "bounced",
    "cleaned": "bounced",
    "complained": "complained",
    "complaint": "complained",
    "spam": "complained",
    "abuse": "complained",
}
SUPPRESSION_STAGING_FIELDS = ("line", "email", "reason")
_HASHED_EMAIL = re.compile(r"sha256:[0-9a-f]{64}")
DELIMITERS = ",;\t|"

_ROW_MESSAGES = {
    "encoding_invalid": "This row has characters that are not UTF-8. Save the file as “CSV UTF-8” and import it again.",
    "cells_missing": "The header has {width} columns and this row {found}. Perhaps a quotation mark is missing.",
    "cells_too_many": "The header has {width} columns and this row {found}. Quote cells that hold commas.",
    "quote_unclosed": "A quotation mark is opened in this row and never closed.",
    "quote_invalid": "A quotation mark stands inside a quoted cell. Write it twice.",
    "field_too_long": "A cell of this row is far too long.",
    "line_break_invalid": "There is a line break inside a cell that has no quotation marks.",
    "json_invalid": "This line is not one JSON object.",
    "type_invalid": "{name} must be text.",
    "reason_unknown": "The reason is none of unsubscribed, bounced and complained; taken as unsubscribed.",
    "cells_odd": "The header has {width} columns and this row {found}; the address is taken, as {reason}.",
    "locale_unknown": "“{locale}” is no language tag such as de or fr-CH; the customer is taken without it.",
}
_FILE_MESSAGES = {
    "file_empty": "This file is empty. Export it again, with the customers in it.",
    "rows_missing": "This file has a header and no rows beneath it.",
    "file_workbook": "This is an Excel workbook. In Excel, choose “Save as” and “CSV UTF-8”, and import that file.",
    "file_binary": "This is not a text file. Please choose a CSV file with one customer a row.",
    "encoding_utf16": "This file is UTF-16. Save it as “CSV UTF-8” and import it again.",
    "header_missing": "The first row must name the columns, for example: email,name. Add it above the first customer.",
    "header_ambiguous": "Two columns are called {name}. Rename or remove one of them.",
    "email_column_missing": "There is no column called email. The columns are: {columns}.",
}


# A row that can be taken: the e-mail, and the values of FIELDS with tabs between. Text, for an object a row would cost
# more than reading the row. No value holds a tab or a line break; an empty one says that the file says nothing.
ParsedRow = tuple[str, str]
ColumnAliases = dict[str, tuple[str, ...]]
CUSTOMER_STAGING_FIELDS = ("line", "email", "email_as_given", "name", "locale", "source_id", "audience")


class Rejection(NamedTuple):
    """One row that can't be taken, or not all of it: its line, why for programs, why for people, and as it was."""

    line: int
    code: str
    detail: str
    row: str

    @property
    def is_warning(self) -> bool:
        """Whether the row counts all the same, and comes next."""
        return self.code in WARNING_CODES


class _RowWarning(Exception):
    """A row of which not everything could be taken, and what is said about that."""

    def __init__(self, row: ParsedRow, code: str, **values: object) -> None:
        self.row, self.code, self.detail = row, code, _ROW_MESSAGES[code].format(**values)


@dataclass(frozen=True)
class CsvLayout:
    """What the first row of a CSV file says: how cells are told apart and which is which."""

    delimiter: str
    width: int
    columns: dict[str, int]


def check_file_start(first: bytes, media_type: str, whole: bool, kind: str = "customers") -> None:
    """Look at the first piece of a file while somebody still waits for the answer.

    :param whole: whether there is no more.
    :raises Invalid: when nothing of this file could be taken, with one sentence about the file.
    """
    _check_text(first, whole)
    lines = LineReader([first])
    if media_type == CSV:
        _parse_header(lines, SUPPRESSION_COLUMN_ALIASES if kind == "suppressions" else CUSTOMER_COLUMN_ALIASES)
    if whole and not any(line.strip() for line in lines):
        raise _file_error("rows_missing" if media_type == CSV else "file_empty")


def parse_rows(pieces: Iterable[bytes], media_type: str, kind: str = "customers") -> Iterator[ParsedRow | Rejection]:
    """Every row of a file, in its order. Blank rows are passed over; what is said about a row of which not everything
    could be taken comes before it.

    :param kind: `customers`, or `suppressions` for a CSV file of addresses that must not be mailed.
    :raises Invalid: before the first row, when the file as a whole can't be read.
    """
    lines = LineReader(_check_chunks(pieces))
    if kind == "suppressions":
        layout = _parse_header(lines, SUPPRESSION_COLUMN_ALIASES)
        yield from _parse_csv_rows(lines, layout, _make_suppression_parser(layout), layout.columns["email"])
    elif media_type == NDJSON:
        yield from _parse_json_rows(lines)
    else:
        layout = _parse_header(lines, CUSTOMER_COLUMN_ALIASES)
        yield from _parse_csv_rows(lines, layout, _make_customer_parser(layout))


def read_file_start(pieces: Iterator[bytes]) -> tuple[bytes, bool]:
    """Enough of a file to see its header, and whether that is all of it."""
    first = bytearray()
    for piece in pieces:
        first += piece
        if len(first) >= FILE_START_SIZE:
            return bytes(first), False
    return bytes(first), True


def _check_chunks(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = iter(pieces)
    first, whole = read_file_start(rest)
    _check_text(first, whole)
    yield first
    yield from rest


def _check_text(first: bytes, whole: bool) -> None:
    sample = first[:4096]
    if whole and not first.removeprefix(b"\xef\xbb\xbf").strip():
        raise _file_error("file_empty")
    if first.startswith((b"\xff\xfe", b"\xfe\xff")) or _looks_like_utf16(sample):
        raise _file_error("encoding_utf16")
    if first.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise _file_error("file_workbook")
    # Single control characters cost their row; only a file full of them is none of text.
    control = len(sample.translate(None, bytes(b for b in range(256) if b >= 32 or b in b"\t\n\r\f\x1b")))
    if (
        first.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"%PDF", b"\x1f\x8b"))
        or control > 64 + len(sample) / 10
    ):
        raise _file_error("file_binary")


def _looks_like_utf16(sample: bytes) -> bool:
    """Latin letters in UTF-16 have a zero in every second place, all of them even or all odd."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    return max(even, odd) * 3 > len(sample) and min(even, odd) * 20 <= max(even, odd)


# --- CSV -----------------------------------------------------------------------------------------


def _parse_header(lines: LineReader, aliases: ColumnAliases) -> CsvLayout:
    """Read the header: the delimiter with which most columns are known wins."""
    start, delimiters = _read_first_line(lines), DELIMITERS
    # Excel's way to say it, in a line of its own.
    if said := re.fullmatch(r"sep=(.)\s*", start):
        start, delimiters = _read_first_line(lines), said[1]
    found = [
        (cells, _match_columns(cells, aliases), delimiter)
        for delimiter in delimiters
        if (cells := _split_cells(start, delimiter))
    ]
    if not found:
        raise _file_error("header_missing")
    cells, columns, delimiter = max(found, key=lambda item: len(item[1]))
    if "email" not in columns:
        if "@" in start:
            raise _file_error("header_missing")
        raise _file_error("email_column_missing", columns=", ".join(sanitise_text(c.strip()) for c in cells)[:300])
    _check_duplicate_columns(cells, aliases)
    return CsvLayout(delimiter, len(cells), columns)


def _read_first_line(lines: LineReader) -> str:
    for line in lines:
        lines.finish_record()
        if line.strip():
            return line
    raise _file_error("file_empty")


def _split_cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True), [])
    except csv.Error:
        return []


def _normalise_column_name(cell: str) -> str:
    return re.sub(r"[\s_-]+", "", cell).casefold()


def _match_columns(cells: list[str], aliases: ColumnAliases) -> dict[str, int]:
    """Which cell holds what. Where two names mean the same, the one that comes first among the aliases counts."""
    plain = [_normalise_column_name(cell) for cell in cells]
    columns = {}
    for column, names in aliases.items():
        place = next((plain.index(name) for name in names if name in plain), None)
        if place is not None:
            columns[column] = place
    return columns


def _check_duplicate_columns(cells: list[str], aliases: ColumnAliases) -> None:
    known = {name for names in aliases.values() for name in names}
    seen = set()
    for cell in cells:
        name = _normalise_column_name(cell)
        if name in known and name in seen:
            raise _file_error("header_ambiguous", name=cell.strip())
        seen.add(name)


def _parse_csv_rows(
    lines: LineReader, layout: CsvLayout, take: Callable[[int, list[str]], ParsedRow], enough: int | None = None
) -> Iterator[ParsedRow | Rejection]:
    """Row by row.

    :param enough: the cell that is enough for `take`, whatever number of others there are; None where all are needed.
    """
    width, taken = layout.width, lines.record_lines
    while True:
        reader = csv.reader(lines, delimiter=layout.delimiter, strict=True, skipinitialspace=True)
        try:
            for cells in reader:
                if (
                    len(cells) != width
                    and not _drop_empty_extra_cells(cells, width)
                    and not _has_required_cell(cells, enough)
                ):
                    if not _is_blank(cells):
                        yield _reject_cell_count(cells, width, lines)
                else:
                    try:
                        yield take(lines.finished_lines + 1, cells)
                    except _RowWarning as said:
                        yield _make_rejection(lines, said.code, said.detail)
                        yield said.row
                    except InvalidInput as error:
                        if not _is_blank(cells):
                            yield _make_rejection(lines, error.errors[0].key, error.errors[0].message)
                lines.finished_lines += len(taken)
                taken.clear()
        except csv.Error as error:
            yield _reject_broken_record(error, lines)
            continue
        return


def _is_blank(cells: list[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def _drop_empty_extra_cells(cells: list[str], width: int) -> bool:
    """Empty cells beyond the header say nothing: many programs end every row with them."""
    if len(cells) > width and _is_blank(cells[width:]):
        del cells[width:]
    return len(cells) == width


def _has_required_cell(cells: list[str], enough: int | None) -> bool:
    return enough is not None and bool("".join(cells[enough : enough + 1]).strip())


def _reject_cell_count(cells: list[str], width: int, lines: LineReader) -> Rejection:
    code = "cells_missing" if len(cells) < width else "cells_too_many"
    return _make_rejection(lines, code, _ROW_MESSAGES[code].format(found=len(cells), width=width))


def _reject_broken_record(error: csv.Error, lines: LineReader) -> Rejection:
    """Only the first line of a record that can't be read is given up; reading goes on with the second."""
    words = str(error)
    if len(lines.record_lines) > 1 or "unexpected end" in words:
        code = "quote_unclosed"
    elif "field larger" in words:
        code = "field_too_long"
    else:
        code = "line_break_invalid" if "new-line" in words else "quote_invalid"
    lines.push_back_all_but_first()
    rejection = _make_rejection(lines, code, _ROW_MESSAGES[code])
    lines.finish_record()
    return rejection


def _make_customer_parser(layout: CsvLayout) -> Callable[[int, list[str]], ParsedRow]:
    """What makes a Row of the cells of a line. A column that the file lacks is read from an empty cell at the end."""
    email_at, name_at, first_at, last_at, source_at, locale_at, audience_at = (
        layout.columns.get(column, layout.width) for column in CUSTOMER_COLUMN_ALIASES
    )

    def take(line: int, cells: list[str]) -> ParsedRow:
        cells.append("")
        name = cells[name_at] or f"{cells[first_at]} {cells[last_at]}"
        return _build_row(line, cells[email_at], name, cells[source_at], cells[locale_at], cells[audience_at])

    return take


def _make_suppression_parser(layout: CsvLayout) -> Callable[[int, list[str]], ParsedRow]:
    """What makes a Row of an address that must not be mailed. In doubt it is not mailed: an address alone is enough."""
    email_at, reason_at, width = layout.columns["email"], layout.columns.get("reason", layout.width), layout.width

    def take(line: int, cells: list[str]) -> ParsedRow:
        found = len(cells)
        cells += [""] * (width + 1 - found)
        given = _strip_formula_guard(cells[email_at]).strip()
        # A file without that column has an empty cell behind the others.
        known = SUPPRESSION_REASON_ALIASES.get(cells[reason_at].strip().lower() if reason_at < width else "")
        # An export holds the addresses of erased customers as they are kept.
        email = given if _HASHED_EMAIL.fullmatch(given) else normalise_email(given)
        reason = known or "unsubscribed"
        row = email, f"{line}\t{email}\t{reason}"
        if found != width:
            raise _RowWarning(row, "cells_odd", width=width, found=found, reason=reason)
        if known is None:
            raise _RowWarning(row, "reason_unknown")
        return row

    return take


def _build_row(line: int, given: str, name: str, source_id: str, locale: str, audience: str) -> ParsedRow:
    """One row's values as they are kept. Runs a million times: what is usual passes without a call."""
    if given[:1] == "'":
        given = _strip_formula_guard(given)
    email = normalise_email(given)
    if not given.isprintable() or given != given.strip():
        given = given.strip()
        given = given if given.isprintable() else email
    name = " ".join(name.split())
    if not name.isprintable() or len(name) > NAME_MAX_LENGTH or name[:1] == "'":
        name = clean_name(_strip_formula_guard(name))
    if source_id and (not source_id.isalnum() or len(source_id) > SOURCE_ID_MAX_LENGTH):
        source_id = clean_source_id(_strip_formula_guard(source_id))
    if audience:
        audience = clean_audience_name(_strip_formula_guard(audience))
    try:
        tag = clean_locale(locale)
    except InvalidInput:
        row = email, f"{line}\t{email}\t{given}\t{name}\t\t{source_id}\t{audience}"
        shown = sanitise_text(" ".join(locale.split())[:60])
        raise _RowWarning(row, "locale_unknown", locale=shown) from None
    return email, f"{line}\t{email}\t{given}\t{name}\t{tag}\t{source_id}\t{audience}"


def _strip_formula_guard(cell: str) -> str:
    """A cell without the apostrophe that an export puts before what a spreadsheet would take for a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@") else cell


# --- NDJSON --------------------------------------------------------------------------------------


def _parse_json_rows(lines: LineReader) -> Iterator[ParsedRow | Rejection]:
    for line in lines:
        if line.strip():
            try:
                yield _parse_json_row(lines.finished_lines + 1, line)
            except _RowWarning as said:
                yield _make_rejection(lines, said.code, said.detail)
                yield said.row
            except InvalidInput as error:
                yield _make_rejection(lines, error.errors[0].key, error.errors[0].message)
        lines.finish_record()


def _parse_json_row(number: int, line: str) -> ParsedRow:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        item = None
    if not isinstance(item, dict):
        raise InvalidInput(FieldError("row", "json_invalid", _ROW_MESSAGES["json_invalid"]))
    values = {name: _require_text(name, item.get(name)) for name in CUSTOMER_COLUMNS}
    return _build_row(
        number, values["email"], values["name"], values["source_id"], values["locale"], values["audience"]
    )


def _require_text(name: str, value: object) -> str:
    """Text, or a number where it is an id; null says as little as a name that is missing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name == "source_id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidInput(FieldError(name, "type_invalid", _ROW_MESSAGES["type_invalid"].format(name=name)))


# --- refusing ------------------------------------------------------------------------------------


def _make_rejection(lines: LineReader, code: str, detail: str) -> Rejection:
    text = "".join(lines.record_lines).rstrip("\r\n")[:ROW_EXCERPT_LENGTH]
    shown = sanitise_text(text)
    if not text.isascii() and shown.replace("␀", "\0") != text:
        code, detail = "encoding_invalid", _ROW_MESSAGES["encoding_invalid"]
    return Rejection(lines.finished_lines + 1, code, detail, shown)


def _file_error(key: str, **values: str) -> InvalidInput:
    return InvalidInput(FieldError("file", key, _FILE_MESSAGES[key].format(**values)))
