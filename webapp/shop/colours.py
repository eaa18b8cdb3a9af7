"""The shop's colour made readable: which text goes on it, and which shades of it can be read on white and on dark.

Contrast as WCAG 2.2 defines it: (L1 + 0.05) / (L2 + 0.05), where L is the relative luminance of the lighter and the
darker colour; 4.5 is what text needs (success criterion 1.4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

MIN_TEXT_CONTRAST = 4.5
WHITE, BLACK = "#ffffff", "#000000"
# The sheet of a mail, by day and by night.
LIGHT_BACKGROUND, DARK_BACKGROUND = "#ffffff", "#1b2225"
_SHADE_STEPS = 40

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Palette:
    """One colour on one ground. `button` with `on_button` written on it; `accent` for words on the sheet; `tint` for
    the field of the code, with `code` written on it and `edge` round it."""

    button: str
    button_text: str
    accent: str
    code_background: str
    code_text: str
    code_border: str


@lru_cache(100)
def build_palette(colour: str, sheet: str = LIGHT_BACKGROUND) -> Palette:
    """What a mail needs of a colour (#rrggbb). Every text has a contrast of 4.5 or more to what it stands on."""
    tint = mix_colours(colour, sheet, 0.1 if sheet == LIGHT_BACKGROUND else 0.2)
    button = colour if contrast_ratio(colour, sheet) >= 1.2 else readable_shade(colour, sheet)
    return Palette(
        button,
        contrasting_text(button),
        readable_shade(colour, sheet),
        tint,
        readable_shade(colour, tint),
        mix_colours(colour, sheet, 0.5),
    )


def contrasting_text(ground: str) -> str:
    """White or black, for text on a colour. One of the two always has at least 4.58."""
    return WHITE if contrast_ratio(WHITE, ground) >= MIN_TEXT_CONTRAST else BLACK


def hover_background(ground: str) -> str:
    """A ground as one points at it: farther from what stands on it, so that reads no worse."""
    return mix_colours(BLACK if contrasting_text(ground) == WHITE else WHITE, ground, 0.15)


def readable_shade(colour: str, ground: str) -> str:
    """The colour, darkened or lightened as little as text on that ground needs."""
    towards = contrasting_text(ground)
    for step in range(_SHADE_STEPS + 1):
        shade = mix_colours(towards, colour, step / _SHADE_STEPS)
        if contrast_ratio(shade, ground) >= MIN_TEXT_CONTRAST:
            return shade
    return towards


def contrast_ratio(one: str, other: str) -> float:
    """From 1 (the same) to 21 (black on white)."""
    darker, lighter = sorted((relative_luminance(one), relative_luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def relative_luminance(colour: str) -> float:
    """Relative luminance: 0 of black, 1 of white."""
    red, green, blue = (_linearise(channel) for channel in _parse_rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def mix_colours(colour: str, ground: str, share: float) -> str:
    """So much of a colour in another one."""
    pairs = zip(_parse_rgb(colour), _parse_rgb(ground), strict=True)
    return "#" + "".join(f"{round(255 * (share * one + (1 - share) * other)):02x}" for one, other in pairs)


def _parse_rgb(colour: str) -> Rgb:
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return red, green, blue


def _linearise(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)
