"""Group commit: errors affect only the requests that cause them."""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import dropwhile
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError

import webapp
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.frozen_server import frozen_process
from tests.support.rejected_writes import rejected_writes
from webapp.core import database_connections, database_engines, database_timeouts, signing_keys
from webapp.core.coalescing import CoalescingTimeout
from webapp.core.database_connections import CommitRefused, DeadlineConnection, StatementTimeout
from webapp.core.errors import DomainError
from webapp.core.extensions import db, huey
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import errors, group_commit, public_ids
from webapp.redemptions.errors import RedemptionUnavailable
from webapp.redemptions.group_commit import GroupCommitter
from webapp.redemptions.models import Redemption
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest
from webapp.views.public import redemptions as public_views

OUR_CODE = str(Path(webapp.__file__).parent)


@pytest.fixture
def committer(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupCommitter]:
    """A new group committer with a short lock timeout."""
    monkeypatch.setattr(group_commit, "LOCK_TIMEOUT_SECONDS", 1)
    app.extensions.pop("redeeming", None)
    yield group_commit.get_group_committer()
    app.extensions.pop("redeeming", None)


def make_requests(code: str, emails: Sequence[str]) -> list[RedemptionRequest]:
    return [RedemptionRequest(channel="form", code=code, email=email) for email in emails]


def make_emails(make_customer: MakeCustomer, n: int) -> list[str]:
    return [make_customer(f"c{number}@example.com").email for number in range(n)]


def count_rows() -> int:
    return len(db.session.execute(select(Redemption.customer_id)).all())


def outcomes(results: Sequence[RedemptionRecord | DomainError]) -> list[str]:
    return [result.key if isinstance(result, DomainError) else "redeemed" for result in results]


def test_the_connection_has_timeouts_for_waiting_and_idling(committer: GroupCommitter) -> None:
    for _ in range(2):
        shown = [
            committer._get_connection().exec_driver_sql(f"show {name}").scalar_one()
            for name in ("lock_timeout", "idle_in_transaction_session_timeout")
        ]
        assert shown == ["1s", "20s"]
        committer._get_connection().rollback()


