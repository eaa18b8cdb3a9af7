"""`/metrics` for Prometheus. It requires an API key with the scope `read`."""

from __future__ import annotations

import logging
import time

from flask import Blueprint, Response, current_app, g, request
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from webapp.core import database_connections, web_metrics
from webapp.core.extensions import db
from webapp.monitoring import exposition, readiness
from webapp.monitoring import queries as monitoring_queries
from webapp.monitoring.exposition import ServerMetrics, WriteCheck
from webapp.monitoring.queries import MetricsSnapshot
from webapp.views.api.blueprint import authenticate

log = logging.getLogger(__name__)

# Seconds to wait for each statement. The default scrape timeout of Prometheus is ten seconds.
READ_SECONDS = 5.0
# While the database does not respond to writes: it may not respond at all, and a new connection takes as long again.
READ_SECONDS_WITHOUT_WRITES = 1.5


def create_metrics_blueprint(version: str) -> Blueprint:
    """Create the blueprint of the metrics endpoint.

    :param version: the version of Onecode, shown in the metrics.
    """
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        """Return the metrics.

        Most are read from the database, so every web server returns the same; a few belong to the server that responds.
        """
        g.write_check = _check_writes()
        with database_connections.statement_deadline(
            READ_SECONDS if g.write_check.is_writable else READ_SECONDS_WITHOUT_WRITES
        ):
            authenticate("read")
            return _metrics_response(monitoring_queries.collect_metrics(), _server_metrics(version))

    @blueprint.errorhandler(OperationalError)
    @blueprint.errorhandler(InterfaceError)
    @blueprint.errorhandler(PoolTimeoutError)
    def handle_database_unavailable(error: OperationalError | InterfaceError | PoolTimeoutError) -> Response:
        """Return 200 with `onecode_database_up 0` when the database is unavailable or too slow.

        With an error status Prometheus would only record `up 0`, as if the web server were down. The key is not
        checked, because it cannot be looked up; `/readyz` reveals the same.
        """
        log.warning("metrics unavailable: %s", type(getattr(error, "orig", error)).__name__)
        db.session.rollback()
        return _metrics_response(None, _server_metrics(version))

    return blueprint


def _check_writes() -> WriteCheck:
    """Run the check of `/readyz`, which takes at most `readiness.CHECK_SECONDS`."""
    started_at = time.monotonic()
    error = readiness.check_readiness(current_app)
    return WriteCheck(error is None, time.monotonic() - started_at)


def _server_metrics(version: str) -> ServerMetrics:
    return ServerMetrics(version, web_metrics.collect_web_metrics(), g.write_check)


def _metrics_response(snapshot: MetricsSnapshot | None, server: ServerMetrics) -> Response:
    body, media_type = exposition.render_metrics(snapshot, server, request.headers.get("Accept", ""))
    return Response(body, content_type=media_type)
