"""Parse an uploaded file from the body of a request."""

from __future__ import annotations

import io

import pytest

from webapp.core.errors import DomainError
from webapp.customers.imports import upload

LIMIT = 3 * upload.CHUNK_SIZE


def parse_form(file: bytes, end: bytes = b"\r\n--x--\r\n") -> upload.Upload:
    head = (
        b'--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\nVIP\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    )
    return upload.parse_multipart_form(io.BytesIO(head + file + end), "multipart/form-data; boundary=x", LIMIT)


def test_the_fields_before_the_file_are_parsed_first() -> None:
    parsed = parse_form(b"email\n")

    assert (parsed.fields, parsed.filename) == ({"audience": "VIP"}, "a.csv")


@pytest.mark.parametrize("size", [0, 1, upload.CHUNK_SIZE - 1, upload.CHUNK_SIZE, upload.CHUNK_SIZE + 1, LIMIT])
def test_a_file_is_read_completely_in_equal_chunks(size: int) -> None:
    file = (b"ada@example.com\r\n--x-\r\n" * (size // 20 + 1))[:size]

    chunks = list(parse_form(file).chunks)

    assert b"".join(chunks) == file
    assert all(len(chunk) == upload.CHUNK_SIZE for chunk in chunks[:-1])
    assert all(len(chunk) <= upload.CHUNK_SIZE for chunk in chunks)


def test_a_file_above_the_limit_is_rejected() -> None:
    file = b"x" * (LIMIT + 1)

    for chunks in (parse_form(file).chunks, upload.read_raw_body(io.BytesIO(file), len(file), LIMIT)):
        with pytest.raises(DomainError) as raised:
            list(chunks)
        assert (raised.value.status, raised.value.errors[0].field) == (413, "file")


@pytest.mark.parametrize("end", [b"", b"\r\n--x", b"\r\n--y--\r\n"])
def test_a_form_without_its_end_is_reported_as_interrupted(end: bytes) -> None:
    with pytest.raises(DomainError, match="upload was interrupted"):
        list(parse_form(b"email\n", end).chunks)


@pytest.mark.parametrize("length", [5, 7])
def test_a_body_of_the_wrong_length_is_reported_as_interrupted(length: int) -> None:
    with pytest.raises(DomainError, match="upload was interrupted"):
        list(upload.read_raw_body(io.BytesIO(b"email\n"), length, LIMIT))


def test_a_field_that_is_too_long_is_rejected() -> None:
    body = io.BytesIO(b'--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\n' + b"x" * 100_000)

    with pytest.raises(DomainError) as raised:
        upload.parse_multipart_form(body, "multipart/form-data; boundary=x", LIMIT)

    assert raised.value.key == "form_broken"


def test_too_many_parts_are_rejected_with_their_number() -> None:
    field = b'--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\nVIP\r\n'

    with pytest.raises(DomainError, match="more than 20 fields") as raised:
        upload.parse_multipart_form(io.BytesIO(field * 30), "multipart/form-data; boundary=x", LIMIT)

    assert (raised.value.key, raised.value.status) == ("too_large", 413)


@pytest.mark.parametrize("start", [b"", b'--x\r\nContent-Disposition: form-data; name="audience"\r\n'])
def test_headers_that_do_not_end_are_not_collected(start: bytes) -> None:
    body = io.BytesIO(start + b"a: b\r\n" * upload.CHUNK_SIZE)

    with pytest.raises(DomainError) as raised:
        upload.parse_multipart_form(body, "multipart/form-data; boundary=x", LIMIT)

    assert raised.value.key == "form_broken"
    assert body.tell() <= 3 * upload.CHUNK_SIZE
