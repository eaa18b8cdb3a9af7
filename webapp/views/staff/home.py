"""The first page: how things are going and what needs attention."""

from __future__ import annotations

from typing import Any

from flask import Blueprint
from flask_login import current_user
from werkzeug.wrappers import Response

from webapp.campaigns import queries as campaign_queries
from webapp.core.formatting import on
from webapp.overview import dashboard
from webapp.views.rendering import render

room = Blueprint("home", __name__)


@room.get("/")
def index() -> Response:
    """All of it; while mails go out, what changes renews itself."""
    figures = dashboard.figures(current_user.time_zone)
    chart = {
        "x": [day.isoformat() for day, _ in figures.per_day],
        "x_words": [on(day) for day, _ in figures.per_day],
        "series": [{"label": "Redemptions", "values": [n for _, n in figures.per_day]}],
        "kind": "bars",
    }
    return render(
        "home.html",
        chart=chart,
        steps=dashboard.steps(),
        **_live(figures),
    )


@room.get("/now")
def now() -> Response:
    """The piece that renews itself while mails go out."""
    return render("_now.html", steps=None, **_live(dashboard.figures(current_user.time_zone)))


def _live(figures: dashboard.Figures) -> dict[str, Any]:
    return {
        "figures": figures,
        "attention": dashboard.attention(),
        "days": dashboard.DAYS,
        "is_live": campaign_queries.is_anything_sent(),
    }
