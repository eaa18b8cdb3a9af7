"""Where the markers of placeholders are in an HTML document."""

from __future__ import annotations

import pytest
from flask import Flask

from webapp.mail.marker_locations import MarkerLocations, locate_markers
from webapp.mail.template import MARKER_CLOSE, MARKER_OPEN

M = f"{MARKER_OPEN}7{MARKER_CLOSE}"
TEXT, ATTRIBUTE, LINK = MarkerLocations({7}, {7}), MarkerLocations({7}), MarkerLocations({7}, set(), {7})
SCRIPT = "a script"


def hidden(location: str, found: bool = False) -> MarkerLocations:
    return MarkerLocations({7} if found else set(), hidden={7: location})


@pytest.mark.parametrize(
    ("html", "locations"),
    [
        (f"<p>{M}</p>", TEXT),
        (f"{M}", TEXT),
        (f"<title>x</title><p>{M}", TEXT),
        (f"<title>{M}</title>", ATTRIBUTE),
        (f"<title><b>{M}</title>", ATTRIBUTE),
        (f"<img alt='{M}'>", ATTRIBUTE),
        (f"<a href='{M}'>x</a>", LINK),
        (f"<a href=' {M}?x'>x</a>", LINK),
        (f"<map><area href='{M}'></map>", LINK),
        (f"<a href='https://example.com/{M}'>x</a>", ATTRIBUTE),
        (f"<a title='{M}'>x</a>", ATTRIBUTE),
        (f"<link href='{M}'>", ATTRIBUTE),
        (f"<!--[if mso]>{M}<![endif]-->", ATTRIBUTE),
        (f"<template><a href='{M}'>x</a></template>", ATTRIBUTE),
        (f"<p onclick='{M}'>", hidden(SCRIPT, found=True)),
        (f"<p {M}>", hidden("the name of an attribute")),
        (f"<p{M}>", hidden("the name of a tag")),
        (f"</p{M}>", hidden("the name of a tag")),
        (f"<!-- {M} -->", hidden("a comment")),
        (f"<!--[iffy {M}-->", hidden("a comment")),
        (f"<!DOCTYPE {M}>", hidden("a declaration")),
        (f"<?x {M}>", hidden("a declaration")),
        (f"<![CDATA[{M}]]>", hidden("a declaration")),
        (f"<script>{M}</script>", hidden(SCRIPT)),
        (f"<style>{M}</style>", hidden("a style sheet")),
        (f"<template><p>{M}</p></template>", hidden("a template that is never shown")),
        (f"<template></template><p>{M}", TEXT),
        (f"<object><select></object>{M}", TEXT),
        (f"<object><select></select>{M}</object>", hidden("an element that is never shown")),
        (f"<select><option>{M}", hidden("a selection list")),
        (f"</select><p>{M}", TEXT),
    ],
)
def test_a_marker_has_one_location(app: Flask, html: str, locations: MarkerLocations) -> None:
    assert locate_markers(html) == locations
