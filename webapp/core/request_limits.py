"""Limits that apply to a request before its parts are parsed.

Two megabytes can hold a million form fields or half a million JSON values, which take seconds to parse. These limits
count delimiters in the raw bytes, which takes milliseconds.
"""

from __future__ import annotations

import binascii
import re
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

from flask import Request, request
from flask_babel import gettext as _
from werkzeug.datastructures import Headers, MultiDict
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge
from werkzeug.formparser import FormDataParser

from webapp.core.errors import DomainError
from webapp.core.formatting import format_number

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

# Fields of a form, or parameters of a query string.
MAX_FIELDS = 1_000
# Members of objects and elements of arrays, together. The largest documented body, 1000 bounces, has 7002.
MAX_JSON_VALUES = 10_000
MAX_JSON_DEPTH = 64
# Size of the headers of all parts of a multipart form, and of anything before its first part. A field has 60 bytes.
MAX_PART_HEADER_BYTES = 128 * 1024
# Percent signs in a form that are not part of an escape. Browsers encode them.
MAX_UNENCODED_PERCENTS = 1_000

_URLENCODED, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_BLANK_LINE = re.compile(rb"\r\n\r\n|\r\r|\n\n")
_UNENCODED_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

# What the parsers of werkzeug return: the rest of the body, the fields and the files.
ParsedForm = tuple[IO[bytes], MultiDict[str, str], MultiDict[str, Any]]


class LimitedFormParser(FormDataParser):
    """A form parser with a limit on the number of fields, which rejects what it cannot parse.

    Werkzeug's parser limits only the number of the parts of a multipart form, and returns an empty form for a malformed
    body. It needs 1.5 seconds to decode two megabytes of escapes.
    """

    def parse(
        self, stream: IO[bytes], mimetype: str, content_length: int | None, options: dict[str, str] | None = None
    ) -> ParsedForm:
        """Parse the form in the body of a request.

        :raises DomainError: `too_large` (413) when it has more than `MAX_FIELDS` fields; `form_broken` (400) when it is
            malformed.
        :raises RequestEntityTooLarge: when it is larger than the limit of the request.
        """
        if mimetype not in (_URLENCODED, _MULTIPART):
            return super().parse(stream, mimetype, content_length, options)
        body = stream.read()
        # A body without Content-Length is cut off at its limit. This read then raises RequestEntityTooLarge.
        stream.read(1)
        if mimetype == _URLENCODED:
            if body.count(b"&") >= MAX_FIELDS:
                raise too_many_fields_error()
        else:
            _check_parts(body, (options or {}).get("boundary", ""))
        self.silent = False
        try:
            parsed: ParsedForm = super().parse(BytesIO(body), mimetype, content_length, options)
        except RequestEntityTooLarge as error:
            # Werkzeug's own limit on the number of parts.
            raise too_many_fields_error() from error
        except ValueError as error:
            raise broken_form_error() from error
        if None in parsed[1] or None in parsed[2]:
            raise broken_form_error()
        return parsed

    def _parse_urlencoded(
        self, stream: IO[bytes], mimetype: str, content_length: int | None, options: dict[str, str]
    ) -> ParsedForm:
        pairs = (field.partition(b"=") for field in stream.read().split(b"&") if field)
        fields = [(decode_percent_encoding(name), decode_percent_encoding(value)) for name, _sign, value in pairs]
        return stream, self.cls(fields), self.cls()


class LimitedRequest(Request):
    """A request whose form and JSON are parsed only within the limits, and only if the whole body has arrived."""

    form_data_parser_class = LimitedFormParser
    _form_error: DomainError | HTTPException | None = None

    def __init__(self, environ: WSGIEnvironment, populate_request: bool = True, shallow: bool = False) -> None:
        super().__init__(environ, populate_request, shallow)
        if self.content_length is not None:
            # Granian ends the stream silently when the client disconnects. Without its promise that the end of the
            # stream is that of the body, werkzeug raises ClientDisconnected for a body that is too short.
            environ.pop("wsgi.input_terminated", None)

    def _load_form_data(self) -> None:
        # The body cannot be read twice: without the stored error, the second access would return an empty form.
        if self._form_error is not None:
            raise self._form_error
        try:
            if self.content_length is None and self.mimetype in (_URLENCODED, _MULTIPART):
                _check_has_no_body(self.headers)
            super()._load_form_data()
        except (DomainError, HTTPException) as error:
            self._form_error = error
            raise

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """Return the parsed body.

        :raises DomainError: as `check_json_size`.
        :raises HTTPException: when it is no valid JSON, unless `silent`.
        """
        if self._cached_json[silent] is ... and (force or self.is_json):
            body = self.get_data()
            if self.content_length is None:
                # As for forms: raises RequestEntityTooLarge for a body that was cut off.
                self.stream.read(1)
            check_json_size(body)
        return super().get_json(force, silent, cache)


