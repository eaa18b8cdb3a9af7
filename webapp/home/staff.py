"""The first page: how things are going and what needs attention."""

from __future__ import annotations

from flask import Blueprint
from flask_login import current_user
from werkzeug.wrappers import Response

from webapp.home import queries
from webapp.web import render

room = Blueprint("home", __name__)


@room.get("/")
def index() -> Response:
    figures = queries.figures(current_user.time_zone)
    chart = {
        "x": [day.isoformat() for day, _ in figures.per_day],
        "series": [{"label": "Redemptions", "values": [n for _, n in figures.per_day]}],
        "kind": "bars",
    }
    return render(
        "home.html",
        figures=figures,
        chart=chart,
        steps=queries.steps(),
        attention=queries.attention(),
        days=queries.DAYS,
    )
