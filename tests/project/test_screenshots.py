"""The README's pictures are those of `make screenshots`."""

from __future__ import annotations

import re
import struct
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import pytest

from webapp.core.settings import ROOT

FOLDER = ROOT / "docs" / "screenshots"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script behind `make screenshots`."""
    loader = SourceFileLoader("screenshots", str(ROOT / "scripts" / "screenshots"))
    spec = spec_from_loader("screenshots", loader)
    assert spec is not None
    module = module_from_spec(spec)
    # Data classes look up their module.
    monkeypatch.setitem(sys.modules, "screenshots", module)
    loader.exec_module(module)
    return module


def test_the_readme_shows_exactly_the_pictures_of_the_script(command: Any) -> None:
    taken = sorted(shot.name for shot in command.SHOTS)
    shown = re.findall(r"!\[[^\]]*\]\(docs/screenshots/([^)]+)\.png\)", (ROOT / "README.md").read_text())
    assert sorted(shown) == taken
    assert sorted(file.name.removesuffix(".png") for file in FOLDER.iterdir()) == taken


def test_every_picture_has_an_alternative_text() -> None:
    texts = re.findall(r"!\[([^\]]*)\]\(docs/screenshots/", (ROOT / "README.md").read_text())
    assert texts
    assert [text for text in texts if len(text.split()) < 4] == []


def test_pictures_have_the_size_of_their_windows_and_are_small(command: Any) -> None:
    for shot in command.SHOTS:
        data = (FOLDER / f"{shot.name}.png").read_bytes()
        assert struct.unpack(">II", data[16:24]) == shot.size, f"{shot.name}: run `make screenshots`"
        assert len(data) <= command.MAX_FILE_BYTES, shot.name
