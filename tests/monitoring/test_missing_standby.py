"""While a synchronous standby is missing, commits wait, and `/metrics` says so."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_metrics

from tests.support.chaos import durable_database
from tests.support.chaos.durable_database import DurableDatabase
from tests.support.live_server import wait_until
from webapp.accounts import api_key_actions

pytestmark = pytest.mark.slow


def count_standby_waits(database: DurableDatabase, key: str) -> float:
    """Scrape; return the sessions that wait for a standby, or nan if the database did not respond in time."""
    response = database.app.test_client().get("/metrics", headers={"Authorization": f"Bearer {key}"})
    assert response.status_code == 200
    families = {family.name: family for family in parse_metrics(response.text)}
    if not families["onecode_database_up"].samples[0].value:
        return math.nan
    waits = families["onecode_database_waiting_sessions"].samples
    return next(sample.value for sample in waits if sample.labels == {"cause": "standby"})


def test_a_scrape_counts_commits_that_wait_for_a_standby_and_does_not_wait() -> None:
    with durable_database.start_durable_database(1) as database, ThreadPoolExecutor(1) as pool:
        with database.context():
            # The first use of a key is written to the database.
            key = api_key_actions.create_api_key("prometheus", ["read"], by="tests")
        with psycopg.connect(database.server.conninfo("onecode")) as writer:
            writer.execute("update customer set name = 'Ada'")
            with database.missing_standby():
                writer.pgconn.send_query(b"commit")
                scrape = pool.submit(wait_until, lambda: count_standby_waits(database, key) == 1)
                scrape.result(60)
            while writer.pgconn.get_result() is not None:
                pass

        wait_until(lambda: count_standby_waits(database, key) == 0)


def test_the_database_is_not_ready_while_commits_wait_for_a_standby() -> None:
    with durable_database.start_durable_database(1) as database:
        client = database.app.test_client()

        def ready_status() -> int:
            return client.get("/readyz").status_code

        wait_until(lambda: ready_status() == 200)
        with database.missing_standby():
            wait_until(lambda: ready_status() == 503)
            assert "does not respond to writes in time" in client.get("/readyz").text
        wait_until(lambda: ready_status() == 200)
