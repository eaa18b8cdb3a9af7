"""The first page: how things are going and what needs attention."""

from __future__ import annotations

from typing import Any

from flask import Blueprint
from flask_login import current_user
from werkzeug.wrappers import Response

from webapp.campaigns import queries as campaigns
from webapp.home import queries
from webapp.web import on, render

room = Blueprint("home", __name__)


@room.get("/")
def index() -> Response:
    """All of it; while mails go out, what changes renews itself."""
    figures = queries.figures(current_user.time_zone)
    chart = {
        "x": [day.isoformat() for day, _ in figures.per_day],
        "x_words": [on(day) for day, _ in figures.per_day],
        "series": [{"label": "Redemptions", "values": [n for _, n in figures.per_day]}],
        "kind": "bars",
    }
    return render(
        "home.html",
        chart=chart,
        steps=queries.steps(),
        **_live(figures),
    )


@room.get("/now")
def now() -> Response:
    """The piece that renews itself while mails go out."""
    return render("_now.html", steps=None, **_live(queries.figures(current_user.time_zone)))


def _live(figures: queries.Figures) -> dict[str, Any]:
    return {
        "figures": figures,
        "attention": queries.attention(),
        "days": queries.DAYS,
        "is_live": campaigns.is_anything_sent(),
    }
