"""Clients that redeem concurrently from several processes."""

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
CallResult = TypeVar("CallResult")
TIMEOUT = 30
# State of each process: the app, and the barrier at which all processes wait.
_state: dict[str, Any] = {}


@dataclass(frozen=True)
class Outcome:
    """The outcome of one call.

    `result` is redeemed, repeated, undone or the key of an error; `caller` names the code and customer, or the till.
    """

    result: str
    caller: str
    public_id: str = ""


@dataclass(frozen=True)
class Processes:
    """A pool of processes, each with its own app and database connections."""

    pool: ProcessPoolExecutor
    settings: Settings
    number: int

    def each(self, work: Callable[[Flask, Job], CallResult], jobs: Sequence[Job]) -> list[CallResult]:
        """Run `work` for each job in a separate thread; return the results.

        All processes start at the same time.
        """
        n = self.number
        futures = [self.pool.submit(_process, self.settings, work, list(jobs[k::n])) for k in range(n)]
        return [result for future in futures for result in future.result()]


@contextmanager
def processes(settings: Settings, number: int) -> Iterator[Processes]:
    """Start a pool of processes; end them afterwards."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(number, spawned, _begin, (spawned.Barrier(number),)) as pool:
        yield Processes(pool, settings, number)


def _begin(ready: Barrier) -> None:
    _state["ready"] = ready


def _process(settings: Settings, work: Callable[[Flask, Job], CallResult], jobs: list[Job]) -> list[CallResult]:
    if "app" not in _state:
        _state["app"] = create_app(settings)
    app: Flask = _state["app"]
    _state["ready"].wait(TIMEOUT)
    try:
        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(lambda job: work(app, job), jobs))
    finally:
        # The server counts events of a connection, such as deadlocks, at the latest when the connection ends.
        with app.app_context():
            db.engine.dispose()


@dataclass(frozen=True)
class Till:
    """Redeems for every customer in random order.

    If it `rolls_back`, it sometimes rolls back a recent redemption.
    """

    number: int
    code: str
    emails: tuple[str, ...]
    rolls_back: bool = False


def run_till(app: Flask, till: Till) -> list[Outcome]:
    """Redeem for every customer by calling actions; return the outcomes."""
    chance = random.Random(till.number)
    outcomes: list[Outcome] = []
    for email in chance.sample(till.emails, len(till.emails)):
        outcomes += _redeem(app, [RedemptionRequest(channel="api", code=till.code, email=email)])
        if till.rolls_back and chance.random() < 0.4:
            outcomes += roll_back(app, (chance.choice(list_recent_ids(app)), f"till {till.number}"))
    return outcomes


@dataclass(frozen=True)
class Wholesaler:
    """Redeems many offers for many customers in batches, and rolls most of them back."""

    number: int
    codes: tuple[str, ...]
    emails: tuple[str, ...]
    rounds: int
    batch: int


def run_wholesaler(app: Flask, wholesaler: Wholesaler) -> list[Outcome]:
    """Redeem and roll back in batches; return the outcomes.

    The batches share offers and customers with those of other wholesalers.
    """
    chance = random.Random(wholesaler.number)
    all_pairs = [(code, email) for code in wholesaler.codes for email in wholesaler.emails]
    outcomes: list[Outcome] = []
    for _ in range(wholesaler.rounds):
        pairs = chance.sample(all_pairs, wholesaler.batch)
        batch = _redeem(app, [RedemptionRequest(channel="api", code=code, email=email) for code, email in pairs])
        outcomes += batch
        for outcome in batch:
            if outcome.result == "redeemed" and chance.random() < 0.8:
                outcomes += roll_back(app, (outcome.public_id, f"wholesaler {wholesaler.number}"))
    return outcomes


def roll_back(app: Flask, job: tuple[str, str]) -> list[Outcome]:
    """Roll back one redemption by id and caller, or nothing if the id is empty."""
    public_id, by = job
    if not public_id:
        return []
    with app.app_context():
        try:
            return [
                Outcome(
                    "undone", by, redemption_rollback.roll_back_redemption(public_id, "order cancelled", by).public_id
                )
            ]
        except DomainError as error:
            return [Outcome(error.key, by, public_id)]


def roll_back_all(app: Flask, job: tuple[tuple[str, ...], str]) -> list[Outcome]:
    """Roll back redemptions one after the other, by ids and caller."""
    public_ids, by = job
    return [outcome for public_id in public_ids for outcome in roll_back(app, (public_id, by))]


def list_recent_ids(app: Flask) -> list[str]:
    """Return the ids of the latest redemptions, or one empty id when there are none."""
    with app.app_context():
        return [record.public_id for record in redemption_queries.list_latest_redemptions(None, 8)] or [""]


def _redeem(app: Flask, requests: list[RedemptionRequest]) -> list[Outcome]:
    with app.app_context():
        if len(requests) > 1:
            results = redemption_actions.redeem_all(requests)
            return [_to_outcome(request, result) for request, result in zip(requests, results, strict=True)]
        try:
            return [_to_outcome(requests[0], group_commit.redeem(requests[0]))]
        except DomainError as error:
            return [_to_outcome(requests[0], error)]


def _to_outcome(request: RedemptionRequest, result: RedemptionRecord | DomainError) -> Outcome:
    caller = f"{request.code} {request.email}"
    if isinstance(result, DomainError):
        return Outcome(result.key, caller)
    return Outcome("repeated" if result.is_replay else "redeemed", caller, result.public_id)


@dataclass(frozen=True)
class ApiResponse:
    """A response of the API. Status 0: the connection ended without a response."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShopClient:
    """An API client that opens a connection for each call."""

    url: str
    key: str

    def redeem(self, code: str, email: str, **more: Any) -> ApiResponse:
        return self.call("/api/v1/redemptions", {"code": code, "customer": {"email": email}} | more)

    def roll_back(self, public_id: str) -> ApiResponse:
        return self.call(f"/api/v1/redemptions/{public_id}/rollback", {"reason": "order cancelled"})

    def call(self, path: str, body: object, **headers: str) -> ApiResponse:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=TIMEOUT)
        all_headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"} | headers
        try:
            connection.request("POST", path, json.dumps(body), all_headers)
            raw = connection.getresponse()
            return ApiResponse(raw.status, json.loads(raw.read()), {k.lower(): v for k, v in raw.getheaders()})
        except (ConnectionError, http.client.HTTPException):
            return ApiResponse(0)
        finally:
            connection.close()

    def run_till(self, till: Till) -> list[Outcome]:
        """Redeem for every customer over HTTP; return the outcomes."""
        chance = random.Random(till.number)
        outcomes = []
        for email in chance.sample(till.emails, len(till.emails)):
            response = self.redeem(till.code, email)
            outcomes.append(_parse_outcome(email, response))
            if till.rolls_back and response.status == 201 and chance.random() < 0.5:
                outcomes.append(_parse_outcome(f"till {till.number}", self.roll_back(response.body["id"])))
        return outcomes


def _parse_outcome(caller: str, response: ApiResponse) -> Outcome:
    if response.status == 201:
        return Outcome("redeemed", caller, response.body["id"])
    if response.status == 200:
        return Outcome("undone" if response.body["rolled_back_at"] else "repeated", caller, response.body["id"])
    return Outcome(response.body["code"], caller)
