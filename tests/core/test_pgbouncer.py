"""PgBouncer: sessions as they are, transactions with a direct connection string for what needs a session."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from local import preflight
from tests.support.chaos import durable_database, scenarios
from tests.support.chaos.running_campaign import start_campaign
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.imports import ImportFileFixture
from tests.support.live_server import environment, wait_until, worker
from tests.support.pgbouncer import pgbouncer
from tests.support.ports import free_port
from webapp import create_app
from webapp.campaigns.sending.progress import SendProgress
from webapp.core import pooler_check, task_queue
from webapp.core.extensions import db, huey
from webapp.core.setting_parsers import SettingsError
from webapp.core.settings import ROOT, Settings
from webapp.customers.imports import claims
from webapp.monitoring import readiness
from webapp.monitoring.readiness import ReadinessCheck
from webapp.redemptions import group_commit
from webapp.redemptions.rules import RedemptionRequest

# Tests with another server that operators run.
pytestmark = pytest.mark.slow

# Parameters of sessions that Onecode changes, with their values in a session that it has not changed.
CHANGED_PARAMETERS = ("lock_timeout", "idle_in_transaction_session_timeout", "synchronous_commit", "work_mem", "jit")


@pytest.fixture(scope="module")
def session_url(database_url: str) -> Iterator[str]:
    with pgbouncer(database_url, "session") as url:
        yield url


@pytest.fixture(scope="module")
def transaction_url(database_url: str) -> Iterator[str]:
    with pgbouncer(database_url, "transaction", default_pool_size="3") as url:
        yield url


@pytest.fixture(params=["session", "transaction"])
def pooled_settings(request: pytest.FixtureRequest, test_settings: Settings) -> Settings:
    """Settings with a pooler of sessions, or with one of transactions and a direct connection string."""
    url = request.getfixturevalue(f"{request.param}_url")
    direct_url = test_settings.libpq_url if request.param == "transaction" else None
    return replace(test_settings, database_url=url, database_direct_url=direct_url)


@pytest.fixture
def pooled_app(app: Flask, pooled_settings: Settings) -> Iterator[Flask]:
    """Another app with empty tables, connected through PgBouncer; its context is pushed."""
    other = create_app(pooled_settings)
    with other.app_context():
        yield other
        db.session.remove()
        group_commit.get_group_committer().close()
        db.engine.dispose()
    task_queue.init_app(app)


def read_parameters(url: str) -> list[str]:
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        return [connection.execute(f"show {name}").fetchone()[0] for name in CHANGED_PARAMETERS]  # type: ignore[index]


@pytest.mark.usefixtures("patient_readiness")
def test_redeeming_works_and_changes_no_session(
    make_offer: MakeOffer, make_customer: MakeCustomer, pooled_app: Flask, pooled_settings: Settings
) -> None:
    make_offer()
    before = read_parameters(pooled_settings.libpq_url)
    # More than the five executions after which psycopg prepares a statement.
    for number in range(8):
        email = make_customer(f"c{number}@example.com").email
        db.session.rollback()
        group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email=email))
        assert read_parameters(pooled_settings.libpq_url) == before

    assert db.session.scalar(text("select count(*) from redemption")) == 8
    assert db.session.scalar(text("show timezone")) == "UTC"
    assert pooled_app.test_client().get("/readyz").status_code == 200


def test_a_frequent_statement_runs_in_any_session(pooled_app: Flask) -> None:
    frequent = text("select 'frequent'")
    with db.engine.connect() as connection, db.engine.connect() as other:
        # More than the five executions after which psycopg prepares a statement.
        for _ in range(8):
            connection.execute(frequent)
            connection.commit()
        # The pooler gives this transaction the session that was used last.
        other.execute(text("select 1"))
        assert connection.execute(frequent).scalar_one() == "frequent"


def test_an_import_keeps_its_session(
    pooled_app: Flask, pooled_settings: Settings, import_file: ImportFileFixture
) -> None:
    before = read_parameters(pooled_settings.libpq_url)

    assert import_file("email,name\na@example.com,Ada\nb@example.com,Bo\n").status == "done"

    connection = claims.open_connection()
    connection.execute("create temp table staged (line bigint)")
    connection.commit()
    with psycopg.connect(pooled_settings.libpq_url) as other:
        other.execute("select 1")
        connection.execute("insert into staged values (1)")
    connection.close()
    assert read_parameters(pooled_settings.libpq_url) == before


def test_send_progress_keeps_its_session(pooled_app: Flask, pooled_settings: Settings) -> None:
    before = read_parameters(pooled_settings.libpq_url)
    with SendProgress() as progress:
        progress._open_connection()
        assert progress._connection is not None
        assert progress._connection.exec_driver_sql("show synchronous_commit").scalar_one() == "off"
        # A redemption may get this session next: its commit must be durable.
        assert read_parameters(pooled_settings.libpq_url) == before
    assert read_parameters(pooled_settings.libpq_url) == before


def test_a_worker_is_woken(pooled_app: Flask) -> None:
    received: list[bytes | None] = []
    before = _listening_sessions()
    thread = threading.Thread(target=lambda: received.append(huey.storage.dequeue()))
    thread.start()
    wait_until(lambda: _listening_sessions() > before)

    huey.storage.enqueue(b"task")

    thread.join()
    assert received == [b"task"]


def _listening_sessions() -> int:
    db.session.rollback()
    # The end of the transaction after LISTEN, on the same connection, which found no task.
    query = "select count(*) from pg_stat_activity where query = 'ROLLBACK' and state = 'idle'"
    return int(db.session.scalar(text(f"{query} and datname = current_database()")) or 0)


def test_the_pooling_is_accepted(pooled_app: Flask, pooled_settings: Settings) -> None:
    pooler_check.check_pooling(pooled_settings)

    assert preflight.check_database(pooled_settings) == []


@pytest.mark.parametrize("pool_size", ["1", "3"])
def test_a_pooler_of_transactions_is_detected(database_url: str, test_settings: Settings, pool_size: str) -> None:
    with pgbouncer(database_url, "transaction", default_pool_size=pool_size) as url:
        for settings, message in (
            (replace(test_settings, database_url=url), "DATABASE_URL leads .* set DATABASE_DIRECT_URL"),
            (replace(test_settings, database_direct_url=url), "DATABASE_DIRECT_URL leads"),
        ):
            with pytest.raises(SettingsError, match=message):
                pooler_check.check_pooling(settings)
            with pytest.raises(preflight.SetupError, match=message):
                preflight.check_database(settings)


def test_a_pool_of_one_session_is_not_taken_for_one_of_transactions(
    database_url: str, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooler_check, "ANSWER_SECONDS", 0.2)
    with pgbouncer(database_url, "session", default_pool_size="1") as url:
        pooler_check.check_pooling(replace(test_settings, database_url=url))


@pytest.mark.usefixtures("patient_readiness")
def test_a_changed_pooling_is_reported(
    session_url: str, transaction_url: str, test_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load balancers must stop to send requests: the queue would lose tasks."""
    check = ReadinessCheck(replace(test_settings, database_url=session_url))
    assert find_problem(check) is None
    # As after a change of PgBouncer's configuration.
    monkeypatch.setattr(readiness, "POOLING_CHECK_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(check, "_settings", replace(test_settings, database_url=transaction_url))
    wait_until(lambda: find_problem(check) == readiness.WRONG_POOLING)
    assert find_problem(check) == readiness.WRONG_POOLING
    monkeypatch.undo()

    wait_until(lambda: find_problem(check) is None)
    check._close()


def find_problem(check: ReadinessCheck) -> str | None:
    error = check.run()
    return readiness.describe_problem(error) if error else None


@pytest.mark.usefixtures("patient_readiness")
@pytest.mark.parametrize("is_direct", [False, True])
def test_both_connection_strings_must_work(test_settings: Settings, is_direct: bool) -> None:
    urls = [test_settings.libpq_url, f"postgresql://nobody@127.0.0.1:{free_port()}/x"]
    url, direct_url = urls if is_direct else reversed(urls)
    check = ReadinessCheck(replace(test_settings, database_url=url, database_direct_url=direct_url))

    assert find_problem(check) == readiness.UNAVAILABLE
    check._close()


@pytest.mark.parametrize("module", ["webapp.serve", "webapp.worker"])
def test_a_pooler_of_transactions_alone_is_refused_at_the_start(
    transaction_url: str, test_settings: Settings, module: str
) -> None:
    env = environment(replace(test_settings, database_url=transaction_url), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-m", module], cwd="/", env=env, capture_output=True, text=True, check=False, timeout=240
    )

    assert done.returncode == 1
    assert done.stderr.startswith("onecode: DATABASE_URL leads to a connection pooler that pools transactions; ")
    assert done.stderr.count("\n") == 1


def test_both_connection_strings_must_lead_to_one_database(test_settings: Settings) -> None:
    elsewhere = psycopg.conninfo.make_conninfo(test_settings.libpq_url, dbname="postgres")
    settings = replace(test_settings, database_url=test_settings.libpq_url, database_direct_url=elsewhere)

    with pytest.raises(preflight.SetupError, match="lead to different databases"):
        preflight.check_database(settings)


@pytest.mark.slow
def test_a_worker_imports_through_a_pooler_of_transactions(
    app: Flask,
    transaction_url: str,
    test_settings: Settings,
    receive_file: Callable[..., int],
) -> None:
    with worker(replace(test_settings, database_url=transaction_url, database_direct_url=test_settings.libpq_url)):
        import_id = receive_file("email,name\na@example.com,Ada\n")
        task_queue.enqueue("customers.process_import", import_id)
        wait_until(lambda: _import_status(import_id) == "done", seconds=240)


@pytest.mark.slow
def test_workers_send_a_campaign_through_a_pooler_of_transactions() -> None:
    with (
        durable_database.start_durable_database(300) as database,
        pgbouncer(database.settings.libpq_url, "transaction", default_pool_size="3") as url,
    ):
        database.settings = replace(
            database.settings, database_url=url, database_direct_url=database.settings.libpq_url
        )
        with start_campaign(database, "resend", seed=10) as campaign:
            campaign.wait_done()
            run = scenarios.audit_run("pooler of transactions", campaign)

    assert run.broken == []
    # The relay rejects a few recipients.
    assert (run.audit.status, run.audit.total, run.audit.missing) == ("done", 300, [])


def _import_status(import_id: int) -> str:
    db.session.rollback()
    return str(db.session.scalar(text("select status from customer_import where id = :id"), {"id": import_id}))
