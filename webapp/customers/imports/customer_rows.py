"""Validate the values of one customer and join them for staging.

The format of the file does not matter.
"""

from __future__ import annotations

from webapp.core.csv_export import FORMULA_SIGNS
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.customers.imports.line_reader import sanitise_text
from webapp.customers.imports.parse_results import ParsedRow, RowWarning
from webapp.customers.validation import (
    MAX_NAME_LENGTH,
    MAX_SOURCE_ID_LENGTH,
    clean_audience_name,
    clean_locale,
    clean_name,
    clean_source_id,
)

CUSTOMER_COLUMNS = ("email", "name", "source_id", "locale", "audience")
CUSTOMER_STAGING_FIELDS = ("line", "email", "email_as_given", "name", "locale", "source_id", "audience")


def build_customer_row(line: int, raw_email: str, name: str, source_id: str, locale: str, audience: str) -> ParsedRow:
    """Validate the values of a row and join them.

    It runs for every row, so usual values need few function calls.

    :raises RowWarning: with the row, when only the locale is invalid.
    :raises InvalidInput: when another value is invalid; the row is rejected.
    """
    if raw_email[:1] == "'":
        raw_email = strip_formula_guard(raw_email)
    email = normalise_email(raw_email)
    if not raw_email.isprintable() or raw_email != raw_email.strip():
        raw_email = raw_email.strip()
        raw_email = raw_email if raw_email.isprintable() else email
    name = " ".join(name.split())
    if not name.isprintable() or len(name) > MAX_NAME_LENGTH or name[:1] == "'":
        name = clean_name(strip_formula_guard(name))
    if source_id and (not source_id.isalnum() or len(source_id) > MAX_SOURCE_ID_LENGTH):
        source_id = clean_source_id(strip_formula_guard(source_id))
    if audience:
        audience = clean_audience_name(strip_formula_guard(audience))
    try:
        tag = clean_locale(locale)
    except InvalidInput:
        row = email, f"{line}\t{email}\t{raw_email}\t{name}\t\t{source_id}\t{audience}"
        displayed_locale = sanitise_text(" ".join(locale.split())[:60])
        raise RowWarning(row, "locale_unknown", locale=displayed_locale) from None
    return email, f"{line}\t{email}\t{raw_email}\t{name}\t{tag}\t{source_id}\t{audience}"


def strip_formula_guard(cell: str) -> str:
    """Remove the apostrophe that an export puts before a formula.

    Without it a spreadsheet would evaluate the cell.
    """
    return cell[1:] if cell[:1] == "'" and cell[1:2] in tuple(FORMULA_SIGNS) else cell
