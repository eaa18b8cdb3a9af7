"""Onecode's action and the textbook implementations, as systems for the clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flask import Flask
from sqlalchemy import text

from benchmarks import onecode, textbook
from benchmarks.concurrent_clients import Work
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import Order, RedemptionRequest


@dataclass
class Action:
    """The action that all interfaces call, with an order as in oscar's step."""

    url: str
    folder: str
    code: str
    app: Flask | None = field(default=None, init=False)

    def open(self, threads: int) -> None:
        self.app = onecode.build(self.url, self.folder)

    @contextmanager
    def client(self) -> Iterator[Work]:
        if self.app is None:
            raise RuntimeError("not open")
        with self.app.app_context():
            db.session.execute(text("select 1"))
            db.session.rollback()
            yield self._redeem

    def _redeem(self, customer: int) -> bool:
        order = Order(f"A-{customer}", 999, "EUR")
        try:
            redeem(
                RedemptionRequest(channel="api", code=self.code, email=f"customer.{customer}@example.com", order=order)
            )
        except DomainError as error:
            if error.key != "offer_exhausted":
                raise
            return False
        return True

    def close(self) -> None:
        if self.app is not None:
            with self.app.app_context():
                db.engine.dispose()


@dataclass
class Textbook:
    """A textbook implementation, by its index in `textbook.IMPLEMENTATIONS`."""

    number: int
    url: str
    offer_id: int
    code: str
    implementation: textbook.Implementation | None = field(default=None, init=False)

    def open(self, threads: int) -> None:
        self.implementation = textbook.IMPLEMENTATIONS[self.number](self.url, threads)

    @contextmanager
    def client(self) -> Iterator[Work]:
        yield self._redeem

    def _redeem(self, customer: int) -> bool:
        if self.implementation is None:
            raise RuntimeError("not open")
        return self.implementation.redeem(textbook.make_request(self.offer_id, self.code, customer))

    def close(self) -> None:
        if self.implementation is not None:
            self.implementation.close()
