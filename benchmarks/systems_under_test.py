"""Onecode's action and the textbook implementations, as systems for the concurrent clients."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flask import Flask
from sqlalchemy import text

from benchmarks import onecode
from benchmarks.concurrent_clients import SystemUnderTest, Work
from benchmarks.textbook import Implementation, ImplementationType, make_request
from webapp.core.extensions import db
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import Order, RedemptionRequest


@dataclass
class ActionSystem(SystemUnderTest):
    """The action that all interfaces call, with the offer's code and, as in oscar's step, an order."""

    url: str
    folder: str
    code: str
    has_order: bool = False
    app: Flask = field(init=False)

    def open(self, threads: int) -> None:
        logging.disable(logging.WARNING)
        self.app = onecode.build(self.url, self.folder)

    @contextmanager
    def client(self) -> Iterator[Work]:
        with self.app.app_context():
            db.session.execute(text("select 1"))
            db.session.rollback()
            yield self._redeem

    def _redeem(self, customer: int) -> bool:
        order = Order(f"A-{customer}", 999, "EUR") if self.has_order else None
        email = f"customer.{customer}@example.com"
        try:
            redeem(RedemptionRequest(channel="api", code=self.code, email=email, order=order))
        except RedemptionRefused as refusal:
            if refusal.key != "offer_exhausted":
                raise
            return False
        return True

    def close(self) -> None:
        with self.app.app_context():
            db.engine.dispose()


@dataclass
class TextbookSystem(SystemUnderTest):
    """A textbook implementation, with one connection per thread."""

    implementation_type: ImplementationType
    url: str
    offer_id: int
    code: str
    implementation: Implementation = field(init=False)

    def open(self, threads: int) -> None:
        self.implementation = self.implementation_type(self.url, threads)

    @contextmanager
    def client(self) -> Iterator[Work]:
        yield lambda customer: self.implementation.redeem(make_request(self.offer_id, self.code, customer))

    def close(self) -> None:
        self.implementation.close()