def decode_percent_encoding(text: bytes) -> str:
    """Decode a name or a value of a form, like `urllib.parse.unquote_plus`, but ten times as fast.

    An escape of quoted-printable (RFC 2045) has the same two digits after another sign.

    :raises ValueError: when it is not UTF-8 or has more than `MAX_UNENCODED_PERCENTS` percent signs without digits.
    """
    text, count = _UNENCODED_PERCENT.subn(b"%25", text.replace(b"+", b" "), MAX_UNENCODED_PERCENTS + 1)
    if count > MAX_UNENCODED_PERCENTS:
        raise ValueError("unencoded percent signs")
    return binascii.a2b_qp(text.replace(b"=", b"=3D").replace(b"%", b"=")).decode()


def check_request(request: Request) -> None:
    """Check what needs no parsing: the Host header, the query string and the encoding of the body.

    :raises BadRequest: when the host is no host name.
    :raises DomainError: `invalid_payload` (400) for a query string with more than `MAX_FIELDS` parameters or invalid
        UTF-8; `unsupported_media_type` (415) for a compressed body.
    """
    if isinstance(request.routing_exception, BadRequest):
        raise request.routing_exception
    query_string = request.query_string
    if query_string.count(b"&") >= MAX_FIELDS:
        message = _(
            "The address has more than %(limit)s parameters. Remove some of them.", limit=format_number(MAX_FIELDS)
        )
        raise DomainError("invalid_payload", message, 400)
    if not (query_string.isascii() or _is_utf8(query_string)):
        # Error pages may read it.
        request.query_string = b""
        raise DomainError(
            "invalid_payload", _("The address contains characters that are not valid UTF-8. Check the address."), 400
        )
    encoding = request.environ.get("HTTP_CONTENT_ENCODING")
    if encoding and encoding.strip().lower() != "identity":
        message = _("Send the body without compression (Content-Encoding).")
        raise DomainError("unsupported_media_type", message, 415)


def get_form_or_empty() -> MultiDict[str, str]:
    """Return the form of the request; an empty one if it was rejected.

    For rate limits, which must not fail, and for pages that report another error.
    """
    try:
        return request.form
    except (DomainError, HTTPException):
        return MultiDict()


def broken_form_error() -> DomainError:
    """Return the error for a malformed form (400)."""
    return DomainError("form_broken", _("The form could not be read. Reload the page and try again."), 400)


def too_many_fields_error(limit: int = MAX_FIELDS) -> DomainError:
    """Return the error for a form with more than `limit` fields (413)."""
    message = _("The form has more than %(limit)s fields. Send fewer fields.", limit=format_number(limit))
    return DomainError("too_large", message, 413)


def _check_has_no_body(headers: Headers) -> None:
    """Check that a form without a Content-Length has no body either.

    A form with chunked transfer encoding that was interrupted cannot be told from a complete one, and a million chunks
    of one byte take seconds to read. Browsers always send the length.

    :raises DomainError: `length_required` (411; RFC 9110, section 15.5.12).
    """
    if "Transfer-Encoding" in headers:
        message = _("Send the form with a Content-Length header, so that an incomplete one can be detected.")
        raise DomainError("length_required", message, 411)


def check_json_size(body: bytes) -> None:
    """Check the number and the depth of the values of a JSON text without parsing it.

    :raises DomainError: `too_large` (413) with more than `MAX_JSON_VALUES` values, `broken_json` (400) with more than
        `MAX_JSON_DEPTH` levels. A text that is malformed may pass.
    """
    # Every value follows a comma or an opening bracket, except the first. Strings may contain these too.
    opening = body.count(b"[") + body.count(b"{")
    is_small = len(body) < MAX_JSON_VALUES or opening + body.count(b",") < MAX_JSON_VALUES
    if opening <= MAX_JSON_DEPTH and is_small:
        return
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # A value can have two strings: its name and itself.
    if body.count(b'"') > 4 * MAX_JSON_VALUES:
        raise _too_many_values_error()
    structure = b"".join(body.split(b'"')[::2])
    # With more brackets there are too many values.
    if _has_excessive_depth(structure.translate(None, _NOT_BRACKETS)[: 2 * MAX_JSON_VALUES]):
        message = _("The body is nested more than %(limit)s levels deep. Use fewer levels.", limit=MAX_JSON_DEPTH)
        raise DomainError("broken_json", message, 400)
    if structure.count(b"[") + structure.count(b"{") + structure.count(b",") >= MAX_JSON_VALUES:
        raise _too_many_values_error()


def _has_excessive_depth(brackets: bytes) -> bool:
    depth = 0
    for bracket in brackets:
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            return True
        if depth < 0:
            # Malformed: the parser stops here too.
            break
    return False


def _check_parts(body: bytes, boundary: str) -> None:
    """Check the number of parts of a multipart form and the size of their headers."""
    delimiter = b"--" + boundary.encode("ascii", "replace")
    if body.count(delimiter) > MAX_FIELDS + 1:
        raise too_many_fields_error()
    preamble, *parts = body.split(delimiter)
    size = len(preamble)
    for part in parts:
        if size > MAX_PART_HEADER_BYTES:
            break
        blank_line = _BLANK_LINE.search(part, 0, MAX_PART_HEADER_BYTES)
        size += blank_line.start() if blank_line else len(part)
    if size > MAX_PART_HEADER_BYTES:
        raise broken_form_error()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _too_many_values_error() -> DomainError:
    message = _("The body has more than %(limit)s values. Send less data.", limit=format_number(MAX_JSON_VALUES))
    return DomainError("too_large", message, 413)
