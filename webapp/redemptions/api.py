"""JSON calls of redemptions."""

from __future__ import annotations

from flask_openapi import APIBlueprint

room = APIBlueprint("redemptions", __name__)
