"""Customers, tills and shops in many processes at once, for tests of what only several processes can show."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flask import Flask

from webapp import create_app
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest

Job = TypeVar("Job")
Found = TypeVar("Found")
TIMEOUT = 30
# What each of the processes keeps: the program, and that all of them are there.
_kept: dict[str, Any] = {}


@dataclass(frozen=True)
class Said:
    """One answer: redeemed, repeated, undone, or the key of a refusal; and of which redemption."""

    what: str
    who: str
    public_id: str = ""


@dataclass(frozen=True)
class Processes:
    """Processes with the program loaded, each with connections of its own."""

    pool: ProcessPoolExecutor
    settings: Settings
    number: int

    def each(self, work: Callable[[Flask, Job], Found], jobs: Sequence[Job]) -> list[Found]:
        """What `work` found for each job, each in a thread of its own. All processes begin together."""
        n = self.number
        done = [self.pool.submit(_process, self.settings, work, list(jobs[k::n])) for k in range(n)]
        return [found for one in done for found in one.result()]


@contextmanager
def processes(settings: Settings, number: int) -> Iterator[Processes]:
    """So many processes, ended afterwards."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, spawned, _begin, (spawned.Barrier(number),)) as pool:
        yield Processes(pool, settings, number)


def _begin(ready: Barrier) -> None:
    _kept["ready"] = ready


def _process(settings: Settings, work: Callable[[Flask, Job], Found], jobs: list[Job]) -> list[Found]:
    if "app" not in _kept:
        _kept["app"] = create_app(settings)
    app: Flask = _kept["app"]
    _kept["ready"].wait(TIMEOUT)
    try:
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(lambda job: work(app, job), jobs))
    finally:
        # The server learns of what a connection met, such as deadlocks, at the latest when it ends.
        with app.app_context():
            db.engine.dispose()


@dataclass(frozen=True)
class Till:
    """Redeems for everybody in an order of its own and, if it `undoes`, takes back one of the newest now and then."""

    number: int
    code: str
    emails: tuple[str, ...]
    undoes: bool = False


def sell(app: Flask, till: Till) -> list[Said]:
    """What a till heard that calls the actions."""
    chance = random.Random(till.number)
    heard = []
    for email in chance.sample(till.emails, len(till.emails)):
        heard += _redeem(app, [RedemptionRequest(channel="api", code=till.code, email=email)])
        if till.undoes and chance.random() < 0.4:
            heard += undo(app, (chance.choice(newest(app)), f"till {till.number}"))
    return heard


@dataclass(frozen=True)
class Wholesaler:
    """Redeems many offers for many customers in batches, and takes most of it back after each."""

    number: int
    codes: tuple[str, ...]
    emails: tuple[str, ...]
    rounds: int
    batch: int


def sell_in_batches(app: Flask, wholesaler: Wholesaler) -> list[Said]:
    """What a wholesaler heard. Its batches overlap with those of all others in offers and customers."""
    chance = random.Random(wholesaler.number)
    every = [(code, email) for code in wholesaler.codes for email in wholesaler.emails]
    heard = []
    for _ in range(wholesaler.rounds):
        pairs = chance.sample(every, wholesaler.batch)
        told = _redeem(app, [RedemptionRequest(channel="api", code=code, email=email) for code, email in pairs])
        heard += told
        for one in told:
            if one.what == "redeemed" and chance.random() < 0.8:
                heard += undo(app, (one.public_id, f"wholesaler {wholesaler.number}"))
    return heard


def undo(app: Flask, wanted: tuple[str, str]) -> list[Said]:
    """What somebody heard who undoes one redemption; nothing when there is none to undo."""
    public_id, by = wanted
    if not public_id:
        return []
    with app.app_context():
        try:
            return [
                Said("undone", by, redemption_rollback.roll_back_redemption(public_id, "order cancelled", by).public_id)
            ]
        except DomainError as error:
            return [Said(error.key, by, public_id)]


def undo_all(app: Flask, wanted: tuple[tuple[str, ...], str]) -> list[Said]:
    """What somebody heard who undoes these, one after the other."""
    return [answer for public_id in wanted[0] for answer in undo(app, (public_id, wanted[1]))]


def newest(app: Flask) -> list[str]:
    """Some of the redemptions that were made last."""
    with app.app_context():
        return [done.public_id for done in redemption_queries.list_latest_redemptions(None, 8)] or [""]


def _redeem(app: Flask, asks: list[RedemptionRequest]) -> list[Said]:
    with app.app_context():
        if len(asks) > 1:
            return [_said(ask, answer) for ask, answer in zip(asks, redemption_actions.redeem_all(asks), strict=True)]
        try:
            return [_said(asks[0], group_commit.redeem(asks[0]))]
        except DomainError as error:
            return [_said(asks[0], error)]


def _said(ask: RedemptionRequest, answer: RedemptionRecord | DomainError) -> Said:
    who = f"{ask.code} {ask.email}"
    if isinstance(answer, DomainError):
        return Said(answer.key, who)
    return Said("repeated" if answer.is_replay else "redeemed", who, answer.public_id)


@dataclass(frozen=True)
class Reply:
    """What came back over HTTP. Status 0: the connection ended without an answer."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shop:
    """A machine with a key that calls over the network, on one connection for each call."""

    url: str
    key: str

    def redeem(self, code: str, email: str, **more: Any) -> Reply:
        return self.call("/api/v1/redemptions", {"code": code, "customer": {"email": email}} | more)

    def undo(self, public_id: str) -> Reply:
        return self.call(f"/api/v1/redemptions/{public_id}/rollback", {"reason": "order cancelled"})

    def call(self, path: str, body: object, **headers: str) -> Reply:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=TIMEOUT)
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"} | headers
        try:
            connection.request("POST", path, json.dumps(body), given)
            answer = connection.getresponse()
            return Reply(answer.status, json.loads(answer.read()), {k.lower(): v for k, v in answer.getheaders()})
        except (ConnectionError, http.client.HTTPException):
            return Reply(0)
        finally:
            connection.close()

    def sell(self, till: Till) -> list[Said]:
        """What a till heard that calls over the network."""
        chance = random.Random(till.number)
        heard = []
        for email in chance.sample(till.emails, len(till.emails)):
            reply = self.redeem(till.code, email)
            heard.append(_told(email, reply))
            if till.undoes and reply.status == 201 and chance.random() < 0.5:
                heard.append(_told(f"till {till.number}", self.undo(reply.body["id"])))
        return heard


def _told(who: str, reply: Reply) -> Said:
    if reply.status == 201:
        return Said("redeemed", who, reply.body["id"])
    if reply.status == 200:
        return Said("undone" if reply.body["rolled_back_at"] else "repeated", who, reply.body["id"])
    return Said(reply.body["code"], who)
