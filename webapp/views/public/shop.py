"""The style sheet with the shop's colour.

The Content-Security-Policy of the customer pages forbids inline styles.
"""

from __future__ import annotations

import re

from flask import Blueprint, Response, abort, render_template

from webapp.shop.colours import DARK_BACKGROUND, build_palette, hover_background

blueprint = Blueprint("shop", __name__)


@blueprint.get("/colour/<string(length=6):colour>.css")
def colour(colour: str) -> Response:
    """Return the style sheet of a colour.

    The URL contains the colour, so browsers may cache it permanently.
    """
    if not re.fullmatch("[0-9a-f]{6}", colour):
        abort(404)
    light, dark = build_palette(f"#{colour}"), build_palette(f"#{colour}", DARK_BACKGROUND)
    style_sheet = render_template("shop/colour.css", light=light, dark=dark, hover_background=hover_background)
    response = Response(style_sheet, mimetype="text/css")
    response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
    return response
