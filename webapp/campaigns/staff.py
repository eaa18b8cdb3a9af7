"""Staff screens of campaigns."""

from __future__ import annotations

from flask import Blueprint

from webapp.campaigns import models  # noqa: F401

room = Blueprint("campaigns", __name__)
