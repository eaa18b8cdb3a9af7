"""Compare the relay's log with the rows of the database.

Neither side uses data of the other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import psycopg

from webapp.campaigns import stats_queries

# The states that are correct for a recipient who has the email, and for one who has not. `open` is the delivery that
# was in progress when the worker of its batch died, until another worker takes over the batch; without a cursor it may
# be any delivery of the window.
STATES_IF_RECEIVED = {"sent", "sent_later", "uncertain", "open"}
STATES_IF_NOT_RECEIVED = {"failed", "deferred", "skipped", "uncertain", "open", "not yet"}
SENT = {"sent", "sent_later"}
COUNTED = ("sent", "failed", "deferred", "uncertain", "skipped")


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    `contradictions` has a line for every recipient and every count for which the rows of the database contradict the
    relay's log, except for missing emails.
    """

    status: str
    total: int
    received: int
    states: Counter[str]
    missing: list[str]
    duplicated: list[str]
    contradictions: list[str] = field(default_factory=list)

    @property
    def duplicates(self) -> int:
        return len(self.duplicated)


def audit(
    connection: psycopg.Connection, log: Sequence[dict[str, str]], campaign: int, counts: stats_queries.CampaignStats
) -> Audit:
    """Compare the accepted emails with the state of every frozen recipient.

    :param log: the lines of the relay's log, see faulty_relay.py.
    :param counts: the counts that staff see at the same moment.
    """
    (status, total) = _one(connection, "select status, total from campaign where id = %s", campaign)
    states = _states(connection, campaign)
    ids: dict[str, list[str]] = defaultdict(list)
    for line in log:
        if line["event"] == "mail" and line["campaign"] == str(campaign):
            ids[line["to"]].append(line["id"])
    missing = [to for to, state in states.items() if not ids.get(to) and _is_missing(state, status)]
    contradictions = [
        f"{to}: {state}, yet received" for to, state in states.items() if to in ids and state not in STATES_IF_RECEIVED
    ]
    contradictions += [
        f"{to}: {state}?" for to, state in states.items() if state not in STATES_IF_RECEIVED | STATES_IF_NOT_RECEIVED
    ]
    contradictions += [f"{to}: an email to an address that is not a recipient" for to in ids.keys() - states.keys()]
    contradictions += [f"{to}: emails with different Message-IDs" for to, each in ids.items() if len(set(each)) > 1]
    contradictions += _false_failures(states, log)
    if status == "cancelled":
        contradictions += [
            f"{to}: {state}, though it was cancelled" for to, state in states.items() if state == "deferred"
        ]
    if total != len(states):
        contradictions.append(f"{total} recipients, but {len(states)} are frozen")
    contradictions += _miscounted(counts, states)
    duplicated = [to for to, each in ids.items() for _ in each[1:]]
    return Audit(status, total, len(ids), Counter(states.values()), missing, duplicated, contradictions)


def _is_missing(state: str, status: str) -> bool:
    """Whether a recipient got no email but is shown as sent, or has no final state."""
    return state in SENT or (status == "done" and state in ("open", "not yet", "deferred"))


def _states(connection: psycopg.Connection, campaign: int) -> dict[str, str]:
    """Return the state of every frozen recipient by address."""
    states: dict[int, str] = {}
    batches = connection.execute(
        "select b.gaps, b.status, b.window_start, b.window_end, k.cursor from batch b "
        "left join batch_cursor k on k.batch_id = b.id and k.epoch = b.epoch where b.campaign_id = %s",
        [campaign],
    )
    for gaps, status, start, end, cursor in batches:
        for position, customer in enumerate(accumulate(gaps)):
            if customer in states:
                raise AssertionError(f"customer {customer} is in two batches")
            states[customer] = _state_at(position, len(gaps) if status == "done" else start, end, cursor)
    issues = connection.execute("select customer_id, state from mail_issue where campaign_id = %s", [campaign])
    states |= dict(issues.fetchall())
    emails = connection.execute("select id, email from customer where id = any(%s)", [list(states)])
    return {email: states[customer] for customer, email in emails}


def _state_at(position: int, start: int, end: int, cursor: int | None) -> str:
    if position < start or (cursor is not None and position < cursor and position < end):
        return "sent"
    return "open" if position < end and (cursor is None or position == cursor) else "not yet"


def _false_failures(states: dict[str, str], log: Sequence[dict[str, str]]) -> list[str]:
    """Report recipients that are shown as failed but were never rejected."""
    rejected = {line["to"] for line in log if line["event"] == "fault" and line["kind"] == "550"}
    failed = [to for to, state in states.items() if state == "failed" and to not in rejected]
    return [f"{to}: failed, but the relay did not reject it" for to in failed]


def _miscounted(counts: stats_queries.CampaignStats, states: dict[str, str]) -> list[str]:
    """Report where the counts that staff see differ from the states of the recipients."""
    found = Counter("sent" if state == "sent_later" else state for state in states.values())
    shown = {name: getattr(counts, name) for name in COUNTED}
    return [f"{n} {name} shown, {found[name]} found" for name, n in shown.items() if n != found[name]]


def _one(connection: psycopg.Connection, statement: str, *given: Any) -> tuple[Any, ...]:
    row = connection.execute(statement.encode(), given).fetchone()
    assert row is not None
    return row
