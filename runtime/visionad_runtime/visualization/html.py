"""HTML pages from the templates in ``templates/``. A page is one file and fetches nothing.

Templates escape every value, and a content security policy in each page forbids other resources. Jinja2 belongs to the extras
``eval`` and ``export``. It is imported when a page is rendered.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import VisionADError
from .thumbnails import Rgb, jpeg

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).with_name("templates")
HEADLINES = 4
"""Number of facts that a page shows large, at its top."""


def require_jinja() -> None:
    """Check that pages can be rendered, before minutes of work.

    Raises:
        VisionADError: Jinja2 is not installed.
    """
    if importlib.util.find_spec("jinja2") is None:
        raise VisionADError("an HTML report needs jinja2: pip install 'visionad[eval]'")


def render(template: str, **values: Any) -> str:
    """Render a template of ``templates/``. Every value is escaped.

    Args:
        template: file name of the template.
        values: values by name. A name that the template uses must be given.

    Returns:
        The page.
    """
    return _environment().get_template(template).render(headlines=HEADLINES, **values)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    environment.filters["fixed"] = lambda value, digits: f"{value:.{digits}f}"
    return environment


def number(value: float | None) -> str:
    """Format a number with three significant digits; a dash for ``None``, NaN and infinity."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


@dataclass(frozen=True)
class InlineImage:
    """An image embedded in a page.

    Attributes:
        source: data URI of the JPEG.
        alt: description of the image.
        width: pixels.
        height: pixels.
    """

    source: str
    alt: str
    width: int
    height: int

    @classmethod
    def of_jpeg(cls, data: bytes, alt: str) -> InlineImage:
        """Wrap the bytes of a JPEG file."""
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
        return cls(f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}", alt, width, height)

    @classmethod
    def of_pixels(cls, pixels: Rgb, alt: str, side: int) -> InlineImage:
        """Encode uint8 (H, W, 3) RGB, its longest side at most ``side``."""
        return cls.of_jpeg(jpeg(pixels, side), alt)


@dataclass(frozen=True)
class Axis:
    """An axis with round ticks.

    Attributes:
        low: value at its start.
        high: value at its end.
        step: distance of the ticks.
    """

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
        """Return an axis with round ticks that holds all values with a margin."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        span = (high - low) or max(abs(high), 1.0)
        low, high = low - 0.06 * span, high + 0.06 * span
        rough = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        return cls(low, high, min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - rough)))

    def at(self, value: float) -> float:
        """Return the position of a value, 0..1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self) -> list[float]:
        """Return the values to mark."""
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
        return [k * self.step for k in range(first, last + 1)]


@dataclass(frozen=True)
class Strip:
    """Frame of a wide diagram over an axis, in units of its view box.

    Attributes:
        axis: horizontal axis.
        height: height of the plotted area.
        left: left margin.
        right: right margin.
        top: upper margin.
        width: width of the whole diagram.
    """

    axis: Axis
    height: float
    left: float
    right: float
    top: float
    width: float = 1000

    @property
    def bottom(self) -> float:
        """Lower end of the diagram."""
        return self.top + self.height

    @property
    def room(self) -> float:
        """Width between the margins."""
        return self.width - self.left - self.right

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        return self.left + self.room * self.axis.at(value)

    def ticks(self) -> list[tuple[float, str]]:
        """Return position and label of each tick."""
        return [(self.x(value), f"{value:.4g}") for value in self.axis.ticks()]
