"""Many redeem at once in one process: who suffers when something goes wrong, and what everybody hears."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, select, text
from sqlalchemy.exc import OperationalError

import webapp
from webapp.core.coalescing import CoalescingTimeout
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import errors, group_commit
from webapp.redemptions.errors import RedemptionUnavailable
from webapp.redemptions.group_commit import GroupCommitter
from webapp.redemptions.models import Redemption
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest
from webapp.views.public import redemptions as public_views

OUR_CODE = str(Path(webapp.__file__).parent)
MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]


@pytest.fixture
def desk(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[GroupCommitter]:
    """A fresh one, which does not wait as long for a lock as in earnest."""
    monkeypatch.setattr(group_commit, "LOCK_TIMEOUT_SECONDS", 1)
    app.extensions.pop("redeeming", None)
    yield group_commit.get_group_committer()
    app.extensions.pop("redeeming", None)


def asks(code: str, emails: Sequence[str]) -> list[RedemptionRequest]:
    return [RedemptionRequest(channel="form", code=code, email=email) for email in emails]


def people(customer: MakeCustomer, n: int) -> list[str]:
    return [customer(f"c{number}@example.com").email for number in range(n)]


def rows() -> int:
    return len(db.session.execute(select(Redemption.customer_id)).all())


def said(answers: Sequence[RedemptionRecord | DomainError]) -> list[str]:
    return [answer.key if isinstance(answer, DomainError) else "redeemed" for answer in answers]


def test_the_connection_waits_for_locks_and_holds_them_only_so_long(desk: GroupCommitter) -> None:
    for _ in range(2):
        shown = [
            desk._get_connection().exec_driver_sql(f"show {name}").scalar_one()
            for name in ("lock_timeout", "idle_in_transaction_session_timeout")
        ]
        assert shown == ["1s", "20s"]
        desk._get_connection().rollback()


def test_an_offer_that_somebody_holds_makes_only_its_own_asks_fail(
    desk: GroupCommitter, offer: MakeOffer, customer: MakeCustomer
) -> None:
    held, free = offer("HELD", max_redemptions=5, frozen_at=text("now()")), offer("FREE", max_redemptions=5)
    emails = people(customer, 3)
    with db.engine.connect() as other:
        other.execute(text("select from offer where id = :id for update"), {"id": held.id})
        answers = desk._redeem_group(asks("HELD", emails) + asks("FREE", emails))
    assert said(answers) == ["unavailable"] * 3 + ["redeemed"] * 3
    assert rows() == 3
    assert said(desk._redeem_group(asks("HELD", emails))) == ["redeemed"] * 3
    db.session.rollback()
    assert {free.redeemed, held.redeemed} == {3}


def test_an_offer_that_is_held_before_its_first_redemption_holds_up_nobody_else(
    desk: GroupCommitter, offer: MakeOffer, customer: MakeCustomer
) -> None:
    held = offer("HELD")
    offer("FREE")
    emails = people(customer, 3)
    with db.engine.connect() as other:
        other.execute(text("select from offer where id = :id for update"), {"id": held.id})
        answers = desk._redeem_group(asks("HELD", emails) + asks("FREE", emails))
    assert said(answers) == ["unavailable"] * 3 + ["redeemed"] * 3
    assert [answer.message for answer in answers[:3] if isinstance(answer, RedemptionUnavailable)] == [
        errors.OFFER_BUSY
    ] * 3


def test_what_an_earlier_round_has_saved_stays_true_when_a_later_one_is_lost(
    desk: GroupCommitter, offer: MakeOffer, customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(frozen_at=text("now()"))
    first, second = people(customer, 2)
    wanted = asks("SUMMER25", [first, second, first])
    rounds: list[int] = []
    one_round = redemption_actions._redeem_in_transaction

    def lost_the_second_time(
        connection: Any, waiting: dict[int, RedemptionRequest]
    ) -> dict[int, RedemptionRecord | DomainError]:
        rounds.append(len(waiting))
        if len(rounds) == 2:
            end_connections()
        return one_round(connection, waiting)

    monkeypatch.setattr(redemption_actions, "_redeem_in_transaction", lost_the_second_time)
    assert said(desk._redeem_group(wanted)) == ["redeemed", "redeemed", "unavailable"]
    assert rounds == [2 + 1, 1]
    assert rows() == 2


def test_who_can_not_be_written_harms_no_neighbour(
    desk: GroupCommitter, offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer()
    emails = people(customer, 4)
    wanted = asks("SUMMER25", emails)
    # Half a character: no door lets it in, and the database does not take it.
    wanted[2] = RedemptionRequest(channel="api", code="SUMMER25", email=emails[2], metadata={"\x00": 1})
    assert said(desk._redeem_group(wanted)) == ["redeemed", "redeemed", "error", "redeemed"]
    assert rows() == 3


@pytest.mark.parametrize(
    ("why", "answer"), [("disk_full", "unavailable"), ("query_canceled", "unavailable"), ("54000", "error")]
)
def test_who_can_not_be_written_for_no_fault_of_the_ask_hears_that_it_passes(
    desk: GroupCommitter,
    offer: MakeOffer,
    customer: MakeCustomer,
    caplog: pytest.LogCaptureFixture,
    why: str,
    answer: str,
) -> None:
    offer(frozen_at=text("now()"))
    emails = people(customer, 2)
    full = f"begin raise exception 'could not extend file' using errcode = '{why}'; end"
    db.session.execute(text(f"create function full_disk() returns trigger language plpgsql as $$ {full} $$"))
    db.session.execute(text("create trigger full_disk before insert on redemption execute function full_disk()"))
    db.session.commit()
    try:
        assert said(desk._redeem_group(asks("SUMMER25", emails))) == [answer] * 2
    finally:
        db.session.execute(text("drop function full_disk cascade"))
        db.session.commit()
    assert [record.levelname for record in caplog.records].count("ERROR") == 2
    assert said(desk._redeem_group(asks("SUMMER25", emails))) == ["redeemed"] * 2


def test_a_connection_that_was_lost_since_is_made_anew_without_anybody_noticing(
    desk: GroupCommitter, offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer()
    first, second = people(customer, 2)
    desk._redeem_group(asks("SUMMER25", [first]))
    end_connections()
    assert said(desk._redeem_group(asks("SUMMER25", [second]))) == ["redeemed"]


def test_what_was_lost_before_the_commit_is_done_once_more(
    desk: GroupCommitter, offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer(frozen_at=text("now()"))
    with interrupted("insert into redemption"):
        assert said(desk._redeem_group(asks("SUMMER25", people(customer, 2)))) == ["redeemed", "redeemed"]
    assert rows() == 2


def test_what_was_lost_during_the_commit_may_be_saved_and_is_said_to_be(
    desk: GroupCommitter, offer: MakeOffer, customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(frozen_at=text("now()"))
    emails = people(customer, 2)
    commit = db.engine.dialect.do_commit

    def commit_and_lose_the_answer(connection: Any) -> None:
        commit(connection)
        if done:
            end_connections()
            connection.execute("select 1")

    done = [True]
    monkeypatch.setattr(db.engine.dialect, "do_commit", commit_and_lose_the_answer)
    desk._connection = None
    done.clear()
    desk._get_connection()
    done.append(True)
    answers = desk._redeem_group(asks("SUMMER25", emails))
    monkeypatch.undo()
    assert said(answers) == ["unavailable"] * 2
    assert [answer.message for answer in answers if isinstance(answer, RedemptionUnavailable)] == [
        errors.OUTCOME_UNKNOWN
    ] * 2
    # It was saved, and asking again tells so.
    assert said(desk._redeem_group(asks("SUMMER25", emails))) == ["already_redeemed"] * 2


def test_a_server_that_can_not_be_reached_is_told_to_all(
    desk: GroupCommitter, offer: MakeOffer, customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    wanted = asks("SUMMER25", people(customer, 3))

    def refuse(*_: object, **__: object) -> None:
        raise OperationalError("connect", {}, Exception("connection refused"))

    monkeypatch.setattr(type(db.engine), "connect", refuse)
    answers = desk._redeem_group(wanted)
    assert [answer.message for answer in answers if isinstance(answer, RedemptionUnavailable)] == [
        errors.DATABASE_UNAVAILABLE
    ] * 3
    monkeypatch.undo()
    assert said(desk._redeem_group(wanted)) == ["redeemed"] * 3


def test_who_was_taken_up_and_hears_nothing_is_not_told_that_nothing_was_saved(
    desk: GroupCommitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for begun in (False, True):

        def give_up(_: RedemptionRequest, begun: bool = begun) -> RedemptionRecord:
            raise CoalescingTimeout(begun)

        monkeypatch.setattr(desk, "submit", give_up)
        with pytest.raises(RedemptionUnavailable) as unavailable:
            group_commit.redeem(RedemptionRequest(channel="form"))
        found[begun] = unavailable.value.message
    assert found == {False: errors.DATABASE_UNAVAILABLE, True: errors.OUTCOME_UNKNOWN}


def test_few_calls_lie_between_the_view_and_the_insert(
    desk: GroupCommitter, client: FlaskClient, offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer()
    customer("ada@example.com")
    stacks: list[list[str]] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.strip().startswith("insert into redemption"):
            ours = [call for call in traceback.extract_stack() if call.filename.startswith(OUR_CODE)]
            stacks.append([call.name for call in dropwhile(lambda call: call.filename != public_views.__file__, ours)])

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        assert client.post("/redeem", data={"code": "SUMMER25", "email": "ada@example.com"}).status_code == 200
    finally:
        event.remove(db.engine, "before_cursor_execute", note)
    (stack,) = stacks
    assert stack[0] == "redeem"
    assert len(stack) <= 8, stack


def test_many_more_threads_than_connections_redeem(
    desk: GroupCommitter, session_app: Flask, offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer(max_redemptions=50)
    emails = people(customer, 80)
    start = threading.Barrier(80)

    def each(email: str) -> str:
        with session_app.app_context():
            # As a view has that has looked at something before.
            start.wait()
            db.session.execute(text("select 1"))
            try:
                group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email=email))
            except DomainError as error:
                return error.key
            return "redeemed"

    with ThreadPoolExecutor(80) as crowd:
        answers = list(crowd.map(each, emails))
    assert sorted(answers) == ["offer_exhausted"] * 30 + ["redeemed"] * 50
    assert rows() == 50


def end_connections() -> None:
    """End every other connection to this database, as a server does that is started anew."""
    # The test's own goes back to the pool, which looks whether it still lives before it gives it out.
    db.session.rollback()
    with db.engine.connect() as connection:
        connection.execute(
            text(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
        )


class interrupted:  # noqa: N801
    """Inside, the first statement that begins so finds its connection ended."""

    def __init__(self, start: str) -> None:
        self.start = start
        self.left = 1

    def __enter__(self) -> None:
        event.listen(db.engine, "before_cursor_execute", self._note)

    def __exit__(self, *_: object) -> None:
        event.remove(db.engine, "before_cursor_execute", self._note)

    def _note(self, _: Any, __: Any, statement: str, *___: Any) -> None:
        if self.left and statement.strip().startswith(self.start):
            self.left = 0
            end_connections()
