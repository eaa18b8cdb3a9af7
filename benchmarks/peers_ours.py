"""What a crowd works on, on our side: the program's action, and the textbook's ways on the same tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flask import Flask
from sqlalchemy import text

from benchmarks import onecode, textbook
from benchmarks.peers_crowd import Work
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions.group_commit import redeem
from webapp.redemptions.rules import Order, RedemptionRequest


@dataclass
class Action:
    """The action alone, as every door calls it, with the order that it is for: oscar's voucher step records its order,
    too."""

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
    """One of the textbook's ways, by its number in `textbook.WAYS`."""

    number: int
    url: str
    offer_id: int
    code: str
    way: textbook.Way | None = field(default=None, init=False)

    def open(self, threads: int) -> None:
        self.way = textbook.WAYS[self.number](self.url, threads)

    @contextmanager
    def client(self) -> Iterator[Work]:
        yield self._redeem

    def _redeem(self, customer: int) -> bool:
        if self.way is None:
            raise RuntimeError("not open")
        return self.way.redeem(textbook.ask(self.offer_id, self.code, customer))

    def close(self) -> None:
        if self.way is not None:
            self.way.close()
