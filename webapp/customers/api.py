"""JSON calls of customers."""

from __future__ import annotations

from flask_openapi import APIBlueprint

room = APIBlueprint("customers", __name__)
