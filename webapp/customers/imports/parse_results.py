"""Results of parsing a file: rows, rejections and warnings, with their messages."""

from __future__ import annotations

from typing import NamedTuple

from flask_babel import lazy_gettext as _l

from webapp.core.errors import FieldError, InvalidInput
from webapp.customers.imports.line_reader import LineReader, sanitise_text
from webapp.customers.models import WARNING_CODES

ROW_EXCERPT_LENGTH = 1000

_ROW_MESSAGES = {
    "encoding_invalid": _l(
        "This row contains characters that are not UTF-8. Save the file as “CSV UTF-8” and import it again."
    ),
    "cells_missing": _l(
        "This row has fewer cells than the header: %(found)s instead of %(width)s. Check for a missing quotation mark."
    ),
    "cells_too_many": _l(
        "This row has more cells than the header: %(found)s instead of %(width)s. "
        "Quote cells that contain the separator."
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
        "This row and the header have different numbers of cells (%(found)s and %(width)s); the address was "
        "imported as %(reason)s."
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


class Rejection(NamedTuple):
    """A problem of a row, which is rejected or loses the invalid value (`is_warning`).

    It has the line number, an error code, a message and the original text.
    """

    line: int
    code: str
    detail: str
    row: str

    @property
    def is_warning(self) -> bool:
        """Whether the row is imported despite the error and follows next."""
        return self.code in WARNING_CODES


class RowWarning(Exception):
    """Carries a row accepted without some of its values, and the warning."""

    def __init__(self, row: ParsedRow, code: str, **values: object) -> None:
        self.row, self.code, self.detail = row, code, row_message(code, **values)


def file_error(key: str, **values: str) -> InvalidInput:
    """Return the error for a file that cannot be imported at all."""
    return InvalidInput(FieldError("file", key, str(_FILE_MESSAGES[key]) % values))


def row_message(code: str, **values: object) -> str:
    """Return the message of a row's error or warning."""
    return str(_ROW_MESSAGES[code]) % values


def make_rejection(lines: LineReader, code: str, detail: str) -> Rejection:
    """Build the rejection of the current record, with an excerpt of its text.

    Invalid UTF-8 in the record is reported instead of the error of `code` and `detail`.
    """
    text = "".join(lines.record_lines).rstrip("\r\n")[:ROW_EXCERPT_LENGTH]
    excerpt = sanitise_text(text)
    if not text.isascii() and excerpt.replace("␀", "\0") != text:
        code, detail = "encoding_invalid", row_message("encoding_invalid")
    return Rejection(lines.finished_lines + 1, code, detail, excerpt)
