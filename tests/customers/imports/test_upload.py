"""A file out of a request's body, without a server."""

from __future__ import annotations

import io

import pytest

from webapp.core.errors import DomainError
from webapp.customers.imports import upload

LIMIT = 3 * upload.CHUNK_SIZE


def form(file: bytes, end: bytes = b"\r\n--x--\r\n") -> upload.Upload:
    head = (
        b'--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\nVIP\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n'
    )
    return upload.parse_multipart_form(io.BytesIO(head + file + end), "multipart/form-data; boundary=x", LIMIT)


def test_the_fields_before_the_file_are_known_before_it_is_read() -> None:
    sent = form(b"email\n")

    assert (sent.fields, sent.filename) == ({"audience": "VIP"}, "a.csv")


@pytest.mark.parametrize("size", [0, 1, upload.CHUNK_SIZE - 1, upload.CHUNK_SIZE, upload.CHUNK_SIZE + 1, LIMIT])
def test_a_file_arrives_whole_in_pieces_of_one_size(size: int) -> None:
    file = (b"ada@example.com\r\n--x-\r\n" * (size // 20 + 1))[:size]

    kept = list(form(file).chunks)

    assert b"".join(kept) == file
    assert all(len(piece) == upload.CHUNK_SIZE for piece in kept[:-1])


def test_a_file_behind_the_limit_is_too_large() -> None:
    file = b"x" * (LIMIT + 1)

    for pieces in (form(file).chunks, upload.read_raw_body(io.BytesIO(file), len(file), LIMIT)):
        with pytest.raises(DomainError) as refusal:
            list(pieces)
        assert (refusal.value.status, refusal.value.errors[0].field) == (413, "file")


@pytest.mark.parametrize("end", [b"", b"\r\n--x", b"\r\n--y--\r\n"])
def test_a_form_without_its_end_did_not_arrive_whole(end: bytes) -> None:
    with pytest.raises(DomainError, match="upload was interrupted"):
        list(form(b"email\n", end).chunks)


@pytest.mark.parametrize("length", [5, 7])
def test_a_body_of_another_length_than_announced_did_not_arrive_whole(length: int) -> None:
    with pytest.raises(DomainError, match="upload was interrupted"):
        list(upload.read_raw_body(io.BytesIO(b"email\n"), length, LIMIT))


def test_fields_that_never_end_are_refused() -> None:
    sent = io.BytesIO(b'--x\r\nContent-Disposition: form-data; name="audience"\r\n\r\n' + b"x" * 100_000)

    with pytest.raises(DomainError) as refusal:
        upload.parse_multipart_form(sent, "multipart/form-data; boundary=x", LIMIT)

    assert refusal.value.key == "form_broken"
