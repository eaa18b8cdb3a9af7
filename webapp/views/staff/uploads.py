"""Uploads by form: the file is stored while it is being received."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flask import current_app, request, session
from flask_babel import gettext as _
from flask_wtf.csrf import CSRFError, validate_csrf
from wtforms.validators import ValidationError

from webapp.accounts import session_queries
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.customers.imports import parser, upload
from webapp.customers.imports.upload import Upload
from webapp.views.staff.blueprint import SessionExpired

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
NDJSON_SUFFIXES = (".ndjson", ".jsonl")


def receive_file(store: Callable[[Upload], int]) -> int:
    """Receive the file of a form as a stream; return the id of its import.

    The CSRF token precedes the file and is checked before it.

    :param store: stores the file from its chunks and returns the id.
    :raises DomainError: when the form or the file is rejected; the rest of the body has then been read.
    :raises CSRFError: when the CSRF token is missing or invalid.
    :raises SessionExpired: when the session has ended while the file was being received.
    """
    limit: int = current_app.config["SETTINGS"].max_upload_bytes
    # Leaves room for form fields and boundaries, and for draining a body that is too large before the error response.
    request.max_content_length = 2 * limit
    try:
        if (request.content_length or 0) > limit + upload.MAX_FIELDS_SIZE:
            raise upload.file_too_large_error(limit)
        received = upload.parse_multipart_form(request.stream, request.headers.get("Content-Type", ""), limit)
        _check_csrf(received)
        received.chunks = _check_session_at_end(received.chunks)
        return store(received)
    except DomainError:
        upload.drain_body(request.stream, 2 * limit)
        raise


def _check_session_at_end(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the chunks, then check that the session still exists.

    A large file takes minutes. The session ends when the user is disabled or gets another role, or signs out.
    """
    yield from chunks
    if session_queries.find_staff_session(session.get("_user_id", "")) is None:
        session.pop("_user_id", None)
        raise SessionExpired("The session has ended.")  # no translation


def require_file(received: Upload, *suffixes: str) -> None:
    """Reject an upload without a file, or whose file has another type according to its name.

    :param suffixes: the ends of the names of accepted files, in lower case.
    :raises InvalidInput: `file_missing` or `file_name_invalid`; or an error about the contents, if these are
        not text, since it says more.
    """
    if not received.filename:
        raise InvalidInput(FieldError("file", "file_missing", _("Choose a file.")))
    if received.filename.lower().endswith(suffixes):
        return
    start, is_complete = parser.read_file_start(received.chunks)
    parser.check_text(start, is_complete)
    message = _("Choose a file whose name ends in one of these: %(suffixes)s.", suffixes=", ".join(suffixes))
    raise InvalidInput(FieldError("file", "file_name_invalid", message))


def _check_csrf(received: Upload) -> None:
    """Check the CSRF token of an upload like CSRFProtect, without reading the file."""
    if not current_app.config.get("WTF_CSRF_ENABLED", True):
        return
    try:
        validate_csrf(received.fields.get("csrf_token") or request.headers.get("X-CSRFToken"))
    except ValidationError as error:
        upload.drain_body(request.stream, 2 * current_app.config["SETTINGS"].max_upload_bytes)
        raise CSRFError(str(error)) from error
