"""Clients that redeem over the network while something dies, and what must be true of what they heard."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.support import live_server
from tests.support.chaos.concurrent_clients import Reply, Shop
from tests.support.chaos.durable_database import DurableDatabase

CLIENTS = 10
ENOUGH = 25


@dataclass
class Load:
    """Clients that redeem over the network, each for one customer after the other, until told to stop."""

    shop: Shop
    code: str
    heard: list[tuple[str, Reply]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def client(self, places: Iterator[int]) -> None:
        while not self.over.is_set():
            email = f"c{next(places)}@example.com"
            reply = self.shop.redeem(self.code, email)
            self.heard.append((email, reply))
            if reply.status != 201:
                time.sleep(0.02)

    def wait_for(self, status: int, number: int = ENOUGH) -> None:
        """Until so many more were answered like this."""
        wanted = len(self.who(status)) + number
        deadline = time.monotonic() + 60
        while len(self.who(status)) < wanted:
            assert time.monotonic() < deadline, Counter(reply.status for _, reply in self.heard)
            time.sleep(0.02)

    def who(self, status: int) -> list[str]:
        return [email for email, reply in list(self.heard) if reply.status == status]


@contextmanager
def load(place: DurableDatabase, web: live_server.Live, code: str) -> Iterator[Load]:
    """The clients at work on a new offer; afterwards all have had their last answer."""
    shop = Shop(web.url, place.key)
    offer = {"name": "Summer", "code": code, "discount": {"type": "percent", "percent": "25"}, "max_redemptions": 10**6}
    assert shop.call("/api/v1/offers", offer).status == 201
    found = Load(shop, code)
    places = itertools.count(1)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[None]] = [pool.submit(found.client, places) for _ in range(CLIENTS)]
        try:
            yield found
        finally:
            found.over.set()
        for one in clients:
            one.result()


def lost(place: DurableDatabase, found: Load) -> set[str]:
    """Who was told "redeemed" and has no row."""
    return set(found.who(201)) - place.redeemed(found.code)


def check(place: DurableDatabase, found: Load) -> None:
    """Every "redeemed" is in the table, and nothing else but what nobody got an answer to."""
    kept = place.redeemed(found.code)
    told = set(found.who(201))
    assert told <= kept
    assert kept - told <= set(found.who(503) + found.who(0))
    assert {reply.status for _, reply in found.heard} <= {201, 503, 0}
    # Nobody hears that nothing was saved of whom there is a row.
    assured = {who for who, reply in found.heard if reply.status == 503 and "Nothing was saved" in reply.body["detail"]}
    assert not assured & kept
