"""`make env`: creates the file with the secrets of the containers."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from tests.support import container_files
from webapp.core import settings as app_settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    shutil.copy(app_settings.ROOT / "scripts" / "env", tmp_path / "scripts" / "env")
    return tmp_path


def run_script(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script without installed packages."""
    return subprocess.run(
        [sys.executable, "-I", "-S", "scripts/env"], cwd=folder, capture_output=True, text=True, check=False, timeout=30
    )


def test_the_script_creates_secrets_that_only_the_owner_can_read(folder: Path) -> None:
    result = run_script(folder)

    assert result.returncode == 0, result.stderr
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert {path.name for path in folder.iterdir()} == {"scripts", ".env"}
    given = dotenv_values(folder / ".env")
    assert given.keys() == {"POSTGRES_PASSWORD", "SECRET_KEY"}
    assert all(len(value or "") >= 40 for value in given.values())


def test_secrets_are_random(folder: Path) -> None:
    run_script(folder)
    first = dotenv_values(folder / ".env")
    (folder / ".env").unlink()
    run_script(folder)
    second = dotenv_values(folder / ".env")

    assert {name for name in first if first[name] == second[name]} == set()


def test_an_existing_file_is_not_changed(folder: Path) -> None:
    (folder / ".env").write_text("PORT=8010\n")

    result = run_script(folder)

    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("onecode: .env already exists")
    assert (folder / ".env").read_text() == "PORT=8010\n"
    assert len(list(folder.iterdir())) == 2


def test_the_file_has_all_secrets_of_the_compose_file(folder: Path) -> None:
    run_script(folder)
    given = {name: value or "" for name, value in dotenv_values(folder / ".env").items()}

    services = container_files.services(given)

    assert services["db"]["environment"]["POSTGRES_PASSWORD"] == given["POSTGRES_PASSWORD"]
    assert given["POSTGRES_PASSWORD"] in services["web"]["environment"]["DATABASE_URL"]


def test_every_name_is_a_setting_of_the_program_or_the_compose_file(folder: Path) -> None:
    run_script(folder)
    code = (app_settings.ROOT / "webapp" / "core" / "settings.py").read_text()
    lines = (folder / ".env").read_text().splitlines()
    names = {line.lstrip("#").partition("=")[0] for line in lines if "=" in line and " " not in line.partition("=")[0]}

    assert {"MAIL_SERVER", "PUBLISHED_PORT", "TRUSTED_PROXIES"} <= names
    assert {n for n in names if f'"{n}"' not in code and f"${{{n}:" not in container_files.COMPOSE.read_text()} == set()


def test_the_file_does_not_change_a_program_outside_of_containers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script(folder)
    monkeypatch.setattr(app_settings, "ROOT", folder)
    for name in ("DATABASE_URL", "SECRET_KEY", "MAIL_SERVER", "MAIL_PORT", "PORT", "PUBLIC_URL", "INSTANCE_PATH"):
        monkeypatch.delenv(name, raising=False)

    found = app_settings.load_settings()

    assert found.uses_embedded_database
    assert found.uses_mail_sink
    assert (found.port, found.public_url) == (8000, "http://127.0.0.1:8000")
