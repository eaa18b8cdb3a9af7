"""Clients that redeem while a process crashes, and checks of their responses."""

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
from tests.support.chaos.concurrent_clients import ApiResponse, ShopClient
from tests.support.chaos.durable_database import PopulatedDatabase

CLIENTS = 10
ENOUGH = 25


@dataclass
class RedemptionLoad:
    """Clients that redeem over HTTP until they are stopped.

    :ivar pause: the seconds for which each client waits after a response; each request takes another customer.
    :ivar accepted_at: the times of the responses with status 201, as `time.time` returns them.
    """

    shop: ShopClient
    code: str
    pause: float = 0
    accepted_at: list[float] = field(default_factory=list)
    responses: list[tuple[str, ApiResponse]] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def client(self, numbers: Iterator[int]) -> None:
        while not self.stopping.is_set():
            email = f"c{next(numbers)}@example.com"
            response = self.shop.redeem(self.code, email)
            self.responses.append((email, response))
            if response.status == 201:
                self.accepted_at.append(time.time())
            time.sleep(self.pause or (0 if response.status == 201 else 0.02))

    def wait_for(self, status: int, number: int = ENOUGH) -> None:
        """Wait for `number` more responses with a status."""
        wanted = len(self.emails_with(status)) + number
        live_server.wait_until(
            lambda: len(self.emails_with(status)) >= wanted,
            what=lambda: Counter(response.status for _, response in self.responses),
            interval=0.02,
        )

    def emails_with(self, status: int) -> list[str]:
        return [email for email, response in list(self.responses) if response.status == status]


@contextmanager
def redemption_load(
    database: PopulatedDatabase, web: live_server.LiveProcess, code: str, pause: float = 0
) -> Iterator[RedemptionLoad]:
    """Run the clients with a new offer; afterwards, no request is pending."""
    shop = ShopClient(web.url, database.key)
    offer = {"name": "Summer", "code": code, "discount": {"type": "percent", "percent": "25"}, "max_redemptions": 10**6}
    assert shop.call("/api/v1/offers", offer).status == 201
    load = RedemptionLoad(shop, code, pause)
    numbers = itertools.count(1)
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients: list[Future[None]] = [pool.submit(load.client, numbers) for _ in range(CLIENTS)]
        try:
            yield load
        finally:
            load.stopping.set()
        for client in clients:
            client.result()


def lost_redemptions(database: PopulatedDatabase, load: RedemptionLoad) -> set[str]:
    """Return the emails with the response "redeemed" but without a row."""
    return set(load.emails_with(201)) - database.redeemed_emails(load.code)


def check_redemptions(database: PopulatedDatabase, load: RedemptionLoad) -> None:
    """Check that the table has every confirmed redemption.

    Others may be in it only if their client got no response, or 503.

    :raises AssertionError: with what is wrong.
    """
    stored = database.redeemed_emails(load.code)
    confirmed = set(load.emails_with(201))
    assert confirmed <= stored, f"{len(confirmed - stored)} confirmed redemptions are missing"
    unknown = stored - confirmed - set(load.emails_with(503) + load.emails_with(0))
    assert not unknown, f"{len(unknown)} redemptions were refused by their response"
    statuses = {response.status for _, response in load.responses}
    assert statuses <= {201, 503, 0}, f"responses have the statuses {sorted(statuses)}"
    # A response that says that nothing was saved must be true.
    unsaved = {
        email
        for email, response in load.responses
        if response.status == 503 and "This attempt redeemed nothing" in response.body["detail"]
    }
    assert not unsaved & stored, f"{len(unsaved & stored)} redemptions are saved, though the response denies it"
    counter = database.redemption_count(load.code)
    assert counter == len(stored), f"the counter shows {counter} redemptions, there are {len(stored)}"
