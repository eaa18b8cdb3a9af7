"""Small files that are there whole or not at all, whatever is killed while they are written."""

from __future__ import annotations

import errno
import os
import pwd
import secrets
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Write a file anew; readers see the old text or the new one."""
    part = _write_temporary(path, text)
    os.replace(part, path)


def read_or_create(path: Path, text: str) -> str:
    """What stands in a file, readable by its owner alone; made with this text when it is missing or empty.

    Of several who make it at the same time one wins, and all return the winner's text.
    """
    with suppress(FileNotFoundError):
        if found := path.read_text().strip():
            return found
        # Left by a power cut: nobody has ever read anything in it.
        path.unlink()
    part = _write_temporary(path, text)
    try:
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        part.unlink()
    return path.read_text().strip()


def _write_temporary(path: Path, text: str) -> Path:
    """The text on disk beside the file, under a name of its own."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        part.unlink(missing_ok=True)
        raise
    return part


# A full disk, a folder of somebody else's, or a place where no file can be: to be mended by whoever runs this.
_ENVIRONMENT_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def is_environment_error(error: OSError, folder: Path) -> bool:
    """Whether an error is about what the machine lets us do, or a file in a folder of ours; else it is a mistake."""
    ours = isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(folder)
    return error.errno in _ENVIRONMENT_ERRNOS or ours or "No space left on device" in str(error)


def explain_os_error(error: OSError, folder: Path) -> str:
    """One line about a file in a folder of ours that could not be written or read, with the one thing to do."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    # Copying a tree has errors of its own, with a list in their words.
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return f"the disk is full; make room in {place} and run the same command again"
    if error.errno == errno.EROFS:
        return f"{place} can only be read; let INSTANCE_PATH name a folder that can be written to"
    if error.errno in (errno.EACCES, errno.EPERM):
        owner, me = _user_name(place.stat().st_uid), _user_name(os.geteuid())
        if owner != me and place == folder:
            return f"{place} belongs to {owner}; run this as {owner}, or: sudo chown -R {me} '{place}'"
        return f"{me} may not write to {place}; let INSTANCE_PATH name a folder that can be written to"
    return f"{error.strerror or error}: {error.filename or folder}"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
