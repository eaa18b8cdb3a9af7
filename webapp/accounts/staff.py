"""Staff screens of accounts."""

from __future__ import annotations

from flask import Blueprint

from webapp.accounts import models  # noqa: F401

room = Blueprint("accounts", __name__)
