"""What the docs say is true."""

from __future__ import annotations

import re
import runpy
import subprocess

from flask import Flask

from webapp.extensions import db
from webapp.settings import ROOT


def test_the_drawn_tables_are_the_models(app: Flask) -> None:
    draw = runpy.run_path(str(ROOT / "scripts" / "erd"))["draw"]
    assert (ROOT / "docs" / "erd.md").read_text() == draw(db.metadata), "run: make erd"


def test_every_link_between_the_docs_leads_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_make_command_that_the_docs_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        named = set(re.findall(r"(?:`|^ {4}|\n)make ([a-z-]+)", page.read_text()))
        assert named <= targets, page.name


def test_help_lists_the_commands() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "run-test", "run-migration", "down", "run", "check"):
        assert f"make {target} " in said
