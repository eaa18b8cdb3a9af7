"""A file out of a request's body in pieces of about a megabyte: neither memory nor disk ever holds all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import NEED_DATA, Data, Epilogue, Field, File, MultipartDecoder

from webapp.core.errors import DomainError

CHUNK_SIZE = 1024 * 1024
MAX_FIELDS_SIZE = 64 * 1024
MAX_PARTS = 20


@dataclass
class Upload:
    """The fields that stand before the file in a form, the file's name, and the file as it arrives."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str = ""
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))


def read_raw_body(stream: IO[bytes], length: int, limit: int) -> Iterator[bytes]:
    """A body that is the file itself.

    :param length: how much was announced. A web server may end the stream quietly when the sender is gone.
    :raises DomainError: `too_large` (413) behind `limit` bytes; `upload_broken` (400) when the sender is gone.
    """
    size = 0
    while piece := _read_chunk(stream):
        size += len(piece)
        if size > limit:
            raise file_too_large_error(limit)
        yield piece
    if size != length:
        raise _broken_upload_error()


def parse_multipart_form(stream: IO[bytes], content_type: str, limit: int) -> Upload:
    """A `multipart/form-data` body whose file comes last; its pieces are read when they are asked for.

    :raises DomainError: `form_broken` (400) when it is no such form; later as `body`.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "").encode("ascii", "replace")
    if kind != "multipart/form-data" or not boundary:
        raise _broken_form_error()
    events = _parse_events(stream, MultipartDecoder(boundary, max_parts=MAX_PARTS))
    upload = Upload()
    name: str | None = None
    size = 0
    for event in events:
        if isinstance(event, File):
            upload.filename = event.filename
            upload.chunks = _read_file_part(events, limit)
            break
        if isinstance(event, Field):
            name = event.name
            upload.fields[name] = ""
        elif isinstance(event, Data) and name is not None:
            size += len(event.data)
            if size > MAX_FIELDS_SIZE:
                raise _broken_form_error()
            upload.fields[name] += event.data.decode("utf-8", "replace")
    return upload


def drain_body(stream: IO[bytes], limit: int) -> None:
    """Read on and throw away, up to `limit`: a browser shows an answer only when it could send all of its request."""
    try:
        while limit > 0 and (piece := stream.read(CHUNK_SIZE)):
            limit -= len(piece)
    except (HTTPException, OSError):
        return


def file_too_large_error(limit: int) -> DomainError:
    sentence = f"This file is larger than {limit // 1024 // 1024} MB. Split it and import the parts one after another."
    return DomainError("too_large", sentence, 413, field="file")


def length_required_error() -> DomainError:
    """RFC 9110, 15.5.12. A body in chunks that breaks off looks to us like one that has ended."""
    sentence = "Send the file with its Content-Length: only so can we tell that it has arrived whole."
    return DomainError("length_required", sentence, 411, field="file")


def _parse_events(stream: IO[bytes], decoder: MultipartDecoder) -> Iterator[Field | File | Data]:
    while True:
        try:
            event = decoder.next_event()
            if event is NEED_DATA:
                # After the last boundary an empty read ends the form; before it, the decoder objects.
                decoder.receive_data(_read_chunk(stream) or None)
                continue
        except ValueError as error:
            raise _broken_upload_error() from error
        if isinstance(event, Epilogue):
            return
        if isinstance(event, Field | File | Data):
            yield event


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
    # What a form sends behind its file is of no interest, but it has to be whole.
    for _ in events:
        continue


def _read_chunk(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(CHUNK_SIZE)
    except HTTPException as error:
        if error.code == 413:
            raise
        raise _broken_upload_error() from error
    except OSError as error:
        raise _broken_upload_error() from error


def _broken_upload_error() -> DomainError:
    return DomainError("upload_broken", "The file did not arrive whole. Please send it again.", 400, field="file")


def _broken_form_error() -> DomainError:
    return DomainError("form_broken", "This form can't be read. Please load the page again and repeat the step.", 400)
