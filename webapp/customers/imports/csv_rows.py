"""Parse CSV files of customers and of suppressed addresses (RFC 4180)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.customers.imports.customer_rows import build_customer_row, strip_formula_guard
from webapp.customers.imports.line_reader import LineReader, sanitise_text
from webapp.customers.imports.parse_results import (
    ParsedRow,
    Rejection,
    RowWarning,
    file_error,
    make_rejection,
    row_message,
)

# Accepted column names, as the page shows them. The first one of a column that a file has is used.
CUSTOMER_COLUMN_NAMES = {
    "email": ("email", "email address", "mail", "mail address", "E-Mail-Adresse", "adresse e-mail", "correo"),
    "name": ("name", "full name", "customer name", "display name"),
    "first_name": ("first name", "given name", "forename", "Vorname", "prenom"),
    "last_name": ("last name", "surname", "family name", "Nachname"),
    "source_id": ("source_id", "ID", "customer ID", "external ID", "customer number", "Kundennummer"),
    "locale": ("locale", "language", "lang", "Sprache"),
    "audience": ("audience", "list", "segment", "group"),
}


def _normalise_column_name(cell: str) -> str:
    """Return a column name without case, spaces, hyphens and underscores, which do not matter."""
    return re.sub(r"[\s_-]+", "", cell).casefold()


CUSTOMER_COLUMN_ALIASES = {
    column: tuple(map(_normalise_column_name, names)) for column, names in CUSTOMER_COLUMN_NAMES.items()
}
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
ColumnAliases = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class CsvLayout:
    """The delimiter and the columns of a CSV file, as found in its header."""

    delimiter: str
    width: int
    columns: dict[str, int]


def parse_header(lines: LineReader, aliases: ColumnAliases) -> CsvLayout:
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
        raise file_error("email_column_missing", columns=", ".join(sanitise_text(cell.strip()) for cell in cells)[:300])
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
    known_names = {name for names in aliases.values() for name in names}
    header_names = set()
    for cell in cells:
        name = _normalise_column_name(cell)
        if name in known_names and name in header_names:
            raise file_error("header_ambiguous", name=cell.strip())
        header_names.add(name)


def parse_csv_rows(
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
                    except RowWarning as warning:
                        yield make_rejection(lines, warning.code, warning.detail)
                        yield warning.row
                    except InvalidInput as error:
                        if not _is_blank(cells):
                            yield make_rejection(lines, error.errors[0].key, error.errors[0].message)
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
    return make_rejection(lines, code, row_message(code, found=len(cells), width=width))


def _reject_broken_record(error: csv.Error, lines: LineReader) -> Rejection:
    """Reject the first line of an invalid record; parsing continues with its second."""
    reason = str(error)
    if len(lines.record_lines) > 1 or "unexpected end" in reason:
        code = "quote_unclosed"
    elif "field larger" in reason:
        code = "field_too_long"
    else:
        code = "line_break_invalid" if "new-line" in reason else "quote_invalid"
    lines.push_back_all_but_first()
    rejection = make_rejection(lines, code, row_message(code))
    lines.finish_record()
    return rejection


def make_customer_parser(layout: CsvLayout) -> Callable[[int, list[str]], ParsedRow]:
    """Return a parser for the cells of a row.

    A missing column is read from an empty cell appended to the row.
    """
    email_index, name_index, first_name_index, last_name_index, source_id_index, locale_index, audience_index = (
        layout.columns.get(column, layout.width) for column in CUSTOMER_COLUMN_ALIASES
    )

    def parse_row(line: int, cells: list[str]) -> ParsedRow:
        cells.append("")
        name = cells[name_index] or f"{cells[first_name_index]} {cells[last_name_index]}"  # no translation
        return build_customer_row(
            line, cells[email_index], name, cells[source_id_index], cells[locale_index], cells[audience_index]
        )

    return parse_row


def make_suppression_parser(layout: CsvLayout) -> Callable[[int, list[str]], ParsedRow]:
    """Return a parser for the cells of a suppression.

    Only the address is required; a row with a missing or unknown reason is imported as `unsubscribed`.
    """
    width = layout.width
    email_index, reason_index = layout.columns["email"], layout.columns.get("reason", width)

    def parse_row(line: int, cells: list[str]) -> ParsedRow:
        cell_count = len(cells)
        cells += [""] * (width + 1 - cell_count)
        raw_email = strip_formula_guard(cells[email_index]).strip()
        raw_reason = cells[reason_index].strip().lower() if reason_index < width else ""
        known_reason = SUPPRESSION_REASON_ALIASES.get(raw_reason)
        # An export contains the addresses of erased customers as hashes.
        email = raw_email if _HASHED_EMAIL.fullmatch(raw_email) else normalise_email(raw_email)
        reason = known_reason or "unsubscribed"
        row = email, f"{line}\t{email}\t{reason}"
        if cell_count != width:
            raise RowWarning(row, "cells_odd", width=width, found=cell_count, reason=reason)
        if known_reason is None:
            raise RowWarning(row, "reason_unknown")
        return row

    return parse_row
