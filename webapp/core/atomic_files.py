"""Write small files atomically.

A file is complete or absent, even if the process is killed during the write.
"""

from __future__ import annotations

import errno
import os
import pwd
import secrets
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace the contents of a file; readers see the old text or the new one."""
    temporary = _write_temporary(path, text)
    os.replace(temporary, path)


def read_or_create(path: Path, text: str) -> str:
    """Return the contents of a file; create it with `text` if it is missing or empty.

    The file is created with mode 0600. If several processes create it at the same time, one wins, and all return the
    winner's text.
    """
    with suppress(FileNotFoundError):
        if existing := path.read_text().strip():
            return existing
        # An empty file was left by a power failure; no process has ever read a value from it.
        path.unlink()
    temporary = _write_temporary(path, text)
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_text().strip()


def _write_temporary(path: Path, text: str) -> Path:
    """Write and fsync a uniquely named file in the same folder; return its path."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


# A full disk, missing permissions, or a path that cannot hold a file: the operator has to fix these.
_ENVIRONMENT_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip

# In the message of a shutil.Error, which has no errno.
_DISK_FULL_TEXT = "No space left on device"  # no translation


def is_environment_error(error: OSError, folder: Path) -> bool:
    """Return whether an error is caused by the environment and not by a bug.

    The environment is the disk, the permissions and `folder`.
    """
    is_in_folder = isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(folder)
    return error.errno in _ENVIRONMENT_ERRNOS or is_in_folder or _DISK_FULL_TEXT in str(error)


def explain_os_error(error: OSError, folder: Path) -> str:
    """Return one line about a file in `folder` that could not be written or read.

    The line says what to do about it.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or _DISK_FULL_TEXT in str(error):
        return f"the disk is full; free some space in {existing} and run the same command again"
    if error.errno == errno.EROFS:
        return f"{existing} is read-only; set INSTANCE_PATH to a writable folder"  # no translation
    if error.errno in (errno.EACCES, errno.EPERM):
        owner, user = _user_name(existing.stat().st_uid), _user_name(os.geteuid())
        if owner != user and existing == folder:
            command = f"sudo chown -R {user} '{existing}'"
            return f"{existing} belongs to {owner}; run this as {owner}, or: {command}"  # no translation
        return f"{user} cannot write to {existing}; set INSTANCE_PATH to a writable folder"  # no translation
    return f"{error.strerror or error}: {error.filename or folder}"


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
