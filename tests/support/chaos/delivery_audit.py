"""Who got what: the relay's own log held against the program's rows. Neither side is asked about the other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import psycopg

from webapp.campaigns import stats_queries

# What the program may say of somebody who has the mail, and of somebody who has not. `open` is the mail of a batch that
# was on its way when its worker died, before anybody has taken the batch over; without a cursor it may be any of the
# window.
OF_RECEIVED = {"sent", "sent_later", "uncertain", "open"}
OF_OTHERS = {"failed", "deferred", "skipped", "uncertain", "open", "not yet"}
SENT = {"sent", "sent_later"}
COUNTED = ("sent", "failed", "deferred", "uncertain", "skipped")


@dataclass(frozen=True)
class Audit:
    """What was found. `untrue` has a line for every recipient, and every figure, of which the program says something
    that the relay's log does not bear out, other than a mail that is missing."""

    status: str
    total: int
    received: int
    states: Counter[str]
    missing: list[str]
    twice: list[str]
    untrue: list[str] = field(default_factory=list)

    @property
    def duplicates(self) -> int:
        return len(self.twice)


def audit(
    connection: psycopg.Connection, log: Sequence[dict[str, str]], campaign: int, counts: stats_queries.CampaignStats
) -> Audit:
    """Compare what the relay has taken with what the program says of every frozen recipient.

    :param log: the lines of the relay, see faulty_relay.py.
    :param counts: what staff are shown at the same moment.
    """
    (status, total) = _one(connection, "select status, total from campaign where id = %s", campaign)
    states = _states(connection, campaign)
    ids: dict[str, list[str]] = defaultdict(list)
    for line in log:
        if line["what"] == "mail" and line["campaign"] == str(campaign):
            ids[line["to"]].append(line["id"])
    missing = [to for to, state in states.items() if not ids.get(to) and _is_missing(state, status)]
    untrue = [f"{to}: {state}, yet received" for to, state in states.items() if to in ids and state not in OF_RECEIVED]
    untrue += [f"{to}: {state}?" for to, state in states.items() if state not in OF_RECEIVED | OF_OTHERS]
    untrue += [f"{to}: a mail to somebody who is no recipient" for to in ids.keys() - states.keys()]
    untrue += [f"{to}: two mails with two Message-IDs" for to, each in ids.items() if len(set(each)) > 1]
    untrue += _unfounded(states, log)
    if status == "cancelled":
        untrue += [f"{to}: {state}, though it was cancelled" for to, state in states.items() if state == "deferred"]
    if total != len(states):
        untrue.append(f"{total} recipients, but {len(states)} are frozen")
    untrue += _miscounted(counts, states)
    twice = [to for to, each in ids.items() for _ in each[1:]]
    return Audit(status, total, len(ids), Counter(states.values()), missing, twice, untrue)


def _is_missing(state: str, status: str) -> bool:
    """For somebody who got nothing: the program believes otherwise, or has forgotten them when all is done."""
    return state in SENT or (status == "done" and state in ("open", "not yet", "deferred"))


def _states(connection: psycopg.Connection, campaign: int) -> dict[str, str]:
    """What the program says of every frozen recipient, by address."""
    found: dict[int, str] = {}
    batches = connection.execute(
        "select b.gaps, b.status, b.window_start, b.window_end, k.cursor from batch b "
        "left join batch_cursor k on k.batch_id = b.id and k.epoch = b.epoch where b.campaign_id = %s",
        [campaign],
    )
    for gaps, status, start, end, cursor in batches:
        for place, customer in enumerate(accumulate(gaps)):
            if customer in found:
                raise AssertionError(f"customer {customer} is in two batches")
            found[customer] = _by_place(place, len(gaps) if status == "done" else start, end, cursor)
    issues = connection.execute("select customer_id, state from mail_issue where campaign_id = %s", [campaign])
    found |= dict(issues.fetchall())
    emails = connection.execute("select id, email from customer where id = any(%s)", [list(found)])
    return {email: found[customer] for customer, email in emails}


def _by_place(place: int, start: int, end: int, cursor: int | None) -> str:
    if place < start or (cursor is not None and place < cursor and place < end):
        return "sent"
    return "open" if place < end and (cursor is None or place == cursor) else "not yet"


def _unfounded(states: dict[str, str], log: Sequence[dict[str, str]]) -> list[str]:
    """Who is called failed though the relay never refused them."""
    refused = {line["to"] for line in log if line["what"] == "fault" and line["kind"] == "550"}
    failed = [to for to, state in states.items() if state == "failed" and to not in refused]
    return [f"{to}: failed, but the relay said nothing of the kind" for to in failed]


def _miscounted(counts: stats_queries.CampaignStats, states: dict[str, str]) -> list[str]:
    """Where the sums that staff see differ from those over the recipients."""
    found = Counter("sent" if state == "sent_later" else state for state in states.values())
    shown = {name: getattr(counts, name) for name in COUNTED}
    return [f"{n} {name} shown, {found[name]} found" for name, n in shown.items() if n != found[name]]


def _one(connection: psycopg.Connection, statement: str, *given: Any) -> tuple[Any, ...]:
    row = connection.execute(statement.encode(), given).fetchone()
    assert row is not None
    return row
