"""Write concurrent redemption requests of a process in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flask import current_app
from flask_babel import gettext as _
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from webapp.core import database_engines, database_health, database_timeouts
from webapp.core.coalescing import Coalescer, CoalescingTimeout
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions.actions import redeem_all
from webapp.redemptions.errors import (
    DATABASE_UNAVAILABLE,
    OUTCOME_UNKNOWN,
    RedemptionUnavailable,
    build_unavailable,
)
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest

log = logging.getLogger(__name__)

# Larger groups lower the cost per request no further, and every request waits for the whole group.
MAX_GROUP_SIZE = 64
REDEEM_TIMEOUT_SECONDS = 15
LOCK_TIMEOUT_SECONDS = 2
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 20
# Each statement takes milliseconds, plus LOCK_TIMEOUT_SECONDS when offers are locked; the threads of the process wait.
STATEMENT_SECONDS = 5


def redeem(request: RedemptionRequest) -> RedemptionRecord:
    """Redeem an offer for a customer; return after the commit.

    Concurrent requests of this process's threads are written in one transaction. Ends the transaction of the session.

    :returns: the redemption; `is_replay` is set when the same request made it before (same Idempotency-Key or order).
    :raises RedemptionRefused: with the first eligibility check that failed.
    :raises InvalidInput: when the currency of the order is missing or differs from that of the discount, or the
        Idempotency-Key was sent before with another body.
    :raises RedemptionUnavailable: when the database is unavailable or does not respond in time.
    :raises DomainError: `conflict` after too many concurrent requests; `error` when the database rejects the write.
    """
    # As the leader of a group, this request would open no connection, so that those of other threads would fail, too.
    if database_timeouts.has_connecting_timed_out(current_app.config["SETTINGS"].libpq_url):
        raise RedemptionUnavailable(DATABASE_UNAVAILABLE)
    # A waiting thread must not hold a connection: the thread it waits for might find the pool empty.
    if db.session.registry.has():
        db.session.rollback()
    try:
        result = get_group_committer().submit(request)
    except CoalescingTimeout as error:
        raise RedemptionUnavailable(OUTCOME_UNKNOWN if error.has_started else DATABASE_UNAVAILABLE) from error
    if isinstance(result, DomainError):
        raise result
    return result


class GroupCommitter(Coalescer[RedemptionRequest, RedemptionRecord | DomainError]):
    """Redeems for all threads of a process on one connection, one group at a time."""

    def __init__(self) -> None:
        super().__init__(self._redeem_group, MAX_GROUP_SIZE, REDEEM_TIMEOUT_SECONDS)
        self._connection: Connection | None = None

    def close(self) -> None:
        """Close the connection; the next group opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _redeem_group(self, requests: Sequence[RedemptionRequest]) -> list[RedemptionRecord | DomainError]:
        """Redeem a group on the persistent connection.

        Retries once on a new connection if the connection was lost before the commit.
        """
        try:
            with database_timeouts.statement_deadline(STATEMENT_SECONDS):
                try:
                    return redeem_all(requests, self._get_connection())
                except DBAPIError as error:
                    if not error.connection_invalidated:
                        raise
                    # The server may have restarted or been replaced since the last group.
                    return redeem_all(requests, self._get_connection())
        except RedemptionUnavailable as error:
            database_health.report_if_outage(error.__cause__)
            return [error] * len(requests)
        except DBAPIError as error:
            if not database_health.report_if_outage(error):
                log.warning("group commit failed (redemptions: %s): %s", len(requests), error.orig)
            if database_health.is_commit_refused(error) or self._connection is None or self._connection.invalidated:
                return [build_unavailable(error)] * len(requests)
            return self._redeem_individually(requests, error)

    def _redeem_individually(
        self, requests: Sequence[RedemptionRequest], error: DBAPIError
    ) -> list[RedemptionRecord | DomainError]:
        """Redeem one by one after the group failed, so that an invalid request fails alone.

        A group of one request is not repeated: its result is the error.
        """
        if len(requests) == 1:
            # SQLSTATE classes 53 and 57, such as a full disk, are temporary and not caused by the request.
            if str(getattr(error.orig, "sqlstate", None)).startswith(("53", "57")):
                log.error("database rejected the write: %s", error.orig)
                return [build_unavailable(error)]
            request = requests[0]
            log.error(
                "redemption failed (channel %s, API key %s, offer %s)",
                request.channel,
                request.api_key_id or "–",
                request.offer_id or "–",
                exc_info=error,
            )
            message = _("Something went wrong on our side, and the error was logged. Please try again.")
            return [DomainError("error", message, 500)]
        return [result for request in requests for result in self._redeem_group([request])]

    def _get_connection(self) -> Connection:
        if self._connection is not None and self._connection.invalidated:
            self.close()
        if self._connection is None:
            connection = db.engine.connect()
            connection.detach()
            database_engines.set_transaction_start(connection, _build_transaction_start())
            self._connection = connection
        return self._connection


def _build_transaction_start() -> str:
    """Return SQL that starts a transaction with its timeouts.

    They are local to the transaction, because behind a connection pooler the next one may have another session. The
    second timeout releases the locks if this machine disappears during a transaction.
    """
    return (
        f"begin; set local lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'; "
        f"set local idle_in_transaction_session_timeout = '{IDLE_IN_TRANSACTION_TIMEOUT_SECONDS}s'"
    )


def get_group_committer() -> GroupCommitter:
    """Return the group committer of this app and process; create it at first use."""
    committer: GroupCommitter | None = current_app.extensions.get("redeeming")
    # setdefault is atomic: of two concurrent threads only one creates it.
    return committer or current_app.extensions.setdefault("redeeming", GroupCommitter())
