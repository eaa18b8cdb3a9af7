"""Parse uploads: read a file from a request body in chunks, without buffering it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from flask_babel import gettext as _
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import NEED_DATA, Data, Epilogue, Event, Field, File, MultipartDecoder

from webapp.core.errors import DomainError
from webapp.core.request_limits import broken_form_error, too_many_fields_error

CHUNK_SIZE = 1024 * 1024
MAX_FIELDS_SIZE = 64 * 1024
MAX_PARTS = 20
# What the parser may hold: data is passed on with each chunk, but headers only when they are complete.
MAX_BUFFER_SIZE = 2 * CHUNK_SIZE


@dataclass
class Upload:
    """A multipart form: the fields before the file, its name and its chunks."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))


def read_raw_body(stream: IO[bytes], length: int, limit: int) -> Iterator[bytes]:
    """Yield the chunks of a body that is the file itself.

    :param length: the Content-Length in bytes. Some web servers end the stream silently when the client disconnects.
    :param limit: maximum size in bytes.
    :raises DomainError: `too_large` (413) above `limit` bytes; `upload_broken` (400) when the client disconnected.
    """
    size = 0
    while chunk := _read_chunk(stream):
        size += len(chunk)
        if size > limit:
            raise file_too_large_error(limit)
        yield chunk
    if size != length:
        raise _broken_upload_error()


def parse_multipart_form(stream: IO[bytes], content_type: str, limit: int) -> Upload:
    """Parse a `multipart/form-data` body whose file comes last.

    The file is read while its chunks are iterated.

    :param limit: maximum size of the file in bytes.
    :raises DomainError: `form_broken` (400) when the form cannot be parsed, `too_large` (413) when it has more than
        `MAX_PARTS` parts; while iterating as `read_raw_body`.
    """
    media_type, options = parse_options_header(content_type)
    boundary = options.get("boundary", "").encode("ascii", "replace")
    if media_type != "multipart/form-data" or not boundary:
        raise broken_form_error()
    decoder = MultipartDecoder(boundary, max_form_memory_size=MAX_BUFFER_SIZE, max_parts=MAX_PARTS)
    events = _parse_events(stream, decoder)
    upload = Upload()
    field_name: str | None = None
    value = bytearray()
    size = 0
    for event in events:
        if isinstance(event, File):
            upload.filename = event.filename
            upload.chunks = _read_file_part(events, limit)
            break
        if isinstance(event, Field):
            field_name = event.name
            value.clear()
        elif isinstance(event, Data) and field_name is not None:
            size += len(event.data)
            if size > MAX_FIELDS_SIZE:
                raise broken_form_error()
            value += event.data
            if not event.more_data:
                # Not before: a character may be split between two reads.
                upload.fields[field_name] = value.decode("utf-8", "replace")
    return upload


def drain_body(stream: IO[bytes], limit: int) -> None:
    """Discard up to `limit` bytes of the body.

    Browsers show a response only after sending the whole request.
    """
    try:
        while limit > 0 and (chunk := stream.read(CHUNK_SIZE)):
            limit -= len(chunk)
    except (HTTPException, OSError):
        return


def file_too_large_error(limit: int) -> DomainError:
    """Return the error for a file of more than `limit` bytes (413)."""
    size_mb = limit // 1024 // 1024
    message = _("The file is larger than %(size)s MB. Split it and import the parts one by one.", size=size_mb)
    return DomainError("too_large", message, 413, field="file")


def length_required_error() -> DomainError:
    """Return the error for a missing Content-Length (411; RFC 9110, 15.5.12).

    An interrupted body with chunked transfer encoding cannot be told from a complete one.
    """
    message = _("Send the file with a Content-Length header, so that an incomplete upload can be detected.")
    return DomainError("length_required", message, 411, field="file")


def _parse_events(stream: IO[bytes], decoder: MultipartDecoder) -> Iterator[Field | File | Data]:
    half_boundary, received = b"--" + decoder.boundary + b"-", b""
    while True:
        try:
            event = _next_event(decoder)
            if event is NEED_DATA:
                chunk = _read_chunk(stream)
                received = (received + chunk)[-len(half_boundary) :]
                if received == half_boundary:
                    # Between the last two dashes, the decoder takes the CR before the boundary for a part of the file
                    # (https://github.com/pallets/werkzeug/issues/3285).
                    chunk += _read_chunk(stream, 1)
                # An empty read ends the form after the last boundary; before it, the decoder raises ValueError.
                _receive_chunk(decoder, chunk or None)
                continue
        except ValueError as error:
            raise _broken_upload_error() from error
        if isinstance(event, Epilogue):
            return
        if isinstance(event, Field | File | Data):
            yield event


def _next_event(decoder: MultipartDecoder) -> Event:
    try:
        return decoder.next_event()
    except RequestEntityTooLarge as error:
        raise too_many_fields_error(MAX_PARTS) from error


def _receive_chunk(decoder: MultipartDecoder, chunk: bytes | None) -> None:
    try:
        decoder.receive_data(chunk)
    except RequestEntityTooLarge as error:
        raise broken_form_error() from error


def _read_file_part(events: Iterator[Field | File | Data], limit: int) -> Iterator[bytes]:
    buffer, size = bytearray(), 0
    for event in events:
        if not isinstance(event, Data):
            continue
        buffer += event.data
        size += len(event.data)
        if size > limit:
            raise file_too_large_error(limit)
        while len(buffer) >= CHUNK_SIZE:
            yield bytes(buffer[:CHUNK_SIZE])
            del buffer[:CHUNK_SIZE]
        if not event.more_data:
            break
    if buffer:
        yield bytes(buffer)
    # Parts after the file are ignored but must be complete.
    for _ignored in events:
        continue


def _read_chunk(stream: IO[bytes], size: int = CHUNK_SIZE) -> bytes:
    try:
        return stream.read(size)
    except HTTPException as error:
        if error.code == 413:
            raise
        raise _broken_upload_error() from error
    except OSError as error:
        raise _broken_upload_error() from error


def _broken_upload_error() -> DomainError:
    return DomainError("upload_broken", _("The upload was interrupted. Upload the file again."), 400, field="file")
