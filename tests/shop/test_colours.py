"""Emails are readable with any colour of the shop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.shop import colours
from webapp.shop.colours import DARK_BACKGROUND, LIGHT_BACKGROUND, MIN_TEXT_CONTRAST, contrast_ratio

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
