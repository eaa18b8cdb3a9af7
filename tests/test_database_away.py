"""The database goes away under the running program: a clear answer at once, and recovery without a hand."""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import flask_migrate
import pytest

from tests import live
from webapp import create_app, embedded, settings
from webapp.accounts import actions as accounts
from webapp.extensions import db


@dataclass
class Fragile:
    """The program on a PostgreSQL of its own that the test can stop."""

    url: str
    server: embedded.Server
    key: str

    def post(self, path: str, **fields: str) -> tuple[int, str]:
        return self._send(path, urllib.parse.urlencode(fields).encode(), {})

    def call(self, path: str, body: object) -> tuple[int, str]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        return self._send(path, json.dumps(body).encode(), headers)

    def _send(self, path: str, data: bytes, headers: dict[str, str]) -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def fragile(test_settings: settings.Settings, tmp_path: Path) -> Iterator[Fragile]:
    folder = Path(tempfile.mkdtemp(prefix="onecode-away-"))
    folder.chmod(0o755)
    server = embedded.server(folder, folder / "s")
    server.start()
    server.create_database("onecode")
    mine = settings.load(
        {
            "DATABASE_URL": f"postgresql://onecode@/onecode?host={folder / 's'}",
            "SECRET_KEY": "only-for-tests",
            "INSTANCE_PATH": str(tmp_path),
            "MAIL_SERVER": "127.0.0.1",
            "MAIL_PORT": "1",
        }
    )
    app = create_app(mine)
    with app.app_context():
        flask_migrate.upgrade()
        key = accounts.create_api_key("tests", ["read", "redeem", "manage"], by="tests")
        db.engine.dispose()
    # This process's queue goes on with the database of the other tests.
    create_app(test_settings)
    with live.web_server(mine) as web:
        yield Fragile(web.url, server, key)
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_customer_is_told_and_what_was_typed_is_offered_again(fragile: Fragile) -> None:
    fragile.server.stop()

    status, page = fragile.post("/redeem", code="SUMMER25", email="ada@example.com")

    assert status == 503
    assert "Please try again in a moment" in page
    assert 'name="code" value="SUMMER25"' in page
    assert 'name="email" value="ada@example.com"' in page


def test_a_shop_gets_a_problem_and_a_time_to_wait(fragile: Fragile) -> None:
    fragile.server.stop()

    status, body = fragile.call("/api/v1/validations", {"code": "SUMMER25", "customer": {"email": "ada@example.com"}})

    assert status == 503
    assert json.loads(body)["code"] == "unavailable"


def test_everything_works_again_when_the_database_is_back(fragile: Fragile) -> None:
    body = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}
    before = fragile.call("/api/v1/validations", body)
    fragile.server.stop()
    assert fragile.call("/api/v1/validations", body)[0] == 503

    fragile.server.start()

    after = fragile.call("/api/v1/validations", body)
    assert (after[0], json.loads(after[1])["reason"]) == (200, "not_found")
    assert after[0] == before[0]
