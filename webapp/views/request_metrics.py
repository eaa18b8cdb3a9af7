"""Count the requests of each route group for `/metrics`."""

from __future__ import annotations

import time

from flask import Flask, Response, g, request

from webapp.core import web_metrics
from webapp.core.web_metrics import RouteGroup

# Redeeming is what a shop waits for; it has the strictest alerts.
REDEEM_ENDPOINTS = {
    "api.redemptions.redeem",
    "public.redemptions.redeem",
    "public.redemptions.redeem_personal_link",
}
HEALTH_ENDPOINTS = {"healthz", "readyz", "metrics.metrics"}
GROUPS_BY_BLUEPRINT: dict[str, RouteGroup] = {"api": "api", "public": "public", "staff": "staff"}


def init_app(app: Flask) -> None:
    """Count each request after its response was built. Static files are not counted."""

    @app.after_request
    def count_request(response: Response) -> Response:
        started_at = g.get("started_at")
        seconds = time.perf_counter() - started_at if started_at else 0.0
        web_metrics.count_request(get_route_group(request.endpoint), response.status_code, seconds)
        return response


def get_route_group(endpoint: str | None) -> RouteGroup:
    """Return the group of an endpoint; `none` for a URL that has no route."""
    if endpoint in REDEEM_ENDPOINTS:
        return "redeem"
    if endpoint in HEALTH_ENDPOINTS:
        return "health"
    return GROUPS_BY_BLUEPRINT.get((endpoint or "").partition(".")[0], "none")
