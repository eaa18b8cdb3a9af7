"""Any colour of a shop leaves its mails readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapp.shop import colours
from webapp.shop.colours import DARK_SHEET, READABLE, SHEET, contrast

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
    assert contrast(one, other) == pytest.approx(ratio, abs=0.005)
    assert contrast(other, one) == contrast(one, other)


@given(colour=COLOURS, sheet=st.sampled_from((SHEET, DARK_SHEET)))
def test_every_text_on_and_of_any_colour_can_be_read(colour: str, sheet: str) -> None:
    tones = colours.tones(colour, sheet)
    assert contrast(tones.on_button, tones.button) >= READABLE
    assert contrast(tones.accent, sheet) >= READABLE
    assert contrast(tones.code, tones.tint) >= READABLE


@given(COLOURS)
def test_a_colour_that_can_be_read_stays_as_it_is(colour: str) -> None:
    if contrast(colour, SHEET) >= READABLE:
        assert colours.readable(colour, SHEET) == colour
