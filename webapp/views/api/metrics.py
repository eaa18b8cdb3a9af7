"""`/metrics`: the figures for Prometheus, to whoever has a key with the scope `read`."""

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
    """The page, telling of this release of the program."""
    door = Blueprint("metrics", __name__)

    @door.get("/metrics")
    def metrics() -> Response:
        """The figures as they stand in the database, so the same from every web machine."""
        authenticate("read")
        return answer(monitoring_queries.collect_metrics())

    @door.errorhandler(OperationalError)
    @door.errorhandler(InterfaceError)
    @door.errorhandler(TimeoutError)
    def away(error: OperationalError | InterfaceError | TimeoutError) -> Response:
        """Without the database: 200 and `onecode_database_up 0`. Of any other answer Prometheus keeps `up 0` alone,
        which is what a dead web server looks like. Anybody gets it, for no key can be looked up; `/readyz` tells the
        same.
        """
        log.warning("no figures: the database does not answer (%s)", type(error).__name__)
        db.session.rollback()
        return answer(None)

    def answer(figures: MetricsSnapshot | None) -> Response:
        body, media_type = exposition.render_metrics(figures, release, request.headers.get("Accept", ""))
        return Response(body, content_type=media_type)

    return door