def test_a_group_needs_no_other_connection(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    """Not even for the key of public ids: at the limit of the server there is none."""
    make_offer(frozen_at=text("now()"))
    requests = make_requests("SUMMER25", make_emails(make_customer, 2))
    committer._get_connection()
    signing_keys.clear_key_cache()
    opened: list[object] = []

    def note_checkout(*connection: object) -> None:
        opened.append(connection)

    event.listen(db.engine, "checkout", note_checkout)
    try:
        assert outcomes(committer._redeem_group(requests)) == ["redeemed"] * 2
    finally:
        event.remove(db.engine, "checkout", note_checkout)
    assert opened == []


def test_the_timeouts_end_with_the_transaction(committer: GroupCommitter) -> None:
    """Behind a connection pooler, the next transaction of this session may be that of another process."""
    connection = committer._get_connection()
    with connection.begin():
        pass

    driver: Any = connection.connection.dbapi_connection
    assert [driver.execute(f"show {name}").fetchone()[0] for name in ("lock_timeout", "timezone")] == ["0", "UTC"]


def test_a_transaction_that_could_not_start_is_ended(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(frozen_at=text("now()"))
    requests = make_requests("SUMMER25", make_emails(make_customer, 2))
    connection = committer._get_connection()
    database_engines.set_transaction_start(connection, "begin; set local lock_timeout = 'soon'")
    assert outcomes(committer._redeem_group(requests)) == ["error"] * 2

    database_engines.set_transaction_start(connection, group_commit._build_transaction_start())
    assert outcomes(committer._redeem_group(requests)) == ["redeemed"] * 2
    assert committer._get_connection() is connection


def test_only_a_detached_connection_starts_its_transactions_otherwise(app: Flask) -> None:
    with db.engine.connect() as connection, pytest.raises(ValueError, match="belongs to the pool"):
        database_engines.set_transaction_start(connection, "begin")


def test_a_locked_offer_fails_only_its_own_requests(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    locked, free = make_offer("HELD", max_redemptions=5, frozen_at=text("now()")), make_offer("FREE", max_redemptions=5)
    emails = make_emails(make_customer, 3)
    with db.engine.connect() as other:
        other.execute(text("select from offer_counter where offer_id = :id for update"), {"id": locked.id})
        results = committer._redeem_group(make_requests("HELD", emails) + make_requests("FREE", emails))
    assert outcomes(results) == ["unavailable"] * 3 + ["redeemed"] * 3
    assert count_rows() == 3
    assert outcomes(committer._redeem_group(make_requests("HELD", emails))) == ["redeemed"] * 3
    db.session.rollback()
    assert {free.redeemed, locked.redeemed} == {3}


def test_a_locked_offer_without_redemptions_fails_only_its_own_requests(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    locked = make_offer("HELD")
    make_offer("FREE")
    emails = make_emails(make_customer, 3)
    with db.engine.connect() as other:
        other.execute(text("select from offer where id = :id for update"), {"id": locked.id})
        results = committer._redeem_group(make_requests("HELD", emails) + make_requests("FREE", emails))
    assert outcomes(results) == ["unavailable"] * 3 + ["redeemed"] * 3
    assert [result.message for result in results[:3] if isinstance(result, RedemptionUnavailable)] == [
        errors.OFFER_BUSY
    ] * 3


def test_a_row_that_is_not_committed_may_be_that_of_an_earlier_attempt(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    """So nothing is denied: the row may be confirmed, for example when a missing standby is back."""
    offer, customer = make_offer(frozen_at=text("now()")), make_customer()
    values = {"offer_id": offer.id, "customer_id": customer.id}
    requests = make_requests("SUMMER25", [customer.email])
    with db.engine.connect() as other:
        other.execute(
            text("insert into redemption (offer_id, customer_id, channel) values (:offer_id, :customer_id, 'form')"),
            values,
        )
        (result,) = committer._redeem_group(requests)

    assert isinstance(result, RedemptionUnavailable)
    assert result.message == errors.OUTCOME_UNKNOWN


def test_while_commits_are_refused_no_group_waits_for_locks(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be those of a commit that waits for a missing standby."""
    offer = make_offer(max_redemptions=5, frozen_at=text("now()"))
    requests = make_requests("SUMMER25", make_emails(make_customer, 1))
    guard = database_connections._CommitGuard()
    monkeypatch.setattr(database_connections, "_commit_guard", guard)
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_INTERVAL_SECONDS", 0)
    monkeypatch.setattr(database_connections, "check_writes", raise_disk_full)
    with db.engine.connect() as other:
        other.execute(text("select from offer_counter where offer_id = :id for update"), {"id": offer.id})
        guard.refuse_commits()
        (result,) = committer._redeem_group(requests)

    assert isinstance(result, RedemptionUnavailable)
    assert result.message == errors.DISK_FULL
    monkeypatch.undo()
    assert outcomes(committer._redeem_group(requests)) == ["redeemed"]


def test_committed_rounds_stay_redeemed_when_a_later_round_is_lost(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_offer(frozen_at=text("now()"))
    first, second = make_emails(make_customer, 2)
    requests = make_requests("SUMMER25", [first, second, first])
    rounds: list[int] = []
    redeem_in_transaction = redemption_actions._redeem_in_transaction

    def lose_the_second_round(
        connection: Any, waiting: dict[int, RedemptionRequest], secret: bytes
    ) -> dict[int, RedemptionRecord | DomainError]:
        rounds.append(len(waiting))
        if len(rounds) == 2:
            end_connections()
        return redeem_in_transaction(connection, waiting, secret)

    monkeypatch.setattr(redemption_actions, "_redeem_in_transaction", lose_the_second_round)
    assert outcomes(committer._redeem_group(requests)) == ["redeemed", "redeemed", "unavailable"]
    assert rounds == [2 + 1, 1]
    assert count_rows() == 2


def test_an_invalid_request_fails_alone(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer()
    emails = make_emails(make_customer, 4)
    requests = make_requests("SUMMER25", emails)
    # A NUL character: the interfaces refuse it, and so does the database.
    requests[2] = RedemptionRequest(channel="api", code="SUMMER25", email=emails[2], metadata={"\x00": 1})
    results = committer._redeem_group(requests)
    assert outcomes(results) == ["redeemed", "redeemed", "error", "redeemed"]
    assert isinstance(results[2], DomainError)
    assert results[2].status == 500
    assert count_rows() == 3


@pytest.mark.parametrize(
    ("errcode", "outcome", "message"),
    [
        ("disk_full", "unavailable", errors.DISK_FULL),
        ("query_canceled", "unavailable", errors.DATABASE_UNAVAILABLE),
        ("54000", "error", "Something went wrong on our side, and the error was logged. Please try again."),
    ],
)
def test_temporary_database_errors_make_requests_unavailable(
    committer: GroupCommitter,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    caplog: pytest.LogCaptureFixture,
    errcode: str,
    outcome: str,
    message: str,
) -> None:
    make_offer(frozen_at=text("now()"))
    emails = make_emails(make_customer, 2)
    with rejected_writes("redemption", errcode):
        results = committer._redeem_group(make_requests("SUMMER25", emails))
    assert outcomes(results) == [outcome] * 2
    assert [str(result) for result in results] == [message] * 2
    assert [record.levelname for record in caplog.records].count("ERROR") == 2
    assert outcomes(committer._redeem_group(make_requests("SUMMER25", emails))) == ["redeemed"] * 2


def test_a_read_only_server_is_left_for_a_new_connection(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(frozen_at=text("now()"))
    requests = make_requests("SUMMER25", make_emails(make_customer, 2))
    before = committer._get_connection().connection.dbapi_connection
    with rejected_writes("redemption", "read_only_sql_transaction"):
        results = committer._redeem_group(requests)
    assert outcomes(results) == ["unavailable"] * 2
    assert [str(result) for result in results] == [errors.DATABASE_UNAVAILABLE] * 2
    assert outcomes(committer._redeem_group(requests)) == ["redeemed"] * 2
    assert committer._get_connection().connection.dbapi_connection is not before


def test_a_lost_connection_is_replaced_before_the_next_group(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer()
    first, second = make_emails(make_customer, 2)
    committer._redeem_group(make_requests("SUMMER25", [first]))
    end_connections()
    assert outcomes(committer._redeem_group(make_requests("SUMMER25", [second]))) == ["redeemed"]


def test_a_group_lost_before_its_commit_is_retried(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(frozen_at=text("now()"))
    with interrupted("insert into redemption"):
        assert outcomes(committer._redeem_group(make_requests("SUMMER25", make_emails(make_customer, 2)))) == [
            "redeemed",
            "redeemed",
        ]
    assert count_rows() == 2


def test_a_group_on_a_frozen_server_is_retried_over_a_new_connection(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_offer(frozen_at=text("now()"))
    emails = make_emails(make_customer, 2)
    # The statements on the new connection are real ones.
    monkeypatch.setattr(group_commit, "STATEMENT_SECONDS", 60)
    pid = server_process(committer)
    driver: Any = committer._get_connection().connection.dbapi_connection
    driver.statement_seconds = 1

    with frozen_process(pid):
        assert outcomes(committer._redeem_group(make_requests("SUMMER25", emails))) == ["redeemed"] * 2


def test_a_request_is_retried_over_a_new_connection_as_well(
    committer: GroupCommitter,
    api: FlaskClient,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request waits only once for a frozen server, except for the connection that the groups of a process share."""
    make_offer(frozen_at=text("now()"))
    body = {"code": "SUMMER25", "customer": {"email": make_customer().email}}
    monkeypatch.setattr(group_commit, "STATEMENT_SECONDS", 60)
    pid = server_process(committer)
    driver: Any = committer._get_connection().connection.dbapi_connection
    driver.statement_seconds = 1

    with frozen_process(pid):
        assert api.post("/api/v1/redemptions", json=body).status_code == 201


def test_a_request_that_cannot_connect_leads_no_group(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would open no connection, so that the redemptions of other requests would fail, too."""
    make_offer()
    request = RedemptionRequest(channel="form", code="SUMMER25", email=make_customer().email)
    submitted: list[object] = []
    monkeypatch.setattr(GroupCommitter, "submit", lambda _self, item: submitted.append(item))
    url = app.config["SETTINGS"].libpq_url
    token = database_timeouts._timed_out_urls.set(frozenset([url]))
    try:
        with pytest.raises(RedemptionUnavailable):
            group_commit.redeem(request)
    finally:
        database_timeouts._timed_out_urls.reset(token)

    assert submitted == []


def test_a_commit_on_a_frozen_server_has_an_unknown_outcome(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_offer(frozen_at=text("now()"))
    emails = make_emails(make_customer, 2)
    new = make_customer("new@example.com")
    # Cached, so that the first commit is that of the redemptions.
    public_ids.load_secret(committer._get_connection())
    pid = server_process(committer)
    commit = DeadlineConnection.commit

    def freeze_and_commit(connection: DeadlineConnection) -> None:
        connection.statement_seconds = 1
        with frozen_process(pid):
            commit(connection)

    monkeypatch.setattr(group_commit, "STATEMENT_SECONDS", 60)
    with monkeypatch.context() as frozen:
        frozen.setattr(DeadlineConnection, "commit", freeze_and_commit)
        results = committer._redeem_group(make_requests("SUMMER25", emails))

    assert [result.message for result in results if isinstance(result, RedemptionUnavailable)] == [
        errors.OUTCOME_UNKNOWN
    ] * 2

    # No other commit is sent before the database accepts writes again.
    with monkeypatch.context() as full_disk:
        full_disk.setattr(database_connections, "check_writes", raise_disk_full)
        for _attempt in range(2):
            signing_keys.clear_key_cache()
            results = committer._redeem_group(make_requests("SUMMER25", [new.email]))
            assert [result.message for result in results if isinstance(result, RedemptionUnavailable)] == [
                errors.DISK_FULL
            ]
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_INTERVAL_SECONDS", 0)
    assert outcomes(committer._redeem_group(make_requests("SUMMER25", [new.email]))) == ["redeemed"]


def raise_disk_full(connection: DeadlineConnection) -> None:
    raise psycopg.errors.DiskFull("could not write to file: No space left on device")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (psycopg.errors.DiskFull("could not write to file: No space left on device"), errors.DISK_FULL),
        (StatementTimeout("no response from the database within 2 s"), errors.COMMITS_REFUSED),
    ],
)
def test_while_commits_are_refused_all_requests_get_one_answer(
    committer: GroupCommitter,
    make_offer: MakeOffer,
    make_customer: MakeCustomer,
    monkeypatch: pytest.MonkeyPatch,
    failure: psycopg.Error,
    message: str,
) -> None:
    """It redeemed nothing: whether the request has checked the database itself, or another one has or does."""
    make_offer(frozen_at=text("now()"))
    requests = make_requests("SUMMER25", make_emails(make_customer, 1))
    checks: list[str] = []

    def fail(connection: DeadlineConnection) -> None:
        checks.append(connection.url)
        raise failure

    def redeem() -> str:
        (result,) = committer._redeem_group(requests)
        assert isinstance(result, RedemptionUnavailable)
        return result.message

    guard = database_connections._CommitGuard()
    monkeypatch.setattr(database_connections, "_commit_guard", guard)
    monkeypatch.setattr(database_connections, "COMMIT_CHECK_INTERVAL_SECONDS", math.inf)
    with monkeypatch.context() as failing:
        failing.setattr(database_connections, "check_writes", fail)
        guard.refuse_commits()
        messages = [redeem(), redeem()]
        with guard._lock:
            messages.append(redeem())

    assert messages == [message] * 3
    assert len(checks) == 1
    guard._failed_at = -math.inf
    assert outcomes(committer._redeem_group(requests)) == ["redeemed"]


def server_process(committer: GroupCommitter) -> int:
    """Return the process of the server at the other end of the committer's connection."""
    pid: int = committer._get_connection().exec_driver_sql("select pg_backend_pid()").scalar_one()
    committer._get_connection().rollback()
    return pid


def test_the_connection_works_after_a_commit_that_the_database_has_rejected(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_offer(frozen_at=text("now()"))
    (email,) = make_emails(make_customer, 1)

    def reject(connection: DeadlineConnection) -> None:
        connection.rollback()
        raise psycopg.errors.DiskFull("could not extend file: No space left on device")

    with monkeypatch.context() as full_disk:
        full_disk.setattr(DeadlineConnection, "commit", reject)
        assert outcomes(committer._redeem_group(make_requests("SUMMER25", [email]))) == ["unavailable"]
    assert outcomes(committer._redeem_group(make_requests("SUMMER25", [email]))) == ["redeemed"]


def test_a_refused_commit_before_the_redemption_makes_it_unavailable(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second commit is that of a change of the offer before its first redemption.
    make_offer()
    requests = make_requests("SUMMER25", make_emails(make_customer, 1))
    public_ids.load_secret(committer._get_connection())
    commit = DeadlineConnection.commit
    commits: list[DeadlineConnection] = []

    def refuse_the_second(connection: DeadlineConnection) -> None:
        commits.append(connection)
        if len(commits) == 2:
            connection.rollback()
            raise CommitRefused("the database does not complete commits")
        commit(connection)

    with monkeypatch.context() as refusing:
        refusing.setattr(DeadlineConnection, "commit", refuse_the_second)
        assert outcomes(committer._redeem_group(requests)) == ["unavailable"]
    assert outcomes(committer._redeem_group(requests)) == ["redeemed"]


def test_a_group_lost_during_its_commit_has_an_unknown_outcome(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_offer(frozen_at=text("now()"))
    emails = make_emails(make_customer, 2)
    commit = db.engine.dialect.do_commit

    def commit_and_lose_the_connection(connection: Any) -> None:
        commit(connection)
        if is_active:
            end_connections()
            connection.execute("select 1")

    is_active = [True]
    monkeypatch.setattr(db.engine.dialect, "do_commit", commit_and_lose_the_connection)
    committer._connection = None
    is_active.clear()
    # Cached, so that the first commit is that of the redemptions.
    public_ids.load_secret(committer._get_connection())
    is_active.append(True)
    results = committer._redeem_group(make_requests("SUMMER25", emails))
    monkeypatch.undo()
    assert outcomes(results) == ["unavailable"] * 2
    assert [result.message for result in results if isinstance(result, RedemptionUnavailable)] == [
        errors.OUTCOME_UNKNOWN
    ] * 2
    # It was committed, as a second request shows.
    assert outcomes(committer._redeem_group(make_requests("SUMMER25", emails))) == ["already_redeemed"] * 2


def test_without_a_server_all_requests_are_unavailable(
    committer: GroupCommitter, make_offer: MakeOffer, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_offer()
    requests = make_requests("SUMMER25", make_emails(make_customer, 3))

    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("connect", {}, Exception("connection refused"))

    monkeypatch.setattr(type(db.engine), "connect", refuse)
    results = committer._redeem_group(requests)
    assert [result.message for result in results if isinstance(result, RedemptionUnavailable)] == [
        errors.DATABASE_UNAVAILABLE
    ] * 3
    monkeypatch.undo()
    assert outcomes(committer._redeem_group(requests)) == ["redeemed"] * 3


def test_a_timeout_after_the_start_has_an_unknown_outcome(
    committer: GroupCommitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = {}
    for has_started in (False, True):

        def time_out(_: RedemptionRequest, has_started: bool = has_started) -> RedemptionRecord:
            raise CoalescingTimeout(has_started)

        monkeypatch.setattr(committer, "submit", time_out)
        with pytest.raises(RedemptionUnavailable) as error:
            group_commit.redeem(RedemptionRequest(channel="form"))
        messages[has_started] = error.value.message
    assert messages == {False: errors.DATABASE_UNAVAILABLE, True: errors.OUTCOME_UNKNOWN}


def test_the_call_stack_from_view_to_insert_is_short(
    committer: GroupCommitter, client: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer()
    make_customer("ada@example.com")
    stacks: list[list[str]] = []

    def record(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.strip().startswith("insert into redemption"):
            ours = [call for call in traceback.extract_stack() if call.filename.startswith(OUR_CODE)]
            stacks.append([call.name for call in dropwhile(lambda call: call.filename != public_views.__file__, ours)])

    event.listen(db.engine, "before_cursor_execute", record)
    try:
        assert client.post("/redeem", data={"code": "SUMMER25", "email": "ada@example.com"}).status_code == 200
    finally:
        event.remove(db.engine, "before_cursor_execute", record)
    (stack,) = stacks
    assert stack[0] == "redeem"
    assert len(stack) <= 8, stack


def test_more_threads_than_connections_redeem(
    committer: GroupCommitter, session_app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(max_redemptions=50)
    emails = make_emails(make_customer, 80)
    start = threading.Barrier(80)

    def redeem(email: str) -> str:
        with session_app.app_context():
            # Like a view that has run a query before.
            start.wait()
            db.session.execute(text("select 1"))
            try:
                group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email=email))
            except DomainError as error:
                return error.key
            return "redeemed"

    with ThreadPoolExecutor(80) as pool:
        results = list(pool.map(redeem, emails))
    assert sorted(results) == ["offer_exhausted"] * 30 + ["redeemed"] * 50
    assert count_rows() == 50


def end_connections() -> None:
    """Terminate every other connection to this database, like a server restart."""
    # The test's own connection returns to the pool, which checks it before its next use.
    db.session.rollback()
    with db.engine.connect() as connection:
        connection.execute(
            text(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
        )
    # Otherwise the next use of the task queue in this process, perhaps in another test, would fail.
    huey.storage.close()


class interrupted:  # noqa: N801
    """Terminates the connection of the first statement that starts with a text."""

    def __init__(self, start: str) -> None:
        self.start = start
        self.remaining = 1

    def __enter__(self) -> None:
        event.listen(db.engine, "before_cursor_execute", self._interrupt)

    def __exit__(self, *_: object) -> None:
        event.remove(db.engine, "before_cursor_execute", self._interrupt)

    def _interrupt(self, _: Any, __: Any, statement: str, *___: Any) -> None:
        if self.remaining and statement.strip().startswith(self.start):
            self.remaining = 0
            end_connections()
