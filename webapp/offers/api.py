"""JSON calls of offers."""

from __future__ import annotations

from flask_openapi import APIBlueprint

room = APIBlueprint("offers", __name__)
