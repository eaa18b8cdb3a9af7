"""JSON calls of campaigns."""

from __future__ import annotations

from flask_openapi import APIBlueprint

room = APIBlueprint("campaigns", __name__)
