"""The files of docs/operations.md: units, Caddyfile, permissions."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.operations_docs import block
from webapp.core.settings import ROOT

UNITS = "/etc/systemd/system/"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_the_units_and_rates_them_as_hardened(tmp_path: Path) -> None:
    replacements = {"/opt/onecode": str(ROOT), "User=onecode": "User=root", "Group=onecode": "Group=root"}
    for name in ("onecode-web@.service", "onecode-worker@.service", "onecode-.service.d/hardening.conf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(block(UNITS + name, replacements if name.endswith(".service") else {}))
    env = os.environ | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    for name in ("onecode-web@8000.service", "onecode-worker@1.service"):
        verified = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (verified.returncode, verified.stderr) == (0, "")
        exposure = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(tmp_path / name)]
        rated = subprocess.run(exposure, env=env, capture_output=True, text=True, check=False)
        assert rated.returncode == 0, rated.stdout[-200:]


@pytest.mark.skipif(not shutil.which("caddy"), reason="caddy is not installed")
def test_caddy_accepts_its_file(tmp_path: Path) -> None:
    (tmp_path / "Caddyfile").write_text(block("/etc/caddy/Caddyfile"))
    command = ["caddy", "validate", "--adapter", "caddyfile", "--config", str(tmp_path / "Caddyfile")]
    validated = subprocess.run(
        command, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert "Valid configuration" in validated.stdout + validated.stderr


@pytest.mark.parametrize("title", ["on every web and worker machine", "upgrade one machine"])
def test_files_installed_under_a_strict_umask_are_readable_by_the_service(title: str, tmp_path: Path) -> None:
    """Run the commands of the page under umask 077, with the slow commands stubbed."""
    stubs = """
        umask 077
        sudo() { "$@"; }
        adduser() { :; }
        systemctl() { :; }
        git() { mkdir -p "$code/webapp" "$code/.git"; echo > "$code/webapp/app.py"; }
        make() { mkdir -p "$code/.venv/bin"; echo > "$code/.venv/bin/flask"; }
    """
    commands = block(title).replace("/opt/onecode", str(tmp_path / "code")).replace("-o root -g onecode", "")
    subprocess.run(["bash", "-euc", f"code={tmp_path}/code\n{stubs}\n{commands}"], check=True, timeout=30)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "code", *tmp_path.rglob("code/**/*")]}
    assert modes.pop(".env", 0o640) == 0o640
    if title == "on every web and worker machine":
        assert modes.pop(".git") == 0o700
    assert [name for name, mode in modes.items() if not mode & stat.S_IROTH] == []
