"""Header lines at the edges of what fits on a line, and what is encoded."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable

import pytest

from webapp.mail.headers import format_address_header, format_header, to_single_line


def list_line_lengths(header: bytes) -> list[int]:
    """Return the length of each line of a header, which ends with a line break."""
    assert header.endswith(b"\r\n")
    return [len(line) for line in header.decode("ascii").removesuffix("\r\n").split("\r\n")]


def parse_value(header: bytes) -> str:
    """Parse a header as the standard library does."""
    (value,) = email.message_from_bytes(header + b"\r\n", policy=email.policy.default).values()
    return str(value)


def test_a_header_of_at_most_78_characters_is_one_line() -> None:
    value = "a" * 30 + " " + "b" * 38
    assert format_header("Subject", value) == f"Subject: {value}\r\n".encode()
    assert format_header("Subject", value + "c") == f"Subject: {'a' * 30}\r\n {'b' * 38}c\r\n".encode()


def test_a_long_header_is_folded_between_words() -> None:
    words = ["a" * 59, "b" * 20, "c" * 60, "d" * 16, "e"]
    header = format_header("Subject", " ".join(words))
    lines = [f"Subject: {words[0]}", f" {words[1]}", f" {words[2]} {words[3]}", f" {words[4]}"]
    assert header.decode() == "\r\n".join([*lines, ""])
    assert list_line_lengths(header) == [68, 21, 78, 2]
    # The first word stays on the line of the name.
    name = "X-" + "N" * 20
    assert format_header(name, f"{'a' * 60} b") == f"{name}: {'a' * 60}\r\n b\r\n".encode()


@pytest.mark.parametrize(
    "value",
    [
        "a" * 61 + " b" * 10,
        "a  b" + " c" * 40,
        "a" * 40 + "\t" + "b" * 40,
        "a =?utf-8?q?b?= c",
        "Café",
        "é" * 100,
        "a" + "😀" * 40,
    ],
)
def test_a_value_that_is_not_plain_text_is_encoded_without_a_loss(value: str) -> None:
    header = format_header("Subject", value)
    assert header.startswith(b"Subject: =?utf-8?b?")
    assert parse_value(header) == value
    assert max(list_line_lengths(header)) <= 76


def test_encoded_words_fill_their_lines() -> None:
    assert list_line_lengths(format_header("X-Name", "=?" + "x" * 98)) == [76, 73, 33]
    # Four bytes that do not fit into the rest of a word begin the next one.
    assert list_line_lengths(format_header("X-Name", "x" * 39 + "😀😀")) == [72, 25]
    # A character is never split, however long the name is.
    assert list_line_lengths(format_header("N" * 70, "😀😀")) == [92, 21]


@pytest.mark.parametrize("value", ["a\rb", "a\nb", "a\r\nBcc: eve@example.com"])
def test_a_line_break_is_rejected(value: str) -> None:
    builds: list[Callable[[], bytes]] = [
        lambda: format_header("Subject", value),
        lambda: format_address_header("To", value, "ada@example.com"),
        lambda: format_address_header("To", "Ada", value),
    ]
    for build in builds:
        with pytest.raises(ValueError, match="a header value must not contain a line break"):
            build()


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("", "To: <ada@example.com>\r\n"),
        ("Ada", "To: Ada <ada@example.com>\r\n"),
        ("Ada, Jr.", 'To: "Ada, Jr." <ada@example.com>\r\n'),
        ('A "B" \\ C', 'To: "A \\"B\\" \\\\ C" <ada@example.com>\r\n'),
        ("A" * 56, f"To: {'A' * 56} <ada@example.com>\r\n"),
        ("A" * 57, f"To: {'A' * 57}\r\n <ada@example.com>\r\n"),
        ("A" * 60, f"To: {'A' * 60}\r\n <ada@example.com>\r\n"),
        ("Adé", "To: =?utf-8?b?QWTDqQ==?=\r\n <ada@example.com>\r\n"),
        ("=?", "To: =?utf-8?b?PT8=?=\r\n <ada@example.com>\r\n"),
        ("a\tb", "To: =?utf-8?b?YQli?=\r\n <ada@example.com>\r\n"),
    ],
)
def test_an_address_has_its_name_before_it(name: str, header: str) -> None:
    assert format_address_header("To", name, "ada@example.com").decode() == header


def test_a_name_of_more_than_sixty_characters_is_encoded() -> None:
    header = format_address_header("X-Sent", "A" * 61, "ada@example.com")
    assert header.startswith(b"X-Sent: =?utf-8?b?")
    assert list_line_lengths(header) == [76, 41, 18]


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (" a \t b\r\nc ", "a b c"),
        ("a\0b\x1bc", "a b c"),
        ("a\u2028b\u2029c\ue000d\ud800e", "a b c d e"),
        # An emoji joiner and a control of the writing direction.
        ("👩\u200d🔬 \u202ea", "👩\u200d🔬 \u202ea"),
    ],
)
def test_a_value_on_one_line_keeps_joiners_and_bidi_controls(value: str, line: str) -> None:
    assert to_single_line(value) == line
