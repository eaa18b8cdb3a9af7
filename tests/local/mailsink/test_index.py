"""The index agrees with the folder, also after either was changed or damaged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from local.mailsink.index import MailIndex
from tests.support.factories import WriteEmail
from tests.support.live_server import wait_until
from webapp.core.settings import ROOT


def file_names(index: MailIndex, search: str = "") -> list[str]:
    return [row.file_name for row in index.list_messages(search, "", 100)]


def test_emails_are_listed_newest_first(index: MailIndex, write_email: WriteEmail) -> None:
    names = [write_email("x", To=f"{n}@example.com") for n in range(3)]
    assert file_names(index) == names[::-1]


def test_pages_have_no_gaps_or_repeats_while_email_arrives(index: MailIndex, write_email: WriteEmail) -> None:
    names = [write_email("x", To=f"{n}@example.com") for n in range(7)]
    first = index.list_messages("", "", 3)
    write_email("x", To="late@example.com")
    second = index.list_messages("", first[-1].sort_key, 3)
    third = index.list_messages("", second[-1].sort_key, 3)
    assert [row.file_name for row in (*first, *second, *third)] == names[::-1]


@pytest.mark.parametrize(
    ("headers", "search"),
    [
        (b"To: Ada <ada@example.com>", "ADA@Example"),
        (b"Cc: ada@example.com", "ada@example.com"),
        (b"Subject: =?utf-8?q?Sch=C3=B6ne_Gr=C3=BC=C3=9Fe?=", "schöne grüsse"),
        (b"Subject: =?utf-8?b?w5xi?=\r\n =?utf-8?b?ZXI=?=", "über"),
        (b"To: =?iso-8859-1?q?J=FCrgen?= <j@example.com>", "JÜRGEN"),
        (b"Subject: folded\r\n in two", "folded in two"),
        ("Subject: голова".encode(), "ГОЛОВА"),
        (b"To: i@xn--mller-kva.example", "müller.example"),
        (b"To: i@xn--mller-kva.example", "xn--mller"),
        ("Subject: e\u0301te\u0301".encode(), "été"),
        ("Subject: ℡ ６０".encode(), "tel 60"),
        (b"Subject: summer sale\r\nTo: ada@example.com", "ada summer"),
        (b"Subject: 100 % off_", "100 % OFF_"),
        (b"subject: lf only\nTo: x@example.com\n\nbody", "lf only"),
    ],
)
def test_recipients_and_subjects_are_found_in_decoded_form(
    index: MailIndex, write_email: WriteEmail, headers: bytes, search: str
) -> None:
    name = write_email(headers + b"\r\n\r\nbody")
    write_email(b"To: other@example.com\r\nSubject: other\r\n\r\nada@example.com summer")
    assert file_names(index, search) == [name]


def test_bodies_and_other_headers_are_not_searched(index: MailIndex, write_email: WriteEmail) -> None:
    write_email("secret", To="a@example.com", From="shop@example.com", List="secret")
    assert file_names(index, "secret") == []
    assert file_names(index, "shop") == []


def test_sql_wildcards_are_matched_literally(index: MailIndex, write_email: WriteEmail) -> None:
    write_email("x", To="a@example.com")
    assert file_names(index, "%") == file_names(index, "' or 1=1 --") == []


def test_files_added_and_deleted_by_hand_are_noticed(index: MailIndex, write_email: WriteEmail, folder: Path) -> None:
    first = write_email("x", To="a@example.com")
    assert file_names(index) == [first]
    (folder / first).unlink()
    (folder / "from a friend.eml").write_bytes(b"To: b@example.com\r\n\r\n")
    assert file_names(index) == ["from a friend.eml"]


def test_a_deleted_folder_counts_as_empty(index: MailIndex, write_email: WriteEmail, folder: Path) -> None:
    (folder / write_email("x")).unlink()
    folder.rmdir()
    assert file_names(index) == []


def test_other_files_are_ignored(index: MailIndex, folder: Path) -> None:
    (folder / ".1-part.eml").write_bytes(b"To: half@example.com")
    (folder / "notes.txt").write_text("x")
    (folder / "folder.eml").mkdir()
    Path(os.fsdecode(bytes(folder) + b"/\xff.eml")).write_bytes(b"")
    assert file_names(index) == []


@pytest.mark.parametrize("content", [b"", b"not a database, " * 1000, None])
def test_a_lost_or_corrupt_index_is_rebuilt(
    index: MailIndex, write_email: WriteEmail, folder: Path, content: bytes | None
) -> None:
    name = write_email("x", To="a@example.com")
    assert file_names(index) == [name]
    if content is None:
        index.path.unlink()
    else:
        index.path.write_bytes(content)
    assert file_names(index, "a@example.com") == [name]
    assert file_names(MailIndex(folder)) == [name]


def test_an_index_of_an_older_release_is_rebuilt(index: MailIndex, write_email: WriteEmail, folder: Path) -> None:
    name = write_email("x", To="a@example.com")
    file_names(index)
    with index._connect() as connection:
        connection.executescript("alter table email drop column search_text; pragma user_version = 0;")
    assert file_names(MailIndex(folder), "a@example.com") == [name]


def test_the_index_is_readable_only_by_its_owner(index: MailIndex, write_email: WriteEmail) -> None:
    write_email("x")
    file_names(index)
    assert index.path.stat().st_mode & 0o077 == 0


def test_deleting_keeps_email_that_arrived_later(index: MailIndex, write_email: WriteEmail, folder: Path) -> None:
    write_email("x")
    write_email("y")
    newest_shown = index.list_messages("", "", 1)[0].sort_key
    late = write_email("z")
    assert index.delete_up_to(newest_shown) == 2
    assert file_names(index) == [late] == [file.name for file in folder.iterdir()]


@pytest.mark.slow
def test_a_killed_refresh_leaves_a_complete_index(folder: Path, write_email: WriteEmail) -> None:
    names = [write_email("x", To=f"{n}@example.com") for n in range(3000)]
    script = (
        "import pathlib; from local.mailsink.index import MailIndex; MailIndex(pathlib.Path(sys.argv[1])).refresh()"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT)
    index = MailIndex(folder)
    write_ahead_log = index.path.with_name(index.path.name + "-wal")
    wait_until(lambda: process.poll() is not None or write_ahead_log.exists(), interval=0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [row.file_name for row in index.list_messages("", "", 5000)] == names[::-1]


def test_emails_are_indexed_in_the_background(index: MailIndex, write_email: WriteEmail) -> None:
    write_email("x")
    index.start_background_refresh()
    wait_until(index.path.exists)
