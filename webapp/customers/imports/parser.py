"""Parse import files into rows and rejections, in constant memory.

The parser yields one row after another and does not access the database. A file is rejected as a whole only when it
cannot be read at all. Otherwise each invalid row becomes a `Rejection` with its line number, and the rows around it are
imported.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from flask_babel import lazy_gettext as _l

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

# Accepted column names. Compared case-insensitively, without spaces, hyphens and underscores.
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
SUPPRESSION_COLUMN_ALIASES = {"email": CUSTOMER_COLUMN_ALIASES["email"], "reason": ("reason", "why", "type")}
# Names of the reasons in the exports of other email services.
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
    "encoding_invalid": _l(
        "This row contains characters that are not UTF-8. Save the file as “CSV UTF-8” and import it again."
    ),
    "cells_missing": _l(
        "The header has %(width)s columns, but this row has %(found)s. Check for a missing quotation mark."
    ),
    "cells_too_many": _l(
        "The header has %(width)s columns, but this row has %(found)s. Quote cells that contain commas."
    ),
    "quote_unclosed": _l("A quotation mark in this row is never closed. Close or remove it."),
    "quote_invalid": _l("A quoted cell contains a single quotation mark. Double it."),
    "field_too_long": _l("A cell in this row is too long."),
    "line_break_invalid": _l("A cell without quotation marks contains a line break. Quote the cell."),
    "json_invalid": _l("This line is not a JSON object."),
    "type_invalid": _l("%(name)s must be a string."),
    "reason_unknown": _l(
        "The reason is not unsubscribed, bounced or complained; the address was imported as unsubscribed."
    ),
    "cells_odd": _l(
        "The header has %(width)s columns, but this row has %(found)s; the address was imported as %(reason)s."
    ),
    "locale_unknown": _l(
        "“%(locale)s” is not a language tag such as de or fr-CH; the customer was imported without a language."
    ),
}
_FILE_MESSAGES = {
    "file_empty": _l("The file is empty. Export it again with its rows."),
    "rows_missing": _l("The file has a header but no rows. Add rows and import it again."),
    "file_workbook": _l(
        "This is an Excel workbook. In Excel, choose “Save as” and “CSV UTF-8”, then import that file."
    ),
    "file_binary": _l("This is not a text file. Choose a CSV file with one customer per row."),
    "encoding_utf16": _l("The file is encoded in UTF-16. Save it as “CSV UTF-8” and import it again."),
    "header_missing": _l("The first row must contain the column names, for example: email,name. Add it to the file."),
    "header_ambiguous": _l("Two columns are named %(name)s. Rename or remove one of them."),
    "email_column_missing": _l("There is no column named email. Rename one of these columns: %(columns)s."),
}


# An accepted row: the normalised email address, and the values of the staging fields separated by tabs. Text is used
# because creating an object would cost more than parsing the row. No value contains a tab or a line break; an empty
# value keeps what is stored.
ParsedRow = tuple[str, str]
ColumnAliases = dict[str, tuple[str, ...]]
CUSTOMER_STAGING_FIELDS = ("line", "email", "email_as_given", "name", "locale", "source_id", "audience")


class Rejection(NamedTuple):
    """A row rejected wholly or in part.

    Holds its line number, an error code, a message and the original text.
    """

    line: int
    code: str
    detail: str
    row: str

    @property
    def is_warning(self) -> bool:
        """Whether the row is imported in spite of the error and follows next."""
        return self.code in WARNING_CODES


class _RowWarning(Exception):
    """Carries a row accepted without some of its values, and the warning."""

    def __init__(self, row: ParsedRow, code: str, **values: object) -> None:
        self.row, self.code, self.detail = row, code, _row_message(code, **values)


@dataclass(frozen=True)
class CsvLayout:
    """The delimiter and the columns of a CSV file, as found in its header."""

    delimiter: str
    width: int
    columns: dict[str, int]


def check_file_start(start: bytes, media_type: str, is_complete: bool, kind: str = "customers") -> None:
    """Check the start of a file.

    This way a useless file is rejected in the response to its upload.

    :param is_complete: whether `start` is the whole file.
    :raises InvalidInput: when no row of the file could be imported, with an error about the file.
    """
    _check_text(start, is_complete)
    lines = LineReader([start])
    if media_type == CSV:
        _parse_header(lines, SUPPRESSION_COLUMN_ALIASES if kind == "suppressions" else CUSTOMER_COLUMN_ALIASES)
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
        layout = _parse_header(lines, SUPPRESSION_COLUMN_ALIASES)
        yield from _parse_csv_rows(lines, layout, _make_suppression_parser(layout), layout.columns["email"])
    elif media_type == NDJSON:
        yield from _parse_json_rows(lines)
    else:
        layout = _parse_header(lines, CUSTOMER_COLUMN_ALIASES)
        yield from _parse_csv_rows(lines, layout, _make_customer_parser(layout))


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
    _check_text(start, is_complete)
    yield start
    yield from remaining


def _check_text(start: bytes, is_complete: bool) -> None:
    sample = start[:4096]
    if is_complete and not start.removeprefix(b"\xef\xbb\xbf").strip():
        raise file_error("file_empty")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or _looks_like_utf16(sample):
        raise file_error("encoding_utf16")
    if start.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise file_error("file_workbook")
    # A few control characters only make their rows invalid; many of them mean a binary file.
    control_count = len(sample.translate(None, bytes(b for b in range(256) if b >= 32 or b in b"\t\n\r\f\x1b")))
    if (
        start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"%PDF", b"\x1f\x8b"))
        or control_count > 64 + len(sample) / 10
    ):
        raise file_error("file_binary")


def _looks_like_utf16(sample: bytes) -> bool:
    """Return whether every second byte is zero, as in Latin text in UTF-16."""
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    return max(even, odd) * 3 > len(sample) and min(even, odd) * 20 <= max(even, odd)


# --- CSV -----------------------------------------------------------------------------------------


def _parse_header(lines: LineReader, aliases: ColumnAliases) -> CsvLayout:
    """Parse the header with the delimiter that gives the most known columns."""
    header, delimiters = _read_first_line(lines), DELIMITERS
    # Excel writes the delimiter into a line of its own.
    if separator_line := re.fullmatch(r"sep=(.)\s*", header):
        header, delimiters = _read_first_line(lines), separator_line[1]
    candidates = [
        (cells, _match_columns(cells, aliases), delimiter)
        for delimiter in delimiters
        if (cells := _split_cells(header, delimiter))
    ]
    if not candidates:
        raise file_error("header_missing")
    cells, columns, delimiter = max(candidates, key=lambda candidate: len(candidate[1]))
    if "email" not in columns:
        if "@" in header:
            raise file_error("header_missing")
        raise file_error("email_column_missing", columns=", ".join(sanitise_text(c.strip()) for c in cells)[:300])
    _check_duplicate_columns(cells, aliases)
    return CsvLayout(delimiter, len(cells), columns)


def _read_first_line(lines: LineReader) -> str:
    for line in lines:
        lines.finish_record()
        if line.strip():
            return line
    raise file_error("file_empty")


def _split_cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True), [])
    except csv.Error:
        return []


def _normalise_column_name(cell: str) -> str:
    return re.sub(r"[\s_-]+", "", cell).casefold()


def _match_columns(cells: list[str], aliases: ColumnAliases) -> dict[str, int]:
    """Map columns to cell positions.

    When several aliases of a column are present, the first alias wins.
    """
    cell_names = [_normalise_column_name(cell) for cell in cells]
    columns = {}
    for column, names in aliases.items():
        position = next((cell_names.index(name) for name in names if name in cell_names), None)
        if position is not None:
            columns[column] = position
    return columns


def _check_duplicate_columns(cells: list[str], aliases: ColumnAliases) -> None:
    known = {name for names in aliases.values() for name in names}
    seen = set()
    for cell in cells:
        name = _normalise_column_name(cell)
        if name in known and name in seen:
            raise file_error("header_ambiguous", name=cell.strip())
        seen.add(name)


def _parse_csv_rows(
    lines: LineReader,
    layout: CsvLayout,
    parse_row: Callable[[int, list[str]], ParsedRow],
    required_cell: int | None = None,
) -> Iterator[ParsedRow | Rejection]:
    """Yield the rows and rejections of a CSV file after its header.

    :param required_cell: position of the only cell that `parse_row` needs; then a row may have any number of cells.
        None when a row must have all cells.
    """
    width, record_lines = layout.width, lines.record_lines
    while True:
        reader = csv.reader(lines, delimiter=layout.delimiter, strict=True, skipinitialspace=True)
        try:
            for cells in reader:
                if (
                    len(cells) != width
                    and not _drop_empty_extra_cells(cells, width)
                    and not _has_required_cell(cells, required_cell)
                ):
                    if not _is_blank(cells):
                        yield _reject_cell_count(cells, width, lines)
                else:
                    try:
                        yield parse_row(lines.finished_lines + 1, cells)
                    except _RowWarning as warning:
                        yield _make_rejection(lines, warning.code, warning.detail)
                        yield warning.row
                    except InvalidInput as error:
                        if not _is_blank(cells):
                            yield _make_rejection(lines, error.errors[0].key, error.errors[0].message)
                # LineReader.finish_record, inlined for speed.
                lines.finished_lines += len(record_lines)
                record_lines.clear()
        except csv.Error as error:
            yield _reject_broken_record(error, lines)
            continue
        return


def _is_blank(cells: list[str]) -> bool:
    return not any(cell.strip() for cell in cells)


def _drop_empty_extra_cells(cells: list[str], width: int) -> bool:
    """Drop empty cells beyond the header; return whether the row then fits it.

    Many programs append such cells to every row.
    """
    if len(cells) > width and _is_blank(cells[width:]):
        del cells[width:]
    return len(cells) == width


def _has_required_cell(cells: list[str], required_cell: int | None) -> bool:
    return required_cell is not None and bool("".join(cells[required_cell : required_cell + 1]).strip())


def _reject_cell_count(cells: list[str], width: int, lines: LineReader) -> Rejection:
    code = "cells_missing" if len(cells) < width else "cells_too_many"
    return _make_rejection(lines, code, _row_message(code, found=len(cells), width=width))


def _reject_broken_record(error: csv.Error, lines: LineReader) -> Rejection:
    """Reject the first line of a broken record; parsing continues with its second."""
    reason = str(error)
    if len(lines.record_lines) > 1 or "unexpected end" in reason:
        code = "quote_unclosed"
    elif "field larger" in reason:
        code = "field_too_long"
    else:
        code = "line_break_invalid" if "new-line" in reason else "quote_invalid"
    lines.push_back_all_but_first()
    rejection = _make_rejection(lines, code, _row_message(code))
    lines.finish_record()
    return rejection


def _make_customer_parser(layout: CsvLayout) -> Callable[[int, list[str]], ParsedRow]:
    """Return a parser for the cells of a row.

    A missing column is read from an empty cell appended to the row.
    """
    email_at, name_at, first_at, last_at, source_at, locale_at, audience_at = (
        layout.columns.get(column, layout.width) for column in CUSTOMER_COLUMN_ALIASES
    )

    def parse_row(line: int, cells: list[str]) -> ParsedRow:
        cells.append("")
        name = cells[name_at] or f"{cells[first_at]} {cells[last_at]}"  # no translation
        return _build_row(line, cells[email_at], name, cells[source_at], cells[locale_at], cells[audience_at])

    return parse_row


def _make_suppression_parser(layout: CsvLayout) -> Callable[[int, list[str]], ParsedRow]:
    """Return a parser for the cells of a suppression.

    In doubt it suppresses: the address alone is enough.
    """
    email_at, reason_at, width = layout.columns["email"], layout.columns.get("reason", layout.width), layout.width

    def parse_row(line: int, cells: list[str]) -> ParsedRow:
        cell_count = len(cells)
        cells += [""] * (width + 1 - cell_count)
        given = _strip_formula_guard(cells[email_at]).strip()
        known_reason = SUPPRESSION_REASON_ALIASES.get(cells[reason_at].strip().lower() if reason_at < width else "")
        # An export contains the addresses of erased customers as hashes.
        email = given if _HASHED_EMAIL.fullmatch(given) else normalise_email(given)
        reason = known_reason or "unsubscribed"
        row = email, f"{line}\t{email}\t{reason}"
        if cell_count != width:
            raise _RowWarning(row, "cells_odd", width=width, found=cell_count, reason=reason)
        if known_reason is None:
            raise _RowWarning(row, "reason_unknown")
        return row

    return parse_row


def _build_row(line: int, given: str, name: str, source_id: str, locale: str, audience: str) -> ParsedRow:
    """Validate the values of a row and join them.

    Runs for every row, so usual values need few function calls.
    """
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
    """Remove the apostrophe that an export puts before a formula.

    Without it a spreadsheet would evaluate the cell.
    """
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple("=+-@") else cell


# --- NDJSON --------------------------------------------------------------------------------------


def _parse_json_rows(lines: LineReader) -> Iterator[ParsedRow | Rejection]:
    for line in lines:
        if line.strip():
            try:
                yield _parse_json_row(lines.finished_lines + 1, line)
            except _RowWarning as warning:
                yield _make_rejection(lines, warning.code, warning.detail)
                yield warning.row
            except InvalidInput as error:
                yield _make_rejection(lines, error.errors[0].key, error.errors[0].message)
        lines.finish_record()


def _parse_json_row(line_number: int, line: str) -> ParsedRow:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        item = None
    if not isinstance(item, dict):
        raise InvalidInput(FieldError("row", "json_invalid", _row_message("json_invalid")))
    values = {name: _require_text(name, item.get(name)) for name in CUSTOMER_COLUMNS}
    return _build_row(
        line_number, values["email"], values["name"], values["source_id"], values["locale"], values["audience"]
    )


def _require_text(name: str, value: object) -> str:
    """Return a JSON value as text.

    Null is empty like a missing name, and a source id may be an integer.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if name == "source_id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidInput(FieldError(name, "type_invalid", _row_message("type_invalid", name=name)))


# --- errors --------------------------------------------------------------------------------------


def file_error(key: str, **values: str) -> InvalidInput:
    """Return the error for a file that cannot be imported at all."""
    return InvalidInput(FieldError("file", key, str(_FILE_MESSAGES[key]) % values))


def _row_message(code: str, **values: object) -> str:
    return str(_ROW_MESSAGES[code]) % values


def _make_rejection(lines: LineReader, code: str, detail: str) -> Rejection:
    text = "".join(lines.record_lines).rstrip("\r\n")[:ROW_EXCERPT_LENGTH]
    shown = sanitise_text(text)
    if not text.isascii() and shown.replace("␀", "\0") != text:
        code, detail = "encoding_invalid", _row_message("encoding_invalid")
    return Rejection(lines.finished_lines + 1, code, detail, shown)
