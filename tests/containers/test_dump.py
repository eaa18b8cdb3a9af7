"""The dump that docs/containers.md makes before an upgrade."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from webapp.core.settings import ROOT

pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "containers.md"


def test_a_dump_is_readable_only_by_its_owner_and_ignored_by_git(tmp_path: Path) -> None:
    """Runs the command of the page with a script in place of `docker`."""
    (command,) = re.findall(r"^    (\S.*\n(?:      .*\n)*.*pg_dump .*)$", PAGE.read_text(), re.MULTILINE)
    (tmp_path / "docker").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "docker").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"

    subprocess.run(["sh", "-euc", f"umask 022; {command}"], cwd=tmp_path, env={"PATH": path}, check=True, timeout=30)

    (dump,) = tmp_path.glob("*.dump")
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    # See docs/operations/backup.md.
    assert "--no-unlogged-table-data" in dump.read_text()
    command_line = ["git", "-c", "safe.directory=*", "check-ignore", "--quiet", dump.name]
    assert subprocess.run(command_line, cwd=ROOT, check=False).returncode == 0
