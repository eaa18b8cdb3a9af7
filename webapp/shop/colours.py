"""Derive readable colours from the colour of the shop.

They are for text on that colour, and for shades of it on light and dark backgrounds. The contrast is that of WCAG 2.2:
(L1 + 0.05) / (L2 + 0.05), where L1 and L2 are the relative luminances of the lighter and the darker colour; text needs
4.5 (success criterion 1.4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

MIN_TEXT_CONTRAST = 4.5
WHITE, BLACK = "#ffffff", "#000000"
# Background of an email in light and dark mode.
LIGHT_BACKGROUND, DARK_BACKGROUND = "#ffffff", "#1b2225"
_SHADE_STEPS = 40

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Palette:
    """Colours derived from one colour for one background, all as #rrggbb.

    `accent` is for text on the background; the others are for buttons and the box of the code.
    """

    button: str
    button_text: str
    accent: str
    code_background: str
    code_text: str
    code_border: str


@lru_cache(100)
def build_palette(colour: str, background: str = LIGHT_BACKGROUND) -> Palette:
    """Derive the palette of a colour (#rrggbb).

    Every text has at least the contrast `MIN_TEXT_CONTRAST` to its background.
    """
    code_background = mix_colours(colour, background, 0.1 if background == LIGHT_BACKGROUND else 0.2)
    button = colour if contrast_ratio(colour, background) >= 1.2 else readable_shade(colour, background)
    return Palette(
        button=button,
        button_text=contrasting_text(button),
        accent=readable_shade(colour, background),
        code_background=code_background,
        code_text=readable_shade(colour, code_background),
        code_border=mix_colours(colour, background, 0.5),
    )


def contrasting_text(background: str) -> str:
    """Return white or black for text on a colour.

    One of the two always has a contrast of at least 4.58.
    """
    return WHITE if contrast_ratio(WHITE, background) >= MIN_TEXT_CONTRAST else BLACK


def hover_background(background: str) -> str:
    """Return the background of a hovered button.

    It has more contrast to the text of the button than the normal background.
    """
    return mix_colours(BLACK if contrasting_text(background) == WHITE else WHITE, background, 0.15)


def readable_shade(colour: str, background: str) -> str:
    """Return the colour, darkened or lightened just enough for text on the background."""
    target = contrasting_text(background)
    for step in range(_SHADE_STEPS + 1):
        shade = mix_colours(target, colour, step / _SHADE_STEPS)
        if contrast_ratio(shade, background) >= MIN_TEXT_CONTRAST:
            return shade
    return target


def contrast_ratio(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 (equal) to 21 (black on white)."""
    darker, lighter = sorted((relative_luminance(one), relative_luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def relative_luminance(colour: str) -> float:
    """Return the relative luminance: 0 for black, 1 for white."""
    red, green, blue = (_linearise(channel) for channel in _parse_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def mix_colours(colour: str, other: str, share: float) -> str:
    """Mix two colours, with a share (0 to 1) of the first."""
    pairs = zip(_parse_rgb(colour), _parse_rgb(other), strict=True)
    return "#" + "".join(f"{round(255 * (share * first + (1 - share) * second)):02x}" for first, second in pairs)


def _parse_rgb(colour: str) -> Rgb:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def _linearise(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)
