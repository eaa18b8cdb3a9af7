"""Parse customers from NDJSON: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Iterator

from webapp.core.errors import FieldError, InvalidInput
from webapp.customers.imports.customer_rows import CUSTOMER_COLUMNS, build_customer_row
from webapp.customers.imports.line_reader import LineReader
from webapp.customers.imports.parse_results import ParsedRow, Rejection, RowWarning, make_rejection, row_message


def parse_json_rows(lines: LineReader) -> Iterator[ParsedRow | Rejection]:
    """Yield the rows and rejections of an NDJSON file."""
    for line in lines:
        if line.strip():
            try:
                yield _parse_json_row(lines.finished_lines + 1, line)
            except RowWarning as warning:
                yield make_rejection(lines, warning.code, warning.detail)
                yield warning.row
            except InvalidInput as error:
                yield make_rejection(lines, error.errors[0].key, error.errors[0].message)
        lines.finish_record()


def _parse_json_row(line_number: int, line: str) -> ParsedRow:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        item = None
    if not isinstance(item, dict):
        raise InvalidInput(FieldError("row", "json_invalid", row_message("json_invalid")))
    values = {column: _require_text(column, item.get(column)) for column in CUSTOMER_COLUMNS}
    return build_customer_row(
        line_number, values["email"], values["name"], values["source_id"], values["locale"], values["audience"]
    )


def _require_text(column: str, value: object) -> str:
    """Return the JSON value of a column as text.

    A value that is null or missing becomes empty. A source id may be an integer.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if column == "source_id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidInput(FieldError(column, "type_invalid", row_message("type_invalid", name=column)))
