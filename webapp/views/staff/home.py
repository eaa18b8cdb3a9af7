"""The first page: how things are going and what needs attention."""

from __future__ import annotations

from typing import Any

from flask import Blueprint
from flask_login import current_user
from werkzeug.wrappers import Response

from webapp.campaigns import queries as campaign_queries
from webapp.core.formatting import format_date
from webapp.overview import dashboard
from webapp.views.rendering import render

blueprint = Blueprint("home", __name__)


@blueprint.get("/")
def index() -> Response:
    """All of it; while mails go out, what changes renews itself."""
    figures = dashboard.get_dashboard_figures(current_user.time_zone)
    chart = {
        "x": [day.isoformat() for day, _ in figures.redemptions_per_day],
        "x_words": [format_date(day) for day, _ in figures.redemptions_per_day],
        "series": [{"label": "Redemptions", "values": [n for _, n in figures.redemptions_per_day]}],
        "kind": "bars",
    }
    return render(
        "home.html",
        chart=chart,
        steps=dashboard.get_onboarding_steps(),
        **_live_values(figures),
    )


@blueprint.get("/now")
def live_section() -> Response:
    """The piece that renews itself while mails go out."""
    return render("_now.html", steps=None, **_live_values(dashboard.get_dashboard_figures(current_user.time_zone)))


def _live_values(figures: dashboard.DashboardFigures) -> dict[str, Any]:
    return {
        "figures": figures,
        "attention": dashboard.get_attention_list(),
        "days": dashboard.DASHBOARD_DAYS,
        "is_live": campaign_queries.has_active_campaign(),
    }
