"""Fixtures: a server for each run, a database for each process, empty tables.

`TEST_DATABASE_URL` names the server to use; its user must be allowed to create databases. Without it, an embedded
server is started in a temporary folder and stopped at the end. `CITUS_URL` names the coordinator of a Citus cluster, on
which the tables are distributed (docs/operations/scaling.md).
"""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from local import postgresql as embedded_postgresql
from tests.support import citus, program, smtp_relay, watchdog
from tests.support.chromium import find_chromium
from tests.support.databases import drop_template, migrated_database
from tests.support.sessions import start_session
from webapp.accounts import api_key_actions
from webapp.accounts.models import StaffUser
from webapp.core import settings as app_settings
from webapp.core.email_addresses import normalise_email
from webapp.core.extensions import db
from webapp.customers.models import ERASED_EMAIL_PLACEHOLDER, Customer, Suppression
from webapp.monitoring import readiness
from webapp.offers.models import OFFER_IDS, Offer, OfferCode, OfferCounter, normalise_code

# Folders whose tests are all slow: `make run-test` skips them and `make run-test-all` runs them. Slow modules and tests
# in other folders have the marker themselves.
SLOW_FOLDERS = ("benchmarks", "local/demo", "operations", "setup")
# Folders with modules that run for a minute or longer. They start first, so that at the end of a run no process is left
# alone with one of them: a module is the unit that pytest-xdist distributes.
LONG_FOLDERS = ("setup", "operations", "browser", "chaos", "customers/imports", "tasks")

# Fixtures that more than one folder uses; those of a single folder are in its conftest.py.
pytest_plugins = [
    "tests.support.accounts",
    "tests.support.campaigns",
    "tests.support.imports",
    "tests.support.local_copy",
]

# Fast but not durable: the data of a test server need not survive a crash. Crash tests start a server of their own.
# Without autovacuum, rows stay in the order in which they were written and plans do not change during a run.
FAST_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "64MB",
}


def pytest_configure(config: pytest.Config) -> None:
    """Start one server for all test processes."""
    # Until pytest_collection_finish: the many objects of a collection live until the end.
    gc.disable()
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    run = Path(tempfile.mkdtemp(prefix="onecode-test-"))
    run.chmod(0o755)
    config.stash[_WATCHDOG] = watchdog.start(run)
    try:
        _start_server(config)
        with psycopg.connect(os.environ["TEST_DATABASE_URL"], connect_timeout=10) as connection:
            postgresql = connection.info.parameter_status("server_version")
    except (OSError, psycopg.Error, embedded_postgresql.EmbeddedError) as error:
        pytest.exit(f"onecode: no PostgreSQL for the tests: {' '.join(str(error).split())}", returncode=1)
    browser = find_chromium() or "no Chromium, so browser tests are skipped: apt install chromium-headless-shell"
    print(f"Testing with PostgreSQL {postgresql}; {browser}.", flush=True)


def _start_server(config: pytest.Config) -> None:
    if citus.is_used():
        os.environ["TEST_DATABASE_URL"] = os.environ[citus.CITUS_VARIABLE]
    if os.environ.get("TEST_DATABASE_URL"):
        return
    folder = Path(os.environ[watchdog.RUN_VARIABLE])
    server = embedded_postgresql.locate_server(folder, folder / "s", FAST_SETTINGS)
    watchdog.add_folder(server.home)
    config.stash[_SERVER] = server
    server.start()
    os.environ["TEST_DATABASE_URL"] = f"postgresql://onecode@/postgres?host={folder / 's'}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _find_folder(item, SLOW_FOLDERS) < len(SLOW_FOLDERS):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: _find_folder(item, LONG_FOLDERS))


def pytest_collection_finish() -> None:
    """Let the garbage collector skip modules and collected tests; scanning them took a sixth of a run."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _find_folder(item: pytest.Item, folders: tuple[str, ...]) -> int:
    """Return the index of the folder that contains a test, and the number of folders if none does."""
    return next((n for n, folder in enumerate(folders) if item.nodeid.startswith(f"tests/{folder}/")), len(folders))


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.stash.get(_WATCHDOG, None):
        drop_template()
    if server := config.stash.get(_SERVER, None):
        server.stop()
    if process := config.stash.get(_WATCHDOG, None):
        # It ends remaining processes and removes the folders.
        process.communicate()


_SERVER = pytest.StashKey[embedded_postgresql.EmbeddedServer]()
_WATCHDOG = pytest.StashKey[subprocess.Popen[bytes]]()


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """The address of the migrated database of this test process."""
    with migrated_database() as url:
        yield url


@pytest.fixture(scope="session")
def test_settings(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> app_settings.Settings:
    """Settings for this test process, with a relay port that nothing listens on."""
    return program.settings_for_tests(database_url, tmp_path_factory.mktemp("instance"))


@pytest.fixture(scope="session")
def session_app(test_settings: app_settings.Settings) -> Flask:
    return program.create_test_app(test_settings)


@pytest.fixture
def patient_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the readiness check of this process wait for a busy machine."""
    monkeypatch.setattr(readiness, "CHECK_SECONDS", 60.0)


