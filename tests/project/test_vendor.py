"""The vendored files match VERSIONS.json, and Tabler's has the classes in use."""

from __future__ import annotations

import gzip
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

import pytest

from webapp.core.settings import ROOT

STATIC = ROOT / "static"
TABLER = STATIC / "vendor" / "tabler" / "tabler.min.css"
REMEDY = "run `scripts/vendor @tabler/core`"
# The stylesheets that every staff page loads.
STAFF_CSS = (TABLER, STATIC / "vendor" / "uplot" / "uplot.min.css", STATIC / "app.css")
MAX_STAFF_CSS = 20_000


@pytest.fixture(scope="module")
def vendor() -> Any:
    """The script that fetches third-party files."""
    loader = SourceFileLoader("vendor", str(ROOT / "scripts" / "vendor"))
    spec = spec_from_loader("vendor", loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def missing(vendor: Any, used: set[str]) -> set[str]:
    """Return the classes that Tabler has but the committed stylesheet lacks."""
    tabler = set(vendor.CLASS_LIST.read_text().split())
    committed: set[str] = vendor.css_classes(TABLER.read_text())
    return (used & tabler) - committed


def test_vendored_files_match_their_checksums(vendor: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert vendor.check() == 0, capsys.readouterr().err


def test_stylesheet_has_every_tabler_class_in_use(vendor: Any) -> None:
    assert missing(vendor, vendor.used_classes()) == set(), REMEDY


def test_class_that_was_purged_is_reported(vendor: Any) -> None:
    assert missing(vendor, {"carousel", "btn", "no-class-of-tabler"}) == {"carousel"}


def test_stylesheet_defines_every_variable_in_use(vendor: Any) -> None:
    ours = (STATIC / "app.css").read_text()
    defined = {
        name for name in vendor.VARIABLE.findall(TABLER.read_text() + ours) if f"{name}:" in TABLER.read_text() + ours
    }
    assert vendor.used_variables() - defined == set(), REMEDY


def test_stylesheet_is_purged_for_every_element_in_use(vendor: Any) -> None:
    assert vendor.used_tags() - set(vendor.TAGS.split()) == set(), f"add them to TAGS in scripts/vendor and {REMEDY}"


def test_stylesheet_keeps_rules_for_elements_and_attributes() -> None:
    css = TABLER.read_text()
    assert "[hidden]{display:none!important}" in css
    assert "[data-bs-theme=dark]" in css
    assert "::-webkit-progress-value" in css


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<p class="card mb-0{% if wide %} w-100{% endif %}">', {"card", "mb-0", "w-100"}),
        ('{{ f(class=("form-select" if many else "form-control")) }}', {"form-select", "form-control"}),
        ('{% set tones = {"done": "text-success"} %}', {"text-success"}),
        ('make("div", { className: "toast show" })', {"toast", "show"}),
        ('{# class="carousel" #}<p>carousel</p>', set()),
    ],
)
def test_class_names_are_found(
    vendor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, text: str, expected: set[str]
) -> None:
    file = tmp_path / "page.html"
    file.write_text(text)
    monkeypatch.setattr(vendor, "sources", lambda: [file])
    assert expected <= vendor.used_classes()
    assert "carousel" not in vendor.used_classes()


def test_staff_css_is_small_when_compressed() -> None:
    assert sum(len(gzip.compress(path.read_bytes())) for path in STAFF_CSS) <= MAX_STAFF_CSS
