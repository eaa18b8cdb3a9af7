"""Splitting mailboxes into messages, and the limit of their size."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from webapp.campaigns.bounces import mailbox

SEPARATOR = b"From x Sat May  2 08:00:03 2026\n"


def read(content: bytes) -> list[bytes]:
    return list(mailbox.iter_messages(io.BytesIO(content)))


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(mailbox, "MAX_MESSAGE_BYTES", 20)
    return 20


@pytest.mark.parametrize("first", [b"", SEPARATOR, SEPARATOR + b"To: a\n\n" + SEPARATOR])
def test_a_message_is_cut_off_at_the_first_line_that_exceeds_the_limit(limit: int, first: bytes) -> None:
    assert read(first + b"To: x\n\n" + b"a" * 12 + b"\n")[-1] == b"To: x\n\n" + b"a" * 12 + b"\n"
    assert read(first + b"To: x\n\n" + b"a" * 13 + b"\nb\n")[-1] == b"To: x\n\n"


def test_the_message_after_one_that_is_cut_off_is_whole(limit: int) -> None:
    content = SEPARATOR + b"To: x\n\n" + b"a" * 13 + b"\n\n" + SEPARATOR + b"To: y\n"
    assert read(content) == [b"To: x\n\n", b"To: y\n"]


def test_a_posted_message_is_cut_off_at_the_limit(limit: int) -> None:
    assert mailbox.read_truncated([b"a" * 15, b"b" * 15, b"c" * 15, b"d"]) == b"a" * 15 + b"b" * 5
    assert mailbox.read_truncated([b"a" * 20]) == b"a" * 20


@pytest.mark.parametrize(
    ("line", "is_separator"),
    [
        (b"From x Sat May  2 08:00:03 2026", True),
        (b"From x Sat May  2 08:00 2026 +0000", True),
        (b"From x 2026 08:00", False),
        (b"From x 08:00", False),
        (b"From 2026", False),
        (b" From x 08:00 2026", False),
        (b">From x 08:00 2026", False),
    ],
)
def test_a_separator_has_a_time_and_then_a_year(line: bytes, is_separator: bool) -> None:
    assert len(read(SEPARATOR + b"To: x\n\n" + line + b"\nTo: y\n")) == 1 + is_separator
    # Only after a blank line, which may end with CRLF.
    assert len(read(SEPARATOR + b"To: x\r\n\r\n" + line + b"\r\nTo: y\r\n")) == 1 + is_separator
    assert len(read(SEPARATOR + b"To: x\n" + line + b"\nTo: y\n")) == 1
    # Not within a single message.
    assert len(read(b"To: x\n\n" + line + b"\nTo: y\n")) == 1


def test_a_quoted_from_is_restored_in_a_mailbox_only() -> None:
    assert read(SEPARATOR + b"To: x\n\n>From y\n>>From z\n") == [b"To: x\n\nFrom y\n>>From z\n"]
    assert read(b"To: x\n\n>From y\n") == [b"To: x\n\n>From y\n"]


def test_blank_lines_are_no_message() -> None:
    assert read(b"\n\n" + SEPARATOR + b"\n\n" + SEPARATOR + b"To: x\n") == [b"To: x\n"]


def test_the_messages_of_a_maildir_are_the_new_and_the_read_ones(tmp_path: Path) -> None:
    for name in ("cur", "new", "tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "2").write_bytes(b"To: " + name.encode() + b"\n")
    (tmp_path / "new" / "1").write_bytes(b"To: first\n")
    (tmp_path / "new" / "folder").mkdir()
    (tmp_path / "maildirsize").write_bytes(b"To: other\n")
    messages = list(mailbox.iter_messages_in_path(tmp_path))
    assert sorted(messages) == [b"To: cur\n", b"To: first\n", b"To: new\n"]
    assert messages.index(b"To: first\n") < messages.index(b"To: new\n")


def test_the_messages_of_a_folder_are_its_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("b.eml", "a.eml"):
        (tmp_path / name).write_bytes(b"To: " + name.encode() + b"\n")
    (tmp_path / "c.mbox").write_bytes(SEPARATOR + b"To: c\n\n" + SEPARATOR + b"To: d\n")
    assert list(mailbox.iter_messages_in_path(tmp_path)) == [b"To: a.eml\n", b"To: b.eml\n", b"To: c\n\n", b"To: d\n"]
