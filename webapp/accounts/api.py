"""JSON calls of accounts."""

from __future__ import annotations

from flask_openapi import APIBlueprint

room = APIBlueprint("accounts", __name__)
