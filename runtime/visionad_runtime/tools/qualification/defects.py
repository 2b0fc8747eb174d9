"""Synthetic defects, painted on good images: scratch, spot, missing piece, stain, texture change, shift.

Each has a longest extent in pixels and a contrast between 0 and 1. What the contrast scales depends on the kind: a change of
brightness as a share of the full range (scratch, spot, missing piece), absorption (stain), the roughness of another texture, or the
displacement as a share of the extent (shift). Outlines and directions are drawn from a seed, so that a defect can be painted again
bit for bit. Painted defects are a model. Real ones with masks say how far the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ...images.pixels import RGB8, to_rgb

F32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
Kind = Literal["scratch", "spot", "missing piece", "stain", "texture change", "shift"]
KINDS: tuple[Kind, ...] = get_args(Kind)

VISIBLE = 2.0
"""Largest change of a gray level below which nothing was painted, as when a plain area is shifted."""


@dataclass(frozen=True)
class Defect:
    """A defect to paint.

    Attributes:
        kind: what it is.
        x: horizontal position of its center, in pixels.
        y: vertical position.
        size: longest extent in pixels, above 0.
        contrast: 0 to 1.
        seed: of its outline, direction and texture.
    """

    kind: Kind
    x: float
    y: float
    size: float
    contrast: float
    seed: int


@dataclass(frozen=True, eq=False)
class Painted:
    """A painted image.

    Attributes:
        rgb: uint8 (H, W, 3).
        mask: bool (H, W), what the defect covers.
        change: largest change of a gray level.
    """

    rgb: RGB8
    mask: Mask
    change: float


def paint(image: RGB8, defect: Defect) -> Painted:
    """Paint a defect on an image, which stays as it is. What would lie outside the image is cut off.

    Args:
        image: uint8 (H, W, 3) RGB or (H, W) gray.
        defect: the defect.
    """
    rgb = to_rgb(image) if image.ndim == 2 else image
    height, width = rgb.shape[:2]
    reach = math.ceil(defect.size) + 3
    left, top = max(0, int(defect.x) - reach), max(0, int(defect.y) - reach)
    right, bottom = min(width, int(defect.x) + reach + 1), min(height, int(defect.y) + reach + 1)
    window = rgb[top:bottom, left:right].astype(np.float32)
    rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
    rng = np.random.default_rng(defect.seed)
    angle = float(rng.uniform(0, 2 * math.pi))
    x, y = columns - np.float32(defect.x), rows - np.float32(defect.y)
    along = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle))
    across = y * np.float32(math.cos(angle)) - x * np.float32(math.sin(angle))
    painted, alpha = _PAINTERS[defect.kind](window, along, across, defect, rng)
    changed = np.clip(np.rint(painted), 0, 255).astype(np.uint8)
    out, mask = rgb.copy(), np.zeros((height, width), np.bool_)
    out[top:bottom, left:right] = changed
    mask[top:bottom, left:right] = alpha > 0.5
    change = float(np.abs(changed.astype(np.int16) - rgb[top:bottom, left:right]).max(initial=0))
    return Painted(out, mask, change)


def _scratch(window: F32, along: F32, across: F32, defect: Defect, rng: np.random.Generator) -> tuple[F32, F32]:
    """A thin curved groove that tapers at its ends, with a fainter burr of the other brightness beside it."""
    half = defect.size / 2
    bend = float(rng.uniform(-0.12, 0.12))
    thickness = max(1.2, defect.size / 30)
    place = across - np.float32(bend / max(half, 1e-6)) * (along**2 - np.float32(half**2 / 3))
    taper = np.clip(1 - (np.abs(along) / half) ** 4, 0, 1)
    groove: F32 = (np.clip((thickness / 2 - np.abs(place)) + 0.5, 0, 1) * taper).astype(np.float32)
    burr: F32 = (np.clip((thickness / 2 - np.abs(place - thickness)) + 0.5, 0, 1) * taper).astype(np.float32)

    step = _step(window, groove, defect.contrast)
    return window + (step * (groove - np.float32(0.3) * burr))[..., None], groove


def _spot(window: F32, along: F32, across: F32, defect: Defect, rng: np.random.Generator) -> tuple[F32, F32]:
    """A compact particle or blowhole with a soft rim."""
    alpha = _blob(along, across, defect.size, rng, roughness=0.08, soft=0.15, stretch=float(rng.uniform(0.75, 1)))
    return window + (_step(window, alpha, defect.contrast) * alpha)[..., None], alpha


def _missing(window: F32, along: F32, across: F32, defect: Defect, rng: np.random.Generator) -> tuple[F32, F32]:
    """A chip: the surface ends at a hard, irregular outline; what lies behind is flat, and shaded along one edge."""
    alpha = _blob(along, across, defect.size, rng, roughness=0.35, soft=0.02, stretch=float(rng.uniform(0.6, 1)))
    step = _step(window, alpha, defect.contrast)
    shade = np.clip(along / np.float32(defect.size), -0.5, 0.5) * step * 0.4
    # The texture fades as the depth grows; the ground of a shallow chip is still the part's material.
    behind = _local_mean(window, alpha) + (step + shade)[..., None]
    lost = np.float32(min(1.0, 0.4 + defect.contrast))
    ground = lost * behind + (1 - lost) * (window + step)
    return window + alpha[..., None] * (ground - window), alpha


def _stain(window: F32, along: F32, across: F32, defect: Defect, rng: np.random.Generator) -> tuple[F32, F32]:
    """A liquid's residue: it absorbs light, unevenly and with a tint, and leaves the texture visible."""
    alpha = _blob(along, across, defect.size, rng, roughness=0.2, soft=0.3, stretch=float(rng.uniform(0.7, 1)))
    mottle = _noise(window.shape[:2], max(1.0, defect.size / 8), rng) * np.float32(0.15) + 1
    tint = np.asarray(rng.uniform(0.7, 1.0, 3), np.float32)
    if np.array_equal(window[..., 0], window[..., 1]) and np.array_equal(window[..., 0], window[..., 2]):
        tint[:] = tint.mean()  # a gray camera sees no tint
    density = np.clip(alpha * mottle, 0, 1)[..., None] * tint * np.float32(defect.contrast)
    dark = float(_local_mean(window, alpha).mean()) < 60  # nothing can be absorbed there: the residue reflects
    return (window + density * (255 - window) if dark else window * (1 - density)), alpha


