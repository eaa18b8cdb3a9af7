"""Group commit: requests to redeem that arrive at the same time are written in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flask import current_app
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from webapp.core.coalescing import Gatherer, Stuck
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions.actions import redeem_all
from webapp.redemptions.errors import AWAY, LOST, Unavailable
from webapp.redemptions.queries import Redeemed
from webapp.redemptions.rules import Ask

log = logging.getLogger(__name__)

# More in one transaction make none of them cheaper, and all wait for the last.
GATHERED = 64
PATIENCE_SECONDS = 15
LOCK_SECONDS = 2
IDLE_SECONDS = 20


def redeem(ask: Ask) -> Redeemed:
    """Redeem an offer once for a customer, in a transaction of its own. What it returns is on disk.

    What threads of this process ask for at the same time is written in one transaction.

    :returns: the redemption; `repeated` when the same request has made it before (by Idempotency-Key or order id).
    :raises Refused: with the first check of the rule that failed.
    :raises Invalid: when the order does not suit the discount, or an Idempotency-Key came with another body before.
    :raises Unavailable: when the database does not answer.
    """
    # Whoever waits must hold no connection: the one that all wait for might find none left.
    if db.session.registry.has():
        db.session.rollback()
    answer = desk().redeem(ask)
    if isinstance(answer, DomainError):
        raise answer
    return answer


class Desk:
    """Where the threads of one process redeem: on one connection, which is kept, one transaction at a time."""

    def __init__(self) -> None:
        self._gatherer = Gatherer(self._answer, GATHERED, PATIENCE_SECONDS)
        self._connection: Connection | None = None

    def redeem(self, ask: Ask) -> Redeemed | DomainError:
        """The answer to one ask, whoever else asks at the same time."""
        try:
            return self._gatherer.ask(ask)
        except Stuck as stuck:
            return Unavailable(LOST if stuck.begun else AWAY)

    def close(self) -> None:
        """Give the connection up; the next ask opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _answer(self, asks: Sequence[Ask]) -> list[Redeemed | DomainError]:
        try:
            try:
                return self._redeem(asks, self._kept())
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The server was started anew since the last time, it may be.
                return self._redeem(asks, self._kept())
        except Unavailable as lost:
            return [lost for _ in asks]
        except DBAPIError as error:
            log.warning("%s redemptions at once: %s", len(asks), error.orig)
            if self._connection is None:
                return [Unavailable() for _ in asks]
            return self._apart(asks, error)

    def _redeem(self, asks: Sequence[Ask], connection: Connection) -> list[Redeemed | DomainError]:
        try:
            return redeem_all(asks, connection)
        finally:
            if connection.invalidated:
                connection.close()
                self._connection = None

    def _apart(self, asks: Sequence[Ask], error: DBAPIError) -> list[Redeemed | DomainError]:
        """What the database refuses for all at once, one by one: nobody suffers for a neighbour."""
        if len(asks) == 1:
            # Its disk is full, say (classes 53 and 57 of SQLSTATE): that is not about the ask, and passes.
            if str(getattr(error.orig, "sqlstate", None)).startswith(("53", "57")):
                log.error("the database can't write just now: %s", error.orig)
                return [Unavailable()]
            log.error("a redemption can't be written", exc_info=error)
            return [DomainError("error", "Something went wrong on our side. It has been noted.", 500)]
        return [answer for ask in asks for answer in self._answer([ask])]

    def _kept(self) -> Connection:
        if self._connection is None:
            connection = db.engine.connect()
            # It never goes back to the pool, so what is set here is set for good.
            connection.detach()
            connection.exec_driver_sql(f"set lock_timeout = '{LOCK_SECONDS}s'")
            # Should this machine vanish in the middle, what it holds is let go.
            connection.exec_driver_sql(f"set idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
            connection.commit()
            self._connection = connection
        return self._connection


def desk() -> Desk:
    """The one of this app in this process."""
    found: Desk | None = current_app.extensions.get("redeeming")
    # Of two threads that are the first at the same time one makes it.
    return found or current_app.extensions.setdefault("redeeming", Desk())
