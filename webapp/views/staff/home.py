"""The home page: current figures and what needs attention."""

from __future__ import annotations

from typing import Any

from flask import Blueprint
from flask_babel import gettext as _
from flask_login import current_user
from werkzeug.wrappers import Response

from webapp.campaigns import queries as campaign_queries
from webapp.core.formatting import format_date
from webapp.monitoring import queries as monitoring_queries
from webapp.overview import dashboard
from webapp.views.rendering import render
from webapp.views.staff.blueprint import refreshes_itself

blueprint = Blueprint("home", __name__)


@blueprint.get("/")
def index() -> Response:
    """Show the home page. While a campaign is prepared or sent, a section of it is refreshed."""
    figures = dashboard.get_dashboard_figures(current_user.time_zone)
    chart = {
        "x": [day.isoformat() for day, _count in figures.redemptions_per_day],
        "x_texts": [format_date(day) for day, _count in figures.redemptions_per_day],
        "series": [{"label": _("Redemptions"), "values": [count for _day, count in figures.redemptions_per_day]}],
        "kind": "bars",
    }
    return render(
        "home.html",
        chart=chart,
        steps=dashboard.get_onboarding_steps(),
        **_figures_context(figures),
    )


@blueprint.get("/now")
@refreshes_itself
def figures_section() -> Response:
    """Render the section that is refreshed while a campaign is prepared or sent."""
    return render("_now.html", steps=None, **_figures_context(dashboard.get_dashboard_figures(current_user.time_zone)))


def _figures_context(figures: dashboard.DashboardFigures) -> dict[str, Any]:
    return {
        "figures": figures,
        "attention": dashboard.get_attention_list(),
        "worker_problem": monitoring_queries.find_worker_problem(),
        "days": dashboard.DASHBOARD_DAYS,
        "is_refreshing": campaign_queries.has_campaign_in_progress(),
    }
