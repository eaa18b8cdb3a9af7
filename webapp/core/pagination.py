"""Opaque cursors for pages that are never counted: where the last page ended, as short text."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import urlencode

from flask import Response, jsonify, request

from webapp.core.errors import FieldError, InvalidInput


def encode_cursor(*place: int) -> str:
    """The cursor of a place."""
    return base64.urlsafe_b64encode(".".join(str(part) for part in place).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, length: int) -> tuple[int, ...] | None:
    """The place of a cursor that `write` made of `length` numbers; None for none.

    :raises Invalid: `cursor_invalid` for anything else.
    """
    if not cursor:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode("ascii")
        place = tuple(int(part) for part in text.split("."))
    except (binascii.Error, ValueError):
        place = ()
    if len(place) != length or not all(0 <= part < 1 << 63 for part in place):
        raise InvalidInput(FieldError("cursor", "cursor_invalid", "Take the cursor as the page before gave it."))
    return place


def build_page_response(name: str, items: list[dict[str, object]], following: str | None) -> Response:
    """One page as JSON, with the cursor of the next one and a Link to it (RFC 8288)."""
    response = jsonify({name: items, "next_cursor": following})
    add_next_link(response, following)
    return response


def add_next_link(response: Response, following: str | None) -> None:
    """Name the next page of an answer in its headers, when there is one."""
    if following is not None:
        query = urlencode(request.args.to_dict() | {"cursor": following})
        response.headers["Link"] = f'<{request.path}?{query}>; rel="next"'
