"""`/metrics` for Prometheus. It requires an API key with the scope `read`."""

from __future__ import annotations

import logging

from flask import Blueprint, Response, request
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError

from webapp.core.extensions import db
from webapp.monitoring import exposition
from webapp.monitoring import queries as monitoring_queries
from webapp.monitoring.queries import MetricsSnapshot
from webapp.views.api.blueprint import authenticate

log = logging.getLogger(__name__)


def create_metrics_blueprint(release: str) -> Blueprint:
    """Create the blueprint of the metrics page.

    :param release: version of the program, shown in the metrics.
    """
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    def metrics() -> Response:
        """Return the metrics. They are read from the database, so every web process returns the same."""
        authenticate("read")
        return metrics_response(monitoring_queries.collect_metrics())

    @blueprint.errorhandler(OperationalError)
    @blueprint.errorhandler(InterfaceError)
    @blueprint.errorhandler(TimeoutError)
    def handle_database_unavailable(error: OperationalError | InterfaceError | TimeoutError) -> Response:
        """Answer 200 with `onecode_database_up 0` when the database is unavailable.

        With an error status Prometheus would only record `up 0`, which looks like a dead web server. No key is needed
        then, since none can be looked up; `/readyz` reveals the same.
        """
        log.warning("metrics unavailable: the database does not answer (%s)", type(error).__name__)
        db.session.rollback()
        return metrics_response(None)

    def metrics_response(snapshot: MetricsSnapshot | None) -> Response:
        body, media_type = exposition.render_metrics(snapshot, release, request.headers.get("Accept", ""))
        return Response(body, content_type=media_type)

    return blueprint
