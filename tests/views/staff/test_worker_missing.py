"""Pages with work that waits for a worker say so when none is running."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support.campaigns import create_customers
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import CustomerImport
from webapp.monitoring import actions as monitoring_actions
from webapp.monitoring import readiness
from webapp.monitoring.actions import WorkerIdentity
from webapp.offers.models import Offer

pytestmark = pytest.mark.usefixtures("patient_readiness")

HINT = "No worker is running, so no emails are sent and no files are imported."
NOTHING_SAVED = "The database saves nothing at the moment, so no emails are sent and no files are imported."


@pytest.fixture
def missing_worker(app: Flask) -> WorkerIdentity:
    """A worker that has sent no heartbeat for more than a minute."""
    worker = WorkerIdentity("tests")
    monitoring_actions.record_heartbeat(worker)
    db.session.execute(text("update worker set seen_at = now() - interval '61 seconds'"))
    db.session.commit()
    return worker


@pytest.fixture
def waiting_writes(test_settings: Settings, patient_readiness: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the check whether the database accepts writes get no response, while reads work."""
    with psycopg.connect(test_settings.libpq_url) as other:
        other.execute("lock table huey_task in exclusive mode")
        with monkeypatch.context() as impatient:
            impatient.setattr(readiness, "CHECK_SECONDS", 0.5)
            yield


@pytest.fixture
def preparing(missing_worker: WorkerIdentity, make_offer: Callable[..., Offer]) -> Campaign:
    create_customers(3)
    return launch_actions.launch_announcement(make_offer().id, "tests").campaign


def add_import(status: str) -> CustomerImport:
    row = CustomerImport(filename="customers.csv", media_type="text/csv", status=status, size=5)
    db.session.add(row)
    db.session.commit()
    return row


def test_the_home_page_says_so_until_a_worker_is_back(staff: FlaskClient, missing_worker: WorkerIdentity) -> None:
    assert HINT in staff.get("/").text
    assert HINT in staff.get("/now").text

    monitoring_actions.record_heartbeat(missing_worker)

    assert HINT not in staff.get("/").text


def test_a_campaign_says_so_while_it_is_prepared_or_sent(staff: FlaskClient, preparing: Campaign) -> None:
    assert HINT in staff.get(f"/campaigns/{preparing.id}").text

    preparation.prepare_campaign(preparing.id)
    assert HINT in staff.get(f"/campaigns/{preparing.id}/progress").text

    db.session.execute(text("update campaign set status = 'done'"))
    db.session.commit()
    assert HINT not in staff.get(f"/campaigns/{preparing.id}").text


def test_a_campaign_without_progress_names_one_cause(staff: FlaskClient, preparing: Campaign) -> None:
    preparation.prepare_campaign(preparing.id)
    db.session.execute(text("update campaign set launched_at = launched_at - interval '1 hour'"))
    db.session.commit()

    page = staff.get(f"/campaigns/{preparing.id}").text

    assert HINT in page
    assert "Nothing has been sent for" not in page


@pytest.mark.parametrize(("status", "is_said"), [("receiving", False), ("queued", True), ("running", True)])
def test_an_import_says_so_once_its_file_is_complete(
    staff: FlaskClient, missing_worker: WorkerIdentity, status: str, is_said: bool
) -> None:
    page = staff.get(f"/customers/imports/{add_import(status).id}").text

    assert (HINT in page) == is_said
    assert "The import starts in a moment." not in page


@pytest.mark.usefixtures("missing_worker", "waiting_writes")
def test_while_nothing_is_saved_no_worker_is_called_missing(staff: FlaskClient) -> None:
    """Workers cannot send heartbeats then."""
    home, waiting_import = staff.get("/").text, staff.get(f"/customers/imports/{add_import('queued').id}").text

    assert NOTHING_SAVED in home
    assert NOTHING_SAVED in waiting_import
    assert "The import starts when the database saves changes again." in waiting_import
    assert "worker is running" not in home + waiting_import


def test_a_queued_import_starts_in_a_moment_with_a_worker(staff: FlaskClient, missing_worker: WorkerIdentity) -> None:
    monitoring_actions.record_heartbeat(missing_worker)

    page = staff.get(f"/customers/imports/{add_import('queued').id}").text

    assert HINT not in page
    assert "The import starts in a moment." in page
