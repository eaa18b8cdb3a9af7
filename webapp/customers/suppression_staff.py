"""Staff screens of the list of addresses that must not be mailed."""

from __future__ import annotations

from flask import Blueprint

room = Blueprint("suppressions", __name__)