@pytest.fixture
def app(session_app: Flask) -> Iterator[Flask]:
    """The app with empty tables and its context pushed."""
    with program.on_empty_tables(session_app):
        yield session_app


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client that has not signed in and needs no CSRF tokens."""
    app.config["WTF_CSRF_ENABLED"] = False
    return app.test_client()


@pytest.fixture
def csrf_client(app: Flask) -> Iterator[FlaskClient]:
    """A client for which CSRF tokens are checked, as in production."""
    app.config["WTF_CSRF_ENABLED"] = True
    yield app.test_client()
    app.config["WTF_CSRF_ENABLED"] = False


@pytest.fixture
def make_staff_user(app: Flask) -> Callable[..., StaffUser]:
    """Makes staff users; they cannot sign in by password."""

    def make(role: str = "admin", email: str | None = None, **values: Any) -> StaffUser:
        user = StaffUser(
            email=email or f"{role}@example.com", name=role.title(), role=role, password_hash="!", **values
        )
        db.session.add(user)
        db.session.commit()
        return user

    return make


@pytest.fixture
def sign_in(client: FlaskClient, make_staff_user: Callable[..., StaffUser]) -> Callable[..., FlaskClient]:
    """Signs in a new user with a role, without the form, and returns the client."""

    def sign_in_as(role: str = "manager") -> FlaskClient:
        start_session(client, make_staff_user(role))
        return client

    return sign_in_as


@pytest.fixture
def staff(sign_in: Callable[..., FlaskClient]) -> FlaskClient:
    """A client in which a manager has signed in."""
    return sign_in("manager")


@pytest.fixture
def api(app: Flask) -> FlaskClient:
    """An API client with a key that has every scope."""
    client = app.test_client()
    key = api_key_actions.create_api_key("tests", ["read", "redeem", "manage"], by="tests")
    client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key}"
    return client


@pytest.fixture
def make_customer(app: Flask) -> Callable[..., Customer]:
    """Makes customers: `make_customer("ada@example.com", suppressed="bounced")`."""

    def make(
        email: str = "ada@example.com", erased_at: datetime | None = None, suppressed: str = "", **values: Any
    ) -> Customer:
        row = Customer(email=normalise_email(email), email_as_given=email, **{"name": "Ada Lovelace", **values})
        db.session.add(row)
        db.session.flush()
        if suppressed:
            db.session.add(Suppression(email=row.email, reason=suppressed, source="tests"))
        if erased_at is not None:
            row.email, row.email_as_given, row.name, row.erased_at = (
                f"erased {row.id}",
                ERASED_EMAIL_PLACEHOLDER,
                "",
                erased_at,
            )
        db.session.commit()
        return row

    return make


@pytest.fixture
def make_offer(app: Flask) -> Callable[..., Offer]:
    """Makes live offers of 25 %: `make_offer("SUMMER25", max_redemptions=10)`."""

    def make(code: str = "SUMMER25", **values: Any) -> Offer:
        now = datetime.now(UTC)
        defaults: dict[str, Any] = {
            "name": "Summer",
            "discount_type": "percent",
            "starts_at": now - timedelta(days=1),
            "ends_at": now + timedelta(days=30),
        }
        if values.get("discount_type", "percent") == "percent":
            defaults["percent"] = Decimal(25)
        defaults["id"] = db.session.execute(select(OFFER_IDS.next_value())).scalar_one()
        redeemed = values.pop("redeemed", 0)
        row = Offer(code=normalise_code(code), code_as_written=code, **{**defaults, **values})
        row.counter = OfferCounter(max_redemptions=row.max_redemptions, redeemed=redeemed)
        db.session.add(OfferCode(code=row.code, offer_id=row.id, code_as_written=code))
        db.session.flush()
        db.session.add(row)
        db.session.commit()
        return row

    return make


@pytest.fixture
def with_settings(app: Flask) -> Iterator[Callable[..., app_settings.Settings]]:
    """Changes settings during one test: `with_settings(mail_port=2525)`."""
    before = app.config["SETTINGS"]

    def change(**values: Any) -> app_settings.Settings:
        app.config["SETTINGS"] = replace(app.config["SETTINGS"], **values)
        state = app.extensions["mail"]
        state.server, state.port = app.config["SETTINGS"].mail_server, app.config["SETTINGS"].mail_port
        changed: app_settings.Settings = app.config["SETTINGS"]
        return changed

    yield change
    app.config["SETTINGS"] = before
    state = app.extensions["mail"]
    state.server, state.port = before.mail_server, before.mail_port


@pytest.fixture
def relay(with_settings: Callable[..., app_settings.Settings]) -> Iterator[smtp_relay.Relay]:
    """A running mail relay that the app is configured to use."""
    with smtp_relay.running() as server:
        with_settings(mail_port=server.port)
        yield server
