"""Staff screens of offers."""

from __future__ import annotations

from flask import Blueprint

from webapp.offers import models  # noqa: F401

room = Blueprint("offers", __name__)
