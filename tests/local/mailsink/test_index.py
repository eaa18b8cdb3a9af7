"""The index finds what the folder holds, whatever happened to either of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from local.mailsink.index import MailIndex
from webapp.core.settings import ROOT

Drop = Callable[..., str]


def found(index: MailIndex, sought: str = "") -> list[str]:
    return [row.file_name for row in index.list_messages(sought, "", 100)]


def test_the_newest_come_first(index: MailIndex, drop: Drop) -> None:
    names = [drop("x", To=f"{n}@example.com") for n in range(3)]
    assert found(index) == names[::-1]


def test_pages_follow_each_other_without_gap_or_repeat_while_mail_comes(index: MailIndex, drop: Drop) -> None:
    names = [drop("x", To=f"{n}@example.com") for n in range(7)]
    first = index.list_messages("", "", 3)
    drop("x", To="late@example.com")
    second = index.list_messages("", first[-1].sort_key, 3)
    third = index.list_messages("", second[-1].sort_key, 3)
    assert [row.file_name for row in (*first, *second, *third)] == names[::-1]


@pytest.mark.parametrize(
    ("head", "sought"),
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
def test_recipients_and_subjects_are_found_as_people_write_them(
    index: MailIndex, drop: Drop, head: bytes, sought: str
) -> None:
    name = drop(head + b"\r\n\r\nbody")
    drop(b"To: other@example.com\r\nSubject: other\r\n\r\nada@example.com summer")
    assert found(index, sought) == [name]


def test_words_of_the_body_and_of_other_headers_are_not_searched(index: MailIndex, drop: Drop) -> None:
    drop("secret", To="a@example.com", From="shop@example.com", List="secret")
    assert found(index, "secret") == []
    assert found(index, "shop") == []


def test_signs_that_mean_something_in_sql_are_only_signs(index: MailIndex, drop: Drop) -> None:
    drop("x", To="a@example.com")
    assert found(index, "%") == found(index, "' or 1=1 --") == []


def test_files_deleted_and_dropped_in_by_hand_are_noticed(index: MailIndex, drop: Drop, folder: Path) -> None:
    first = drop("x", To="a@example.com")
    assert found(index) == [first]
    (folder / first).unlink()
    (folder / "from a friend.eml").write_bytes(b"To: b@example.com\r\n\r\n")
    assert found(index) == ["from a friend.eml"]


def test_a_folder_deleted_by_hand_is_an_empty_one(index: MailIndex, drop: Drop, folder: Path) -> None:
    (folder / drop("x")).unlink()
    folder.rmdir()
    assert found(index) == []


def test_what_is_no_mail_is_left_alone(index: MailIndex, folder: Path) -> None:
    (folder / ".1-part.eml").write_bytes(b"To: half@example.com")
    (folder / "notes.txt").write_text("x")
    (folder / "folder.eml").mkdir()
    Path(os.fsdecode(bytes(folder) + b"/\xff.eml")).write_bytes(b"")
    assert found(index) == []


@pytest.mark.parametrize("content", [b"", b"not a database, " * 1000, None])
def test_an_index_that_is_lost_or_spoilt_is_made_anew(
    index: MailIndex, drop: Drop, folder: Path, content: bytes | None
) -> None:
    name = drop("x", To="a@example.com")
    assert found(index) == [name]
    if content is None:
        index.path.unlink()
    else:
        index.path.write_bytes(content)
    assert found(index, "a@example.com") == [name]
    assert found(MailIndex(folder)) == [name]


def test_an_index_of_an_older_release_is_made_anew(index: MailIndex, drop: Drop, folder: Path) -> None:
    name = drop("x", To="a@example.com")
    found(index)
    with index._connect() as connection:
        connection.executescript("alter table email drop column search_text; pragma user_version = 0;")
    assert found(MailIndex(folder), "a@example.com") == [name]


def test_nobody_else_on_the_machine_may_read_it(index: MailIndex, drop: Drop) -> None:
    drop("x")
    found(index)
    assert index.path.stat().st_mode & 0o077 == 0


def test_emptying_leaves_what_came_after_the_page_was_drawn(index: MailIndex, drop: Drop, folder: Path) -> None:
    drop("x")
    drop("y")
    seen = index.list_messages("", "", 1)[0].sort_key
    late = drop("z")
    assert index.delete_up_to(seen) == 2
    assert found(index) == [late] == [file.name for file in folder.iterdir()]


def test_killed_amid_its_work_it_has_every_mail_once_afterwards(folder: Path, drop: Drop) -> None:
    names = [drop("x", To=f"{n}@example.com") for n in range(3000)]
    script = (
        "import pathlib; from local.mailsink.index import MailIndex; MailIndex(pathlib.Path(sys.argv[1])).refresh()"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(folder)], cwd=ROOT)
    index = MailIndex(folder)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if index.path.exists() and index.path.with_name(index.path.name + "-wal").exists():
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [row.file_name for row in index.list_messages("", "", 5000)] == names[::-1]


def test_mails_are_indexed_in_the_background_once_it_is_quiet(index: MailIndex, drop: Drop) -> None:
    drop("x")
    index.start_background_refresh()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not index.path.exists():
        time.sleep(0.05)
    assert index.path.exists()
