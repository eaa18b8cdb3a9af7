"""Customer pages of redemptions."""

from __future__ import annotations

from flask import Blueprint

room = Blueprint("redemptions", __name__)
