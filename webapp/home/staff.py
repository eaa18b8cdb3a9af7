"""The first page: how things are going and what needs attention."""

from __future__ import annotations

from flask import Blueprint
from werkzeug.wrappers import Response

from webapp.web import render

room = Blueprint("home", __name__)


@room.get("/")
def index() -> Response:
    return render("home.html")
