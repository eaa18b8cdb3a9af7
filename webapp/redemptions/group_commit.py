"""Group commit: requests to redeem that arrive at the same time are written in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flask import current_app
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from webapp.core.coalescing import Coalescer, CoalescingTimeout
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions.actions import redeem_all
from webapp.redemptions.errors import DATABASE_UNAVAILABLE, OUTCOME_UNKNOWN, RedemptionUnavailable
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest

log = logging.getLogger(__name__)

# More in one transaction make none of them cheaper, and all wait for the last.
GROUP_SIZE_MAX = 64
REDEEM_TIMEOUT_SECONDS = 15
LOCK_TIMEOUT_SECONDS = 2
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 20


def redeem(request: RedemptionRequest) -> RedemptionRecord:
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
    answer = get_group_committer().redeem(request)
    if isinstance(answer, DomainError):
        raise answer
    return answer


class GroupCommitter:
    """Where the threads of one process redeem: on one connection, which is kept, one transaction at a time."""

    def __init__(self) -> None:
        self._coalescer = Coalescer(self._redeem_group, GROUP_SIZE_MAX, REDEEM_TIMEOUT_SECONDS)
        self._connection: Connection | None = None

    def redeem(self, request: RedemptionRequest) -> RedemptionRecord | DomainError:
        """The answer to one ask, whoever else asks at the same time."""
        try:
            return self._coalescer.submit(request)
        except CoalescingTimeout as stuck:
            return RedemptionUnavailable(OUTCOME_UNKNOWN if stuck.has_started else DATABASE_UNAVAILABLE)

    def close(self) -> None:
        """Give the connection up; the next ask opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _redeem_group(self, asks: Sequence[RedemptionRequest]) -> list[RedemptionRecord | DomainError]:
        try:
            try:
                return self._redeem_on_connection(asks, self._get_connection())
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The server was started anew since the last time, it may be.
                return self._redeem_on_connection(asks, self._get_connection())
        except RedemptionUnavailable as lost:
            return [lost for _ in asks]
        except DBAPIError as error:
            log.warning("%s redemptions at once: %s", len(asks), error.orig)
            if self._connection is None:
                return [RedemptionUnavailable() for _ in asks]
            return self._redeem_individually(asks, error)

    def _redeem_on_connection(
        self, asks: Sequence[RedemptionRequest], connection: Connection
    ) -> list[RedemptionRecord | DomainError]:
        try:
            return redeem_all(asks, connection)
        finally:
            if connection.invalidated:
                connection.close()
                self._connection = None

    def _redeem_individually(
        self, asks: Sequence[RedemptionRequest], error: DBAPIError
    ) -> list[RedemptionRecord | DomainError]:
        """What the database refuses for all at once, one by one: nobody suffers for a neighbour."""
        if len(asks) == 1:
            # Its disk is full, say (classes 53 and 57 of SQLSTATE): that is not about the ask, and passes.
            if str(getattr(error.orig, "sqlstate", None)).startswith(("53", "57")):
                log.error("the database can't write just now: %s", error.orig)
                return [RedemptionUnavailable()]
            log.error("a redemption can't be written", exc_info=error)
            return [DomainError("error", "Something went wrong on our side. It has been noted.", 500)]
        return [answer for ask in asks for answer in self._redeem_group([ask])]

    def _get_connection(self) -> Connection:
        if self._connection is None:
            connection = db.engine.connect()
            # It never goes back to the pool, so what is set here is set for good.
            connection.detach()
            connection.exec_driver_sql(f"set lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'")
            # Should this machine vanish in the middle, what it holds is let go.
            connection.exec_driver_sql(
                f"set idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_TIMEOUT_SECONDS}s'"
            )
            connection.commit()
            self._connection = connection
        return self._connection


def get_group_committer() -> GroupCommitter:
    """The one of this app in this process."""
    found: GroupCommitter | None = current_app.extensions.get("redeeming")
    # Of two threads that are the first at the same time one makes it.
    return found or current_app.extensions.setdefault("redeeming", GroupCommitter())
