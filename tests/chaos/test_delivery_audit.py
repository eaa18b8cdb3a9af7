"""The audit of the crash runs sees what it is there to see: every promise is broken here once, by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import psycopg
import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.campaigns import create_customers
from tests.support.chaos.delivery_audit import Audit, audit
from webapp.campaigns import stats_queries
from webapp.campaigns.models import encode_gaps
from webapp.core.extensions import db
from webapp.offers.models import Offer

Log = list[dict[str, str]]
STATES = {2: "failed", 3: "uncertain", 4: "sent_later", 5: "skipped"}


def mail(n: int, made: str = "1") -> dict[str, str]:
    return {"event": "mail", "to": f"c{n}@example.com", "campaign": "1", "id": f"<{n}.{made}@shop>", "connection": "1"}


def refusal(n: int) -> dict[str, str]:
    return {"event": "fault", "to": f"c{n}@example.com", "kind": "550"}


@pytest.fixture
def log(app: Flask, make_offer: Callable[..., Offer]) -> Log:
    """A campaign that is done: two got it, and one each of what else there is. What its relay has written."""
    ids = create_customers(6)
    db.session.execute(
        text(
            "insert into campaign (id, offer_id, subject, text, status, total, prepared_at, launched_at, finished_at) "
            "overriding system value values (1, :offer, 's', 't', 'done', 6, now(), now(), now())"
        ),
        {"offer": make_offer().id},
    )
    db.session.execute(
        text(
            "insert into batch (campaign_id, seq, first_id, last_id, gaps, status, window_start, window_end, sent) "
            "values (1, 0, :first, :last, :gaps, 'done', 6, 6, 2)"
        ),
        {"first": ids[0], "last": ids[-1], "gaps": encode_gaps(ids)},
    )
    db.session.execute(
        text("insert into mail_issue (campaign_id, customer_id, state) values (1, :id, :state)"),
        [{"id": ids[n], "state": state} for n, state in STATES.items()],
    )
    db.session.commit()
    return [mail(0), mail(1), refusal(2), mail(3), mail(4)]


def look(log: Log) -> Audit:
    db.session.rollback()
    with psycopg.connect(db.engine.url.render_as_string(False).replace("+psycopg", "")) as connection:
        return audit(connection, log, 1, stats_queries.get_campaign_stats(1))


def test_what_is_as_it_should_be_is_left_alone(log: Log) -> None:
    found = look(log)
    assert (found.missing, found.duplicated, found.contradictions) == ([], [], [])
    assert (found.received, found.states) == (4, Counter(sent=2, failed=1, uncertain=1, sent_later=1, skipped=1))


@pytest.mark.parametrize("n", [0, 4])
def test_somebody_who_is_called_sent_and_got_nothing_is_missing(log: Log, n: int) -> None:
    log.remove(mail(n))
    assert look(log).missing == [f"c{n}@example.com"]


def test_a_second_copy_is_counted(log: Log) -> None:
    found = look([*log, mail(1), mail(1)])
    assert (found.duplicated, found.contradictions) == (["c1@example.com"] * 2, [])


def test_a_second_copy_has_the_same_message_id(log: Log) -> None:
    assert look([*log, mail(1, made="2")]).contradictions == ["c1@example.com: emails with different Message-IDs"]


@pytest.mark.parametrize("n", [2, 5])
def test_nobody_is_called_failed_or_left_out_who_got_it(log: Log, n: int) -> None:
    assert look([*log, mail(n)]).contradictions == [f"c{n}@example.com: {STATES[n]}, yet received"]


def test_nobody_is_called_failed_who_was_not_refused(log: Log) -> None:
    log.remove(refusal(2))
    assert look(log).contradictions == ["c2@example.com: failed, but the relay did not reject it"]


def test_nobody_else_gets_a_mail(log: Log) -> None:
    assert look([*log, mail(9)]).contradictions == ["c9@example.com: an email to an address that is not a recipient"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("update campaign set total = 7", "7 recipients, but 6 are frozen"),
        ("update batch set sent = 3", "4 sent shown, 3 found"),
        (
            "update campaign set status = 'cancelled', cancelled_at = now(); "
            "update mail_issue set state = 'deferred' where state = 'skipped'",
            "c5@example.com: deferred, though it was cancelled",
        ),
    ],
)
def test_what_the_rows_say_of_themselves_is_true(log: Log, damage: str, words: str) -> None:
    for statement in damage.split("; "):
        db.session.execute(text(statement))
    db.session.commit()
    assert words in look(log).contradictions


@pytest.mark.parametrize(
    "damage",
    [
        "update mail_issue set state = 'deferred' where state = 'skipped'",
        "delete from mail_issue where state = 'skipped'",
    ],
)
def test_when_all_is_done_nobody_is_without_an_outcome(log: Log, damage: str) -> None:
    db.session.execute(text(damage))
    db.session.commit()
    assert look(log).missing == ["c5@example.com"]


def test_of_an_open_window_what_the_cursor_has_passed_was_sent_and_one_is_open(log: Log) -> None:
    for statement in (
        "delete from mail_issue",
        "update campaign set status = 'paused'",
        "update batch set status = 'sending', window_start = 1, window_end = 5, sent = 1, epoch = 1",
        "insert into batch_cursor (batch_id, epoch, cursor) select id, 1, 3 from batch",
    ):
        db.session.execute(text(statement))
    db.session.commit()
    found = look([mail(n) for n in range(4)])
    assert found.states == {"sent": 3, "open": 1, "not yet": 2}
    assert (found.missing, found.contradictions) == ([], [])
    assert look([mail(n) for n in range(5)]).contradictions == ["c4@example.com: not yet, yet received"]
