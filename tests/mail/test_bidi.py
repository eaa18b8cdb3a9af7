"""Which values are isolated from text in the other direction."""

from __future__ import annotations

from html import escape

import pytest

from webapp.mail.bidi import PlaceholderRenderer, is_text_right_to_left, isolate_html_placeholders, isolate_placeholders
from webapp.mail.template import Placeholder, TemplateParts

READ = ("customer.name", "customer.email", "offer.name", "offer.discount", "offer.ends", "shop.name")
COPIED = ("offer.code", "link", "unsubscribe")


def test_values_that_are_copied_are_not_isolated() -> None:
    parts = tuple(Placeholder(name, "fallback") for name in (*READ, *COPIED))
    expected = [Placeholder(name, "fallback", name in READ) for name in (*READ, *COPIED)]
    assert list(isolate_placeholders(("Hi ", *parts))) == ["Hi ", *expected]
    in_html = isolate_html_placeholders(("<p>", *parts, "</p>"))
    assert list(in_html) == ["<p>", *expected, "</p>"]


def test_values_in_attributes_are_not_isolated() -> None:
    name = Placeholder("customer.name")
    isolated = isolate_html_placeholders(('<p title="', name, '">', name, "</p>"))
    assert [part.is_isolated for part in isolated if isinstance(part, Placeholder)] == [False, True]


@pytest.mark.parametrize(
    ("is_right_to_left", "value", "expected"),
    [
        (False, "Ada", "Ada"),
        (False, "Zoë", "Zoë"),
        (False, "עדה", "<עדה>"),
        (False, "آدا", "<آدا>"),
        (False, "٣١", "<٣١>"),
        (False, "Ada עדה", "<Ada עדה>"),
        (True, "עדה", "עדה"),
        (True, "Ada", "<Ada>"),
        (True, "عدد Ada", "<عدد Ada>"),
        (True, "12 %", "12 %"),
    ],
)
def test_a_value_of_the_other_direction_is_isolated(is_right_to_left: bool, value: str, expected: str) -> None:
    render = PlaceholderRenderer(str, is_right_to_left, "<", ">")
    assert render(Placeholder("customer.name", is_isolated=True), value) == expected
    assert render(Placeholder("customer.name"), value) == value


def test_a_fallback_is_escaped_and_never_isolated() -> None:
    render = PlaceholderRenderer(escape, False)
    assert render(Placeholder("customer.name", "<עדה>", True), "") == "&lt;עדה&gt;"
    assert render(Placeholder("customer.name", "x", True), "<עדה>") == "\u2068&lt;עדה&gt;\u2069"


@pytest.mark.parametrize(
    ("parts", "direction"),
    [
        (("12 abc עדה",), False),
        (("12 עדה abc",), True),
        (("(٣) آدا abc",), True),
        ((Placeholder("customer.name", "abc"), "עדה"), True),
        (("12, ", "abc"), False),
        (("12 ٣ %",), None),
        ((), None),
    ],
)
def test_the_first_strong_character_determines_the_direction(parts: TemplateParts, direction: bool | None) -> None:
    for default in (False, True):
        assert is_text_right_to_left(parts, default) is (default if direction is None else direction)
