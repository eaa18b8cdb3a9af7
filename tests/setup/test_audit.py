"""`scripts/audit` with the real tools and a server with the API of OSV on the loopback interface."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.support.ports import free_port
from webapp.core.settings import ROOT

REQUIREMENT = "{}==1.0 --hash=sha256:" + "0" * 64 + "\n"
VULNERABILITY = {
    "id": "PYSEC-2026-1",
    "summary": "A summary.",
    "details": "Details.",
    "modified": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "unsafe"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.1"}]}],
        }
    ],
}


VENDORED = [
    {"name": name, "version": "1.0", "licence": "MIT", "file": f"{folder}/vendor/{name}.js"}
    for name, folder in (("@scope/safe", "static"), ("axe-core", "tests"))
]


class Osv(BaseHTTPRequestHandler):
    """Responds with a vulnerability of packages whose name ends with `unsafe`."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"vulns": [VULNERABILITY]} if query["package"]["name"].endswith("unsafe") else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def osv_url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Osv)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source tree with the script and its installed tools."""
    folder = tmp_path_factory.mktemp("audit")
    for name in ("scripts/audit", "requirements-audit.txt", "pyproject.toml"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / "static" / "vendor").mkdir(parents=True)
    (folder / "static" / "vendor" / "VERSIONS.json").write_text(json.dumps(VENDORED))
    (folder / "requirements.txt").write_text(REQUIREMENT.format("safe"))
    (folder / "requirements-dev.txt").write_text(REQUIREMENT.format("safe"))
    first_run = audit(folder, f"http://127.0.0.1:{free_port()}/")
    if "the package index can't be reached" in first_run.stderr:
        pytest.skip("no package index")
    return folder


def audit(folder: Path, osv_url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OSV_URL": osv_url, "NO_PROXY": "127.0.0.1"} | environment
    return subprocess.run(
        [sys.executable, "scripts/audit"], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


def sbom_names(folder: Path) -> list[str]:
    sbom = json.loads((folder / "sbom.cdx.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    return [component["name"] for component in sbom["components"]]


def test_requirements_without_known_vulnerabilities_pass(tree: Path, osv_url: str) -> None:
    result = audit(tree, osv_url)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "sbom.cdx.json: 2 components",
        "No known vulnerabilities in requirements-dev.txt and static/vendor/.",
    ]


def test_vendored_scripts_that_production_serves_are_listed(tree: Path, osv_url: str) -> None:
    audit(tree, osv_url)

    component = json.loads((tree / "sbom.cdx.json").read_text())["components"][-1]
    assert (component["purl"], component["licenses"]) == (
        "pkg:npm/%40scope/safe@1.0",
        [{"license": {"id": "MIT"}}],
    )


def test_a_vendored_script_is_looked_up(tree: Path, osv_url: str) -> None:
    versions = tree / "static" / "vendor" / "VERSIONS.json"
    versions.write_text(json.dumps([VENDORED[0] | {"name": "unsafe"}]))

    result = audit(tree, osv_url)

    versions.write_text(json.dumps(VENDORED))
    assert result.returncode == 1
    assert "unsafe 1.0: PYSEC-2026-1, fixed in 1.1" in result.stdout


def test_a_known_vulnerability_is_listed_with_the_fixed_version(tree: Path, osv_url: str) -> None:
    (tree / "requirements-dev.txt").write_text(REQUIREMENT.format("safe") + REQUIREMENT.format("unsafe"))

    result = audit(tree, osv_url)

    assert result.returncode == 1
    assert "unsafe 1.0: PYSEC-2026-1, fixed in 1.1" in result.stdout
    assert result.stderr.startswith("onecode: known vulnerabilities (1);")
    assert len(result.stderr.splitlines()) == 1


def test_an_unreachable_database_is_one_line_and_the_sbom_is_written(tree: Path) -> None:
    (tree / "sbom.cdx.json").unlink()

    result = audit(tree, f"http://127.0.0.1:{free_port()}/")

    assert result.returncode == 3
    assert result.stderr == (
        "onecode: the database of known vulnerabilities (OSV) can't be reached, so nothing was looked up in it\n"
    )
    assert sbom_names(tree) == ["safe", "@scope/safe"]


def test_an_unreachable_package_index_is_one_line(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tree, other, ignore=shutil.ignore_patterns(".venv-audit"))

    result = audit(
        other, "", PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=f"http://127.0.0.1:{free_port()}/", PIP_RETRIES="0"
    )

    assert result.returncode == 2
    assert result.stderr == (
        "onecode: pip-audit and cyclonedx-bom can't be installed: the package index can't be reached; "
        "check the network and run the same command again\n"
    )
