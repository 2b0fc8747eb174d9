"""Colors and text of drawn images."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont

Color = tuple[int, int, int]

INK: Color = (238, 240, 243)
FAINT: Color = (150, 156, 166)
PANEL: Color = (22, 24, 29)


@lru_cache(maxsize=16)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of a size in pixels, which is embedded in Pillow: the same on every machine."""
    return ImageFont.load_default(size=size)


def shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """Return a text in one line, cut so that it fits.

    Args:
        text: the text.
        font: its font.
        room: width in pixels.
    """
    text = " ".join(text.split())
    if font.getbbox(text)[2] <= room:
        return text
    while text and font.getbbox(text + "...")[2] > room:
        text = text[:-1]
    return text + "..."
