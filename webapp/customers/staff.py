"""Staff screens of customers."""

from __future__ import annotations

from flask import Blueprint

from webapp.customers import models  # noqa: F401

room = Blueprint("customers", __name__)
