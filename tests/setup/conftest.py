from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[..., list[str]]:
    """Run a failing command as an unprivileged user; return its error lines."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder != Path("/") and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
        if folder == Path("/tmp"):
            break

    def run(*command: str, cwd: Path) -> list[str]:
        result = subprocess.run(
            command, cwd=cwd, user=65534, group=65534, extra_groups=[], capture_output=True, text=True
        )
        assert result.returncode != 0
        return result.stderr.splitlines()

    return run
