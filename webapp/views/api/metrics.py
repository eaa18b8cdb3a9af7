"""`/metrics` for Prometheus. It requires an API key with the scope `read`."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time

from flask import Blueprint, Response, current_app, g, request
from sqlalchemy.exc import DBAPIError, InterfaceError, NotSupportedError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from webapp.accounts import api_key_actions
from webapp.core import database_health, database_timeouts, web_metrics
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.monitoring import exposition, readiness
from webapp.monitoring import queries as monitoring_queries
from webapp.monitoring.exposition import ServerMetrics, WriteCheck
from webapp.monitoring.queries import MetricsSnapshot
from webapp.views.api.blueprint import authenticate

log = logging.getLogger(__name__)

# Seconds to wait for each statement: longer than the server lets it run, so that a slow one is cancelled there and the
# connection can be used again.
READ_SECONDS = monitoring_queries.STATEMENT_TIMEOUT_SECONDS + 1
# While the database does not respond to writes: it may not respond to reads either.
READ_SECONDS_WITHOUT_WRITES = 1.5
# Seconds after its last scrape of this process in which a key is accepted while it cannot be looked up.
ACCEPTED_KEY_SECONDS = 3_600


class _AcceptedKeys:
    """The API keys that have read the metrics of this process, for scrapes while the database is unavailable."""

    def __init__(self) -> None:
        # By public id: when, by `time.monotonic`, and a hash of the header. Only keys that were valid are here.
        self._keys: dict[str, tuple[float, bytes]] = {}

    def add(self, authorization: str) -> None:
        """Remember the key of a header, which is valid and has the scope `read`."""
        self._keys[api_key_actions.parse_public_id(authorization)] = time.monotonic(), self._hash(authorization)

    def discard(self, authorization: str) -> None:
        """Forget the key of a header, which was refused, unless another one with its public id was accepted."""
        if self.contains(authorization):
            self._keys.pop(api_key_actions.parse_public_id(authorization), None)

    def contains(self, authorization: str) -> bool:
        """Return whether the key of a header was accepted within `ACCEPTED_KEY_SECONDS`."""
        accepted_at, digest = self._keys.get(api_key_actions.parse_public_id(authorization), (-math.inf, b""))
        is_same = hmac.compare_digest(digest, self._hash(authorization))
        return is_same and time.monotonic() - accepted_at < ACCEPTED_KEY_SECONDS

    @staticmethod
    def _hash(authorization: str) -> bytes:
        return hashlib.sha256(authorization.encode()).digest()


def create_metrics_blueprint(version: str) -> Blueprint:
    """Create the blueprint of the metrics endpoint.

    :param version: the version of Onecode, shown in the metrics.
    """
    blueprint = Blueprint("metrics", __name__)
    accepted_keys = _AcceptedKeys()

    @blueprint.get("/metrics")
    def metrics() -> Response:
        """Return the metrics.

        Most are read from the database, so every web server returns the same; a few belong to the server that responds.
        """
        authorization = request.headers.get("Authorization", "")
        api_key_actions.check_authorization_format(authorization)
        g.write_check = _check_writes()
        g.is_accepted = accepted_keys.contains(authorization)
        with database_timeouts.statement_deadline(
            READ_SECONDS if g.write_check.is_writable else READ_SECONDS_WITHOUT_WRITES
        ):
            try:
                authenticate("read")
            except DomainError:
                accepted_keys.discard(authorization)
                raise
            accepted_keys.add(authorization)
            g.is_accepted = True
            return _metrics_response(monitoring_queries.collect_metrics(), _server_metrics(version))

    @blueprint.errorhandler(OperationalError)
    @blueprint.errorhandler(InterfaceError)
    @blueprint.errorhandler(NotSupportedError)
    @blueprint.errorhandler(PoolTimeoutError)
    def handle_database_unavailable(error: DBAPIError | PoolTimeoutError) -> Response:
        """Return 200 with `onecode_database_up 0` when the database is unavailable or too slow, or a standby.

        With an error status Prometheus would only record `up 0`, as if the web server were down. A key that cannot be
        looked up, and was not accepted before, gets only what `/healthz` and `/readyz` reveal as well.
        """
        if isinstance(error, NotSupportedError) and not database_health.is_read_only(error):
            raise error
        log.warning("metrics unavailable: %s", type(getattr(error, "orig", error)).__name__)
        db.session.rollback()
        return _metrics_response(None, _server_metrics(version))

    return blueprint


def _check_writes() -> WriteCheck:
    """Run the check of `/readyz`, which takes at most `readiness.CHECK_SECONDS`.

    Without any response, the request opens no connection: it would wait for several seconds at each host, longer than
    Prometheus waits.
    """
    started_at = time.monotonic()
    error = readiness.check_readiness(current_app)
    if isinstance(error, readiness.ServerSilent):
        settings: Settings = current_app.config["SETTINGS"]
        database_timeouts.note_connect_timeout(settings.libpq_url)
    return WriteCheck(error is None, time.monotonic() - started_at)


def _server_metrics(version: str) -> ServerMetrics:
    return ServerMetrics(version, web_metrics.collect_web_metrics() if g.is_accepted else None, g.write_check)


def _metrics_response(snapshot: MetricsSnapshot | None, server: ServerMetrics) -> Response:
    body, media_type = exposition.render_metrics(snapshot, server, request.headers.get("Accept", ""))
    return Response(body, content_type=media_type)
