"""Files are complete or absent, and an error says what the operator has to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from webapp.core import atomic_files


def test_a_file_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    path = tmp_path / "port"
    for text in ("8000", "8001"):
        atomic_files.write_atomically(path, text)

    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("port", "8001")]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("existing", "expected"), [(None, "new"), ("", "new"), (" \n", "new"), ("old\n", "old")])
def test_the_first_text_of_a_file_is_kept(tmp_path: Path, existing: str | None, expected: str) -> None:
    path = tmp_path / "secret_key"
    if existing is not None:
        path.write_text(existing)

    assert [atomic_files.read_or_create(path, text) for text in ("new", "newer")] == [expected] * 2
    assert os.listdir(tmp_path) == ["secret_key"]


def test_the_text_of_the_process_that_was_faster_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "secret_key", os.link

    def link_too_late(source: Path, target: Path) -> None:
        path.write_text("of the other process")
        link(source, target)

    monkeypatch.setattr(os, "link", link_too_late)

    assert atomic_files.read_or_create(path, "own") == "of the other process"
    assert os.listdir(tmp_path) == ["secret_key"]


def test_a_process_that_was_killed_while_writing_does_not_prevent_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "port"
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *_paths: None)
        atomic_files.write_atomically(path, "8000")
    assert not path.exists()

    atomic_files.write_atomically(path, "8001")

    assert path.read_text() == "8001"


def test_a_failed_write_keeps_the_old_text_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "port"
    path.write_text("8000")

    def fail(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)

    with pytest.raises(OSError, match="No space left"):
        atomic_files.write_atomically(path, "8001")

    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("port", "8000")]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), True),
        (OSError(errno.EDQUOT, "quota exceeded"), True),
        (OSError(errno.EROFS, "read-only"), True),
        (OSError(errno.EPERM, "not permitted"), True),
        (OSError(errno.ENOENT, "missing", "{folder}/a"), True),
        (OSError(errno.ENOENT, "missing", "/elsewhere"), False),
        (OSError("1 error: No space left on device"), True),
        (OSError("a bug"), False),
    ],
)
def test_an_error_of_the_disk_or_the_folder_is_no_bug(tmp_path: Path, error: OSError, expected: bool) -> None:
    if error.filename:
        error.filename = error.filename.format(folder=tmp_path)

    assert atomic_files.is_environment_error(error, tmp_path) is expected


FULL = "the disk is full; free some space in {folder} and run the same command again"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "full"), FULL),
        (OSError(errno.EDQUOT, "quota exceeded"), FULL),
        (OSError("1 error: No space left on device"), FULL),
        (OSError(errno.EROFS, "read-only"), "{folder} is read-only; set INSTANCE_PATH to a writable folder"),
        (OSError(errno.ENOTDIR, "Not a directory", "/a/b"), "Not a directory: /a/b"),
        (OSError(errno.ENOTDIR, "Not a directory"), "Not a directory: {folder}/new/instance"),
        (OSError("unknown"), "unknown: {folder}/new/instance"),
    ],
)
def test_an_error_names_the_nearest_existing_folder(tmp_path: Path, error: OSError, expected: str) -> None:
    text = atomic_files.explain_os_error(error, tmp_path / "new" / "instance")

    assert text == expected.format(folder=tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        ("daemon", "", "{folder} belongs to daemon; run this as daemon, or: sudo chown -R {user} '{folder}'"),
        ("daemon", "new", "{user} cannot write to {folder}; set INSTANCE_PATH to a writable folder"),
        (None, "", "{user} cannot write to {folder}; set INSTANCE_PATH to a writable folder"),
        (
            "user 54321",
            "",
            "{folder} belongs to user 54321; run this as user 54321, or: sudo chown -R {user} '{folder}'",
        ),
    ],
)
def test_missing_permissions_name_the_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, owner: str | None, name: str, expected: str
) -> None:
    user = atomic_files._user_name(os.geteuid())
    if owner:
        names = iter([owner, user])
        monkeypatch.setattr(atomic_files, "_user_name", lambda _uid: next(names))

    text = atomic_files.explain_os_error(OSError(code, "Permission denied"), tmp_path / name)

    assert text == expected.format(folder=tmp_path, user=user)


def test_a_user_without_a_name_is_a_number() -> None:
    assert [atomic_files._user_name(uid) for uid in (0, 54321)] == ["root", "user 54321"]
