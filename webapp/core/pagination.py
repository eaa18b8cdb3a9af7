"""Keyset pagination with opaque cursors, without counting rows."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import urlencode

from flask import Response, jsonify, request
from flask_babel import gettext as _

from webapp.core.errors import FieldError, InvalidInput


def encode_cursor(*values: int) -> str:
    """Return a cursor that contains the sort key of the last item of a page."""
    return base64.urlsafe_b64encode(".".join(map(str, values)).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, length: int) -> tuple[int, ...] | None:
    """Return the values of a cursor of `encode_cursor`; None for no cursor.

    :param length: the number of values.
    :raises InvalidInput: `cursor_invalid` for anything else.
    """
    if not cursor:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode("ascii")
        cursor_values = tuple(int(part) for part in text.split("."))
    except (binascii.Error, ValueError):
        cursor_values = ()
    if len(cursor_values) != length or not all(0 <= part < 1 << 63 for part in cursor_values):
        message = _("Send the cursor exactly as the previous page returned it.")
        raise InvalidInput(FieldError("cursor", "cursor_invalid", message))
    return cursor_values


def build_page_response(name: str, items: list[dict[str, object]], next_cursor: str | None) -> Response:
    """Return a page as JSON, with the cursor of the next page.

    A Link header points to that page (RFC 8288).
    """
    response = jsonify({name: items, "next_cursor": next_cursor})
    add_next_link(response, next_cursor)
    return response


def add_next_link(response: Response, next_cursor: str | None) -> None:
    """Add a Link header to the next page, if there is one (RFC 8288)."""
    if next_cursor is not None:
        query = urlencode(request.args.to_dict() | {"cursor": next_cursor})
        response.headers["Link"] = f'<{request.path}?{query}>; rel="next"'
