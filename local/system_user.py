"""The system user that runs the embedded PostgreSQL when Onecode is started by root."""

from __future__ import annotations

import pwd
import subprocess
from collections.abc import Sequence
from pathlib import Path

SYSTEM_USER = "onecode-db"


def ensure_system_user() -> str:
    """Create the system user if it does not exist; return its name.

    :raises OSError: when there is no `useradd` on this machine.
    :raises subprocess.CalledProcessError: when the user can't be created.
    """
    try:
        pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        command: Sequence[str] = [
            "useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
            "--shell", "/usr/sbin/nologin", SYSTEM_USER,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True)
    return SYSTEM_USER


def can_access(folder: Path, owner: str) -> bool:
    """Return whether a user can enter and list a folder.

    This is tried as that user, since mode bits do not show everything.
    """
    user = pwd.getpwnam(owner)
    result = subprocess.run(
        ["/bin/sh", "-c", 'test -x "$1" && test -r "$1"', "sh", str(folder)],
        user=user.pw_uid, group=user.pw_gid, extra_groups=[], cwd="/", check=False, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return result.returncode == 0
