"""The delivery audit of the crash scenarios detects each violated guarantee."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import psycopg
import pytest
from flask import Flask, current_app
from sqlalchemy import text

from tests.support.campaigns import create_customers
from tests.support.chaos.delivery_audit import Audit, audit
from webapp.campaigns import stats_queries
from webapp.campaigns.models import encode_gaps
from webapp.core.extensions import db
from webapp.offers.models import Offer

LogLines = list[dict[str, str]]
STATES = {2: "failed", 3: "uncertain", 4: "sent_later", 5: "skipped"}


def email_entry(n: int, version: str = "1") -> dict[str, str]:
    return {
        "event": "mail",
        "to": f"c{n}@example.com",
        "campaign": "1",
        "id": f"<{n}.{version}@shop>",
        "connection": "1",
    }


def rejection_entry(n: int) -> dict[str, str]:
    return {"event": "fault", "to": f"c{n}@example.com", "kind": "550"}


@pytest.fixture
def log(app: Flask, make_offer: Callable[..., Offer]) -> LogLines:
    """The relay log of a finished campaign: two emails sent, one in each other state."""
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
    return [email_entry(0), email_entry(1), rejection_entry(2), email_entry(3), email_entry(4)]


def run_audit(log: LogLines) -> Audit:
    db.session.rollback()
    with psycopg.connect(current_app.config["SETTINGS"].libpq_url) as connection:
        return audit(connection, log, 1, stats_queries.get_campaign_stats(1))


def test_a_correct_campaign_has_no_findings(log: LogLines) -> None:
    result = run_audit(log)
    assert (result.missing, result.duplicated, result.contradictions) == ([], [], [])
    assert (result.received, result.states) == (4, Counter(sent=2, failed=1, uncertain=1, sent_later=1, skipped=1))


@pytest.mark.parametrize("n", [0, 4])
def test_a_sent_state_without_a_received_email_is_missing(log: LogLines, n: int) -> None:
    log.remove(email_entry(n))
    assert run_audit(log).missing == [f"c{n}@example.com"]


def test_a_second_copy_is_counted(log: LogLines) -> None:
    result = run_audit([*log, email_entry(1), email_entry(1)])
    assert (result.duplicated, result.contradictions) == (["c1@example.com"] * 2, [])


def test_a_second_copy_with_another_message_id_is_a_contradiction(log: LogLines) -> None:
    assert run_audit([*log, email_entry(1, version="2")]).contradictions == [
        "c1@example.com: emails with different Message-IDs"
    ]


@pytest.mark.parametrize("n", [2, 5])
def test_a_failed_or_skipped_recipient_who_received_it_is_a_contradiction(log: LogLines, n: int) -> None:
    assert run_audit([*log, email_entry(n)]).contradictions == [f"c{n}@example.com: {STATES[n]}, yet received"]


def test_a_failed_state_without_a_rejection_is_a_contradiction(log: LogLines) -> None:
    log.remove(rejection_entry(2))
    assert run_audit(log).contradictions == ["c2@example.com: failed, but the relay did not reject it"]


def test_an_email_to_an_unknown_recipient_is_a_contradiction(log: LogLines) -> None:
    assert run_audit([*log, email_entry(9)]).contradictions == [
        "c9@example.com: an email to an address that is not a recipient"
    ]


@pytest.mark.parametrize(
    ("damage", "finding"),
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
def test_inconsistent_rows_are_contradictions(log: LogLines, damage: str, finding: str) -> None:
    for statement in damage.split("; "):
        db.session.execute(text(statement))
    db.session.commit()
    assert finding in run_audit(log).contradictions


@pytest.mark.parametrize(
    "damage",
    [
        "update mail_issue set state = 'deferred' where state = 'skipped'",
        "delete from mail_issue where state = 'skipped'",
    ],
)
def test_a_recipient_of_a_finished_campaign_without_a_final_state_is_missing(log: LogLines, damage: str) -> None:
    db.session.execute(text(damage))
    db.session.commit()
    assert run_audit(log).missing == ["c5@example.com"]


def test_an_open_window_allows_one_email_beyond_the_cursor(log: LogLines) -> None:
    for statement in (
        "delete from mail_issue",
        "update campaign set status = 'paused'",
        "update batch set status = 'sending', window_start = 1, window_end = 5, sent = 1, epoch = 1",
        "insert into batch_cursor (batch_id, epoch, cursor) select id, 1, 3 from batch",
    ):
        db.session.execute(text(statement))
    db.session.commit()
    result = run_audit([email_entry(n) for n in range(4)])
    assert result.states == {"sent": 3, "open": 1, "not yet": 2}
    assert (result.missing, result.contradictions) == ([], [])
    assert run_audit([email_entry(n) for n in range(5)]).contradictions == ["c4@example.com: not yet, yet received"]
