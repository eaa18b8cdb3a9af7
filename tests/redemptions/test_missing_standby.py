"""While a synchronous standby is missing, no answer about a redemption is false, and the counts miss none."""

from __future__ import annotations

import math
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import text

from tests.support.chaos import durable_database
from tests.support.chaos.durable_database import DurableDatabase
from tests.support.live_server import wait_until
from webapp.core import database_connections, database_health
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions import errors, group_commit, hourly_counts
from webapp.redemptions.group_commit import GroupCommitter
from webapp.redemptions.rules import RedemptionRequest

pytestmark = pytest.mark.slow

COUNT_STANDBY_WAITS = "select count(*) from pg_stat_activity where wait_event = 'SyncRep' and backend_xid is not null"


@pytest.fixture(scope="module")
def database() -> Iterator[DurableDatabase]:
    """A database with two offers that have been redeemed, one of them with a cap."""
    with durable_database.start_durable_database(9) as database:
        with database.context():
            client = database.app.test_client()
            headers = {"Authorization": f"Bearer {database.key}"}
            for code, cap in (("FREE", {}), ("CAPPED", {"max_redemptions": 100})):
                offer = {"name": code, "code": code, "discount": {"type": "percent", "percent": "25"}, **cap}
                assert client.post("/api/v1/offers", json=offer, headers=headers).status_code == 201
                redemption = {"code": code, "customer": {"email": "c9@example.com"}}
                assert client.post("/api/v1/redemptions", json=redemption, headers=headers).status_code == 201
        yield database


@pytest.fixture(autouse=True)
def commit_guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a commit that times out affect no other test."""
    forget_refused_commits(monkeypatch)
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_INTERVAL_SECONDS", math.inf)
    yield
    database_health.mark_recovered()


def forget_refused_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Continue as another process, which does not know that a commit has timed out."""
    monkeypatch.setattr(database_connections, "_commit_guard", database_connections._CommitGuard())


def redeem(committer: GroupCommitter, code: str, email: str) -> str:
    """Return the message about a redemption, or an empty text when it is saved."""
    (result,) = committer._redeem_group([RedemptionRequest(channel="form", code=code, email=f"{email}@example.com")])
    return result.message if isinstance(result, DomainError) else ""


@pytest.mark.parametrize(("code", "busy"), [("FREE", ""), ("CAPPED", errors.OFFER_BUSY)])
def test_a_redemption_that_is_not_confirmed_is_never_denied(
    database: DurableDatabase, monkeypatch: pytest.MonkeyPatch, code: str, busy: str
) -> None:
    monkeypatch.setattr(group_commit, "LOCK_TIMEOUT_SECONDS", 1)
    with database.context():
        committer, other_process = GroupCommitter(), GroupCommitter()
        with database.missing_standby():
            assert redeem(committer, code, "c1") == errors.OUTCOME_UNKNOWN
            # Neither waits for the locks of the commit: a lock timeout would have another message.
            assert [redeem(committer, code, email) for email in ("c1", "c2")] == [errors.COMMITS_REFUSED] * 2

            forget_refused_commits(monkeypatch)
            # The row of the same customer is locked, and the counter for all.
            assert redeem(other_process, code, "c1") == errors.OUTCOME_UNKNOWN
            if busy:
                assert redeem(other_process, code, "c2") == busy
        wait_until(lambda: database.redeemed_emails(code) == {"c1@example.com", "c9@example.com"})
        assert redeem(committer, code, "c2") == ""
        committer.close()
        other_process.close()


def test_an_hour_is_counted_after_the_commits_that_wait_for_a_standby(database: DurableDatabase) -> None:
    with database.connect() as other, psycopg.connect(database.server.conninfo("onecode")) as writer:
        # The clock of the database is two hours ahead.
        other.execute("create schema ahead")
        other.execute(
            "create function ahead.now() returns timestamptz language sql "
            "as $$ select pg_catalog.now() + interval '2 hours' $$"
        )
        writer.execute("update offer_counter set redeemed = redeemed")
        with database.context(), database.missing_standby():
            writer.pgconn.send_query(b"commit")
            wait_until(lambda: other.execute(COUNT_STANDBY_WAITS).fetchone() == (1,))
            db.session.execute(text("set local synchronous_commit = local"))
            db.session.execute(text("set local search_path = ahead, pg_catalog, public"))
            hourly_counts.update_hourly_counts()

            counted_until, hour = db.session.execute(
                text("select counted_until, date_trunc('hour', now(), 'UTC') from redemption_tally")
            ).one()
            assert counted_until <= hour
        while writer.pgconn.get_result() is not None:
            pass
