"""The shop's colour for the customer pages, whose policy allows no style of an element's own."""

from __future__ import annotations

import re

from flask import Blueprint, Response, abort, render_template

from webapp.shop.colours import DARK_BACKGROUND, build_palette, hover_background

blueprint = Blueprint("shop", __name__)


@blueprint.get("/colour/<string(length=6):colour>.css")
def colour(colour: str) -> Response:
    """What the pages take of a colour. Its address names it, so a browser may keep the answer for ever."""
    if not re.fullmatch("[0-9a-f]{6}", colour):
        abort(404)
    light, dark = build_palette(f"#{colour}"), build_palette(f"#{colour}", DARK_BACKGROUND)
    sheet = render_template("shop/colour.css", light=light, dark=dark, deeper=hover_background)
    answer = Response(sheet, mimetype="text/css")
    answer.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return answer
