"""Staff screens of redemptions."""

from __future__ import annotations

from flask import Blueprint

from webapp.redemptions import models  # noqa: F401

room = Blueprint("redemptions", __name__)