def _texture(window: F32, along: F32, across: F32, defect: Defect, rng: np.random.Generator) -> tuple[F32, F32]:
    """Another roughness at the same mean brightness, such as an area that was polished or sandblasted."""
    alpha = _blob(along, across, defect.size, rng, roughness=0.15, soft=0.1, stretch=float(rng.uniform(0.7, 1)))
    smooth = np.asarray(cv2.GaussianBlur(window, (0, 0), max(1.0, defect.size / 12)), np.float32).reshape(window.shape)
    grain = _noise(window.shape[:2], max(0.7, defect.size / 40), rng) * np.float32(255 * 0.5 * defect.contrast)
    share = np.float32(min(1.0, 2 * defect.contrast))
    rough = window + share * (smooth - window) + grain[..., None]
    return window + alpha[..., None] * (rough - window), alpha


def _shift(window: F32, along: F32, across: F32, defect: Defect, rng: np.random.Generator) -> tuple[F32, F32]:
    """A feature out of place: the content is displaced, most at the center. It needs a feature to be seen."""
    alpha = _blob(along, across, defect.size, rng, roughness=0.05, soft=0.5, stretch=1.0)
    angle, reach = float(rng.uniform(0, 2 * math.pi)), defect.size * defect.contrast
    height, width = window.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    moved = cv2.remap(
        window,
        columns - alpha * np.float32(reach * math.cos(angle)),
        rows - alpha * np.float32(reach * math.sin(angle)),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.asarray(moved, np.float32), alpha


_PAINTERS: dict[
    Kind, Callable[[F32, F32, F32, Defect, np.random.Generator], tuple[F32, F32]]
] = {
    "scratch": _scratch,
    "spot": _spot,
    "missing piece": _missing,
    "stain": _stain,
    "texture change": _texture,
    "shift": _shift,
}  # fmt: skip


def _blob(
    along: F32, across: F32, size: float, rng: np.random.Generator, roughness: float, soft: float, stretch: float
) -> F32:
    """Return an irregular area with a soft rim, float32 0..1, whose longest extent is about ``size``."""
    across = across / np.float32(stretch)
    angle = np.arctan2(across, along)
    outline = np.ones_like(angle)
    for wave in range(2, 7):
        outline += np.float32(roughness / wave * rng.normal()) * np.cos(wave * angle + np.float32(rng.uniform(0, 6.28)))
    outline = np.minimum(outline, 1.25) / 1.25 if roughness > 0.1 else np.clip(outline, 0.5, 1)
    rim = np.float32(max(1.0, soft * size))
    radius = outline * np.float32(size / 2)
    alpha: F32 = np.clip((radius - np.hypot(along, across)) / rim + 0.5, 0, 1).astype(np.float32)
    return alpha


def _step(window: F32, alpha: F32, contrast: float) -> np.float32:
    """Return the change of brightness: towards the end of the range that is farther away."""
    mean = float(_local_mean(window, alpha).mean())
    return np.float32(255 * contrast * (-1 if mean > 127 else 1))


def _local_mean(window: F32, alpha: F32) -> F32:
    weight = alpha.sum()
    if weight <= 0:
        return np.asarray(window.reshape(-1, 3).mean(axis=0), np.float32)
    mean: F32 = (window * alpha[..., None]).sum(axis=(0, 1)) / weight
    return mean


def _noise(shape: tuple[int, int], grain: float, rng: np.random.Generator) -> F32:
    """Return noise of mean 0 and deviation 1 whose grains are about ``grain`` pixels wide, float32."""
    raw = rng.standard_normal(shape, dtype=np.float32)
    smooth = np.asarray(cv2.GaussianBlur(raw, (0, 0), grain), np.float32)
    return np.asarray((smooth - smooth.mean()) / np.float32(max(float(smooth.std()), 1e-6)), np.float32)
