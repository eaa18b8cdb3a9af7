"""Any colour of a shop leaves its mails readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.shop import colours
from webapp.shop.colours import DARK_BACKGROUND, LIGHT_BACKGROUND, MIN_TEXT_CONTRAST, contrast_ratio

COLOURS = st.integers(0, 0xFFFFFF).map(lambda number: f"#{number:06x}")


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    # The corners of the formula, and pairs whose ratio is often printed.
    [
        ("#000000", "#ffffff", 21.0),
        ("#ffffff", "#ffffff", 1.0),
        ("#767676", "#ffffff", 4.54),
        ("#777777", "#ffffff", 4.48),
        ("#ff0000", "#ffffff", 4.0),
        ("#0000ff", "#ffffff", 8.59),
    ],
)
def test_contrast_is_what_wcag_says(one: str, other: str, ratio: float) -> None:
    assert contrast_ratio(one, other) == pytest.approx(ratio, abs=0.005)
    assert contrast_ratio(other, one) == contrast_ratio(one, other)


@given(colour=COLOURS, sheet=st.sampled_from((LIGHT_BACKGROUND, DARK_BACKGROUND)))
def test_every_text_on_and_of_any_colour_can_be_read(colour: str, sheet: str) -> None:
    tones = colours.build_palette(colour, sheet)
    assert contrast_ratio(tones.button_text, tones.button) >= MIN_TEXT_CONTRAST
    assert contrast_ratio(tones.accent, sheet) >= MIN_TEXT_CONTRAST
    assert contrast_ratio(tones.code_text, tones.code_background) >= MIN_TEXT_CONTRAST


@given(COLOURS)
def test_a_colour_that_can_be_read_stays_as_it_is(colour: str) -> None:
    if contrast_ratio(colour, LIGHT_BACKGROUND) >= MIN_TEXT_CONTRAST:
        assert colours.readable_shade(colour, LIGHT_BACKGROUND) == colour
