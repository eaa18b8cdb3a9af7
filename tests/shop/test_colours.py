"""Emails are readable with any colour of the shop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.shop import colours
from webapp.shop.colours import DARK_BACKGROUND, LIGHT_BACKGROUND, Palette, contrast_ratio

# WCAG 2.2, success criterion 1.4.3.
MIN_TEXT_CONTRAST = 4.5

COLOURS = st.integers(0, 0xFFFFFF).map(lambda number: f"#{number:06x}")


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    # The extremes of the formula, and pairs with well-known ratios.
    [
        ("#000000", "#ffffff", 21.0),
        ("#ffffff", "#ffffff", 1.0),
        ("#767676", "#ffffff", 4.54),
        ("#777777", "#ffffff", 4.48),
        ("#ff0000", "#ffffff", 4.0),
        ("#0000ff", "#ffffff", 8.59),
        ("#00ff00", "#ffffff", 1.37),
        ("#0a0a0a", "#ffffff", 19.80),
    ],
)
def test_the_contrast_ratio_matches_wcag(one: str, other: str, ratio: float) -> None:
    assert contrast_ratio(one, other) == pytest.approx(ratio, abs=0.005)
    assert contrast_ratio(other, one) == contrast_ratio(one, other)


@given(colour=COLOURS, sheet=st.sampled_from((LIGHT_BACKGROUND, DARK_BACKGROUND)))
def test_every_text_of_a_palette_is_readable(colour: str, sheet: str) -> None:
    palette = colours.build_palette(colour, sheet)
    assert contrast_ratio(palette.button_text, palette.button) >= MIN_TEXT_CONTRAST
    assert contrast_ratio(palette.accent, sheet) >= MIN_TEXT_CONTRAST
    assert contrast_ratio(palette.code_text, palette.code_background) >= MIN_TEXT_CONTRAST


@given(COLOURS)
def test_a_readable_colour_is_not_changed(colour: str) -> None:
    if contrast_ratio(colour, LIGHT_BACKGROUND) >= MIN_TEXT_CONTRAST:
        assert colours.readable_shade(colour, LIGHT_BACKGROUND) == colour


@pytest.mark.parametrize(("colour", "shade"), [("#767676", "#767676"), ("#777777", "#747474"), ("#ffee00", "#807700")])
def test_a_colour_is_changed_just_enough(colour: str, shade: str) -> None:
    assert colours.readable_shade(colour, LIGHT_BACKGROUND) == shade


@pytest.mark.parametrize(
    ("colour", "sheet", "palette"),
    [
        (
            "#0f766e",
            LIGHT_BACKGROUND,
            Palette(
                "#0f766e", "#ffffff", "#0f766e", code_background="#e7f1f0", code_text="#0f766e", code_border="#87bbb6"
            ),
        ),
        (
            "#0f766e",
            DARK_BACKGROUND,
            Palette(
                "#0f766e", "#ffffff", "#45958f", code_background="#193334", code_text="#5da39d", code_border="#154c4a"
            ),
        ),
        # A button that could not be seen on its background gets a darker shade.
        (
            "#fefefe",
            LIGHT_BACKGROUND,
            Palette(
                "#727272", "#ffffff", "#727272", code_background="#ffffff", code_text="#727272", code_border="#fefefe"
            ),
        ),
    ],
    ids=["light", "dark", "white"],
)
def test_the_palette_has_shades_of_the_colour(colour: str, sheet: str, palette: Palette) -> None:
    assert colours.build_palette(colour, sheet) == palette
    assert colours.build_palette(colour) == colours.build_palette(colour, LIGHT_BACKGROUND)


@pytest.mark.parametrize(("colour", "hovered"), [("#0f766e", "#0d645e"), ("#ffee00", "#fff126")])
def test_a_hovered_button_has_more_contrast_to_its_text(colour: str, hovered: str) -> None:
    assert colours.hover_background(colour) == hovered
    text = colours.contrasting_text(colour)
    assert contrast_ratio(text, hovered) > contrast_ratio(text, colour)
