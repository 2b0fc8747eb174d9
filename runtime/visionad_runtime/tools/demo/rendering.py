"""Rendered industrial parts, good and defective, so that the demo needs no download and no camera.

Each part is a small scene of signed distance functions: negative inside a shape, positive outside, in units of half an image. One
distance gives an antialiased edge, a bevel and a soft shadow without supersampling. A seed fixes pose, light and noise. A defect
draws from its own random stream, so the good and the defective rendering of a seed differ only in the defect.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Field = NDArray[np.float32]
Shape = Callable[[Field, Field], Field]
Color = tuple[float, float, float]

CLASSES: tuple[str, ...] = ("gear", "pcb", "blister")
"""Classes with training images. ``render`` also accepts ``UNKNOWN``, an object of no class."""

UNKNOWN = "unknown"

DEFECTS: dict[str, tuple[str, ...]] = {
    "gear": ("broken_tooth", "scratch", "rust"),
    "pcb": ("missing_component", "solder_bridge", "scratch"),
    "blister": ("missing_tablet", "broken_tablet", "contamination"),
}

_LIGHT = (-0.6, -0.8)  # direction of the lamp, up and left in the image; it does not turn with the part


# --- signed distances -------------------------------------------------------------------------------------------------


def _circle(u: Field, v: Field, radius: float) -> Field:
    return np.sqrt(u * u + v * v) - np.float32(radius)


def _box(u: Field, v: Field, half_w: float, half_h: float, corner: float = 0.0) -> Field:
    x = np.abs(u) - np.float32(half_w - corner)
    y = np.abs(v) - np.float32(half_h - corner)
    outside: Field = np.sqrt(np.maximum(x, 0) ** 2 + np.maximum(y, 0) ** 2)
    return outside + np.minimum(np.maximum(x, y), 0) - np.float32(corner)


def _path(u: Field, v: Field, points: NDArray[np.float32], half_width: float) -> Field:
    """Return the distance to a polyline with round ends, ``points`` (N, 2)."""
    best = np.full_like(u, np.inf)
    for (ax, ay), (bx, by) in pairwise(points):
        dx, dy = bx - ax, by - ay
        along = np.clip(((u - ax) * dx + (v - ay) * dy) / max(dx * dx + dy * dy, np.float32(1e-9)), 0, 1)
        best = np.minimum(best, (u - ax - along * dx) ** 2 + (v - ay - along * dy) ** 2)
    return np.sqrt(best) - np.float32(half_width)


def _repeat(u: Field, pitch: float, count: int) -> Field:
    """Fold the axis so that ``count`` copies of a shape repeat at ``pitch``, centered on 0."""
    half = (count - 1) / 2
    cell = np.clip(np.round(u / pitch + half), 0, count - 1) - half
    return (u - cell * pitch).astype(np.float32)


def _smooth(x: Field) -> Field:
    """Apply smoothstep: 0 below 0, 1 above 1."""
    t: Field = np.clip(x, 0, 1)
    return t * t * (3 - 2 * t)


# --- noise ------------------------------------------------------------------------------------------------------------


def _stream(seed: int, purpose: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, purpose]))


@lru_cache(maxsize=64)
def _lattice(seed: int) -> Field:
    """Return random values in −1..1, (64, 64); the pattern repeats beyond."""
    values: Field = _stream(seed, 7).random((64, 64), dtype=np.float32) * 2 - 1
    return values


def _clouds(u: Field, v: Field, frequency: float, seed: int) -> Field:
    """Return smooth noise of about −1..1 with ``frequency`` features per unit, fixed to the coordinates."""
    x, y = u * np.float32(frequency), v * np.float32(frequency)
    noise = cv2.remap(_lattice(seed), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
    return np.asarray(noise, dtype=np.float32)


def _grooves(distance: Field, pitch: float, seed: int) -> Field:
    """Return tool marks in −1..1 that depend on one coordinate: lathe rings or brush strokes."""
    marks = _stream(seed, 8).random(1024, dtype=np.float32) * 2 - 1
    x = distance / np.float32(pitch) + 256
    i = x.astype(np.int32)
    fraction = x - i
    return (marks[i] * (1 - fraction) + marks[i + 1] * fraction).astype(np.float32)


@lru_cache(maxsize=64)
def _lettering(text: str, height: int) -> Field:
    """Render a line of text as coverage 0..1, ``height`` pixels high."""
    font = ImageFont.load_default(size=52)
    left, _, right, _ = font.getbbox(text)
    card = Image.new("L", (int(right - left) + 8, 64))
    ImageDraw.Draw(card).text((4 - left, 0), text, font=font, fill=255)
    width = max(1, round(card.width * height / card.height))
    return np.asarray(card.resize((width, height), Image.Resampling.BOX), dtype=np.float32) / np.float32(255)


# --- canvas -----------------------------------------------------------------------------------------------------------


class _Patch:
    """A window of the image with its own coordinates, whose axes follow the part."""

    def __init__(self, rgb: Field, u: Field, v: Field, pixel: float, light: tuple[float, float]) -> None:
        self.rgb, self.u, self.v = rgb, u, v
        self._pixel = pixel
        self.light = light

    def cover(self, distance: Field, soft: float = 0.0) -> Field:
        """Return the coverage 0..1 of a shape. ``soft`` widens the edge by a finite amount, so masks stay exact."""
        if soft:
            return _smooth(np.float32(0.5) - distance / np.float32(soft))
        coverage: Field = np.clip(np.float32(0.5) - distance / np.float32(self._pixel), 0, 1)
        return coverage

    def paint(self, distance: Field, color: Color | Field, opacity: float | Field = 1.0, soft: float = 0.0) -> None:
        """Paint the shape with ``color``: one color, or (H, W, 3)."""
        self._blend(self.cover(distance, soft) * opacity, color)

    def shade(self, distance: Field, factor: float | Field, soft: float = 0.0) -> None:
        """Multiply the light inside the shape."""
        gain = 1 + self.cover(distance, soft) * (np.asarray(factor, dtype=np.float32) - 1)
        self.rgb *= gain[..., None]

    def shadow(self, shape: Shape, reach: float, depth: float = 0.55) -> None:
        """Draw the soft shadow of a shape that stands ``reach`` above the ground."""
        dx, dy = -self.light[0] * reach, -self.light[1] * reach
        self.shade(shape(self.u - np.float32(dx), self.v - np.float32(dy)), 1 - depth, soft=1.8 * reach)

    def bevel(self, distance: Field, width: float, strength: float, inwards: bool = False) -> None:
        """Light the rim of a shape on the lamp's side and darken the other side; for a hole, the reverse."""
        band = self.cover(distance) * _smooth(1 + distance / np.float32(width))
        gx, gy = (cv2.Sobel(distance, cv2.CV_32F, dx, 1 - dx, ksize=1, scale=0.5) for dx in (1, 0))
        # The gradient follows the image's rows and columns, so the lamp is not rotated into the part's frame.
        facing = (gx * np.float32(_LIGHT[0]) + gy * np.float32(_LIGHT[1])) / np.float32(self._pixel)
        sign = -strength if inwards else strength
        self.rgb *= (1 + np.float32(sign) * band * np.clip(facing, -1, 1))[..., None]

    def glint(self, x: float, y: float, half_w: float, half_h: float, strength: float) -> None:
        """Draw a soft reflection of the lamp."""
        fall = _smooth(1 - np.sqrt(((self.u - x) / half_w) ** 2 + ((self.v - y) / half_h) ** 2))
        self.rgb += (fall * np.float32(strength))[..., None] * (1 - self.rgb)

    def print(self, text: str, x: float, y: float, height: float, color: Color, opacity: float = 1.0) -> None:
        """Draw text centered on (x, y)."""
        card = _lettering(text, max(1, round(height / self._pixel)))
        scale = card.shape[0] / height
        column = (self.u - x) * np.float32(scale) + (card.shape[1] - 1) / 2
        row = (self.v - y) * np.float32(scale) + (card.shape[0] - 1) / 2
        ink = cv2.remap(card, column, row, cv2.INTER_LINEAR)  # 0 outside the card
        self._blend(np.asarray(ink, dtype=np.float32) * opacity, color)

    def _blend(self, alpha: Field, color: Color | Field) -> None:
        self.rgb += alpha[..., None] * (np.asarray(color, dtype=np.float32) - self.rgb)


class _Scene:
    """The whole image, (S, S, 3) float32 in 0..1, and the pose of the part."""

    def __init__(self, size: int, rng: np.random.Generator, turn: float, shift: float, zoom: float) -> None:
        self.rgb: Field = np.zeros((size, size, 3), dtype=np.float32)
        self.pixel = 2.0 / size
        self._zoom = zoom
        axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(self.pixel) - 1
        self._x, self._y = axis, axis[:, None]
        self._shift = rng.uniform(-shift, shift, 2)
        angle = float(np.deg2rad(rng.uniform(-turn, turn)))
        self._cos, self._sin = float(np.cos(angle)), float(np.sin(angle))
        self.brightness = float(rng.uniform(0.96, 1.04))
        self.light = (
            _LIGHT[0] * self._cos + _LIGHT[1] * self._sin,
            -_LIGHT[0] * self._sin + _LIGHT[1] * self._cos,
        )

    def frame(self) -> _Patch:
        """Return the whole image in the camera's coordinates, −1..1."""
        shape = self.rgb.shape[:2]
        return _Patch(
            self.rgb, np.broadcast_to(self._x, shape), np.broadcast_to(self._y, shape), self.pixel, self.light
        )

    def at(self, x: float = 0.0, y: float = 0.0, reach: float = 2.0, turn: float = 0.0) -> _Patch:
        """Return the window of radius ``reach`` around the part's point (x, y), with axes turned by ``turn`` × 90°."""
        cx = self._shift[0] + self._zoom * (x * self._cos - y * self._sin)
        cy = self._shift[1] + self._zoom * (x * self._sin + y * self._cos)
        reach *= self._zoom
        columns, rows = (
            slice(max(0, int((c + 1 - reach) / self.pixel)), max(0, int((c + 1 + reach) / self.pixel) + 1))
            for c in (cx, cy)
        )
        angle = turn * np.pi / 2
        cos = np.float32(self._cos * np.cos(angle) - self._sin * np.sin(angle))
        sin = np.float32(self._sin * np.cos(angle) + self._cos * np.sin(angle))
        dx, dy = (self._x[columns] - np.float32(cx)) / self._zoom, (self._y[rows] - np.float32(cy)) / self._zoom
        light = (float(_LIGHT[0] * cos + _LIGHT[1] * sin), float(-_LIGHT[0] * sin + _LIGHT[1] * cos))
        return _Patch(self.rgb[rows, columns], dx * cos + dy * sin, dy * cos - dx * sin, self.pixel / self._zoom, light)

    def develop(self, noise: np.random.Generator) -> Rgb:
        """Add the lamp's falloff and sensor noise; return (size, size, 3) uint8."""
        lamp = 1.06 - 0.10 * ((self._x + 0.3) ** 2 + (self._y + 0.4) ** 2)
        grain = noise.standard_normal(lamp.shape, dtype=np.float32) * np.float32(0.006)
        exposed = self.rgb * (lamp * np.float32(self.brightness))[..., None] + grain[..., None]
        levels: Rgb = (np.clip(exposed, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8)
        return levels


def _pick(rng: np.random.Generator, count: int) -> int:
    return int(rng.integers(count))


def _wander(rng: np.random.Generator, start: tuple[float, float], angle: float, length: float, bend: float) -> Field:
    """Draw a random curved path for scratches and hairs, (12, 2) float32."""
    steps = angle + np.cumsum(rng.uniform(-bend, bend, 6))
    moves = np.stack([np.cos(steps), np.sin(steps)], axis=1) * (length / 6)
    points = np.concatenate([[start], start + np.cumsum(moves, axis=0)])
    ahead, behind = points[:-1], points[1:]  # Chaikin's corner cutting smooths the path
    cut = np.stack([0.75 * ahead + 0.25 * behind, 0.25 * ahead + 0.75 * behind], axis=1)
    return cut.reshape(-1, 2).astype(np.float32)


# --- gear -------------------------------------------------------------------------------------------------------------

_TEETH = 24


def _gear(scene: _Scene, defect: str | None, rng: np.random.Generator) -> None:
    belt = scene.frame()
    weave = np.sin((belt.u + belt.v) * 150) * np.sin((belt.u - belt.v) * 150)
    tone = 0.135 + 0.016 * weave + 0.012 * _clouds(belt.u, belt.v, 9, 11)
    belt.rgb[...] = tone[..., None] * np.asarray((0.92, 1.0, 1.10), dtype=np.float32)

    part = scene.at()
    u, v = part.u, part.v
    radius, angle = np.sqrt(u * u + v * v), np.arctan2(v, u)

    broken = _pick(rng, _TEETH)
    stump = rng.uniform(0.15, 0.45)

    def outline(u: Field, v: Field) -> Field:
        r, a = np.sqrt(u * u + v * v), np.arctan2(v, u) * np.float32(_TEETH / (2 * np.pi))
        wave = np.abs(a - np.round(a)) * 2  # 0 at a tooth's middle, 1 in the gap
        height = np.clip((0.72 - wave) / 0.36, 0, 1)
        flank = (height > 0) & (height < 1)  # the outline runs nearly along the radius there: make it a distance again
        if defect == "broken_tooth":
            here = np.round(a).astype(np.int32) % _TEETH == broken
            jagged = stump + 0.14 * np.sin(a * 9 + broken) + 0.05 * np.sin(a * 31)
            height = np.where(here, np.minimum(height, np.clip(jagged, 0, 1)), height)
        edge = (r - 0.70 - 0.115 * height).astype(np.float32)
        return np.where(flank, np.maximum(edge * np.float32(0.42), r - np.float32(0.815)), edge)

    def hollow(u: Field, v: Field) -> Field:
        bore = _circle(u, v, 0.135)
        keyway = _box(u, v + np.float32(0.145), 0.035, 0.045)
        a = np.arctan2(v, u) * np.float32(6 / (2 * np.pi)) + np.float32(0.5)
        sector = (a - np.round(a)) * np.float32(2 * np.pi / 6)
        r = np.sqrt(u * u + v * v)
        holes = _circle(r * np.cos(sector) - np.float32(0.40), r * np.sin(sector), 0.082)
        return np.minimum(np.minimum(bore, keyway), holes)

    def solid(u: Field, v: Field) -> Field:
        return np.maximum(outline(u, v), -hollow(u, v))

    part.shadow(solid, 0.055, depth=0.80)

    # Turned steel: each lathe ring mirrors the lamp in two opposite sectors, which stay put while the part turns.
    lamp = np.arctan2(part.light[1], part.light[0])
    fan = np.cos(angle - np.float32(lamp + 0.5)) ** 2
    rings = _grooves(radius, 0.0065, 3)
    face = 0.50 + 0.30 * fan**3 + 0.045 * rings * (0.5 + fan) + 0.02 * _clouds(u, v, 5, 12)
    web = part.cover(np.maximum(radius - np.float32(0.575), np.float32(0.235) - radius))
    face += web * (0.03 * _clouds(u, v, 60, 13) - 0.02 - 0.22 * face)
    steel = face[..., None] * np.asarray((0.97, 1.0, 1.04), dtype=np.float32)
    body = solid(u, v)
    part.paint(body, steel.astype(np.float32))
    part.bevel(body, 0.022, 0.55)
    part.bevel(_circle(u, v, 0.575), 0.020, 0.55, inwards=True)
    part.bevel(-_circle(u, v, 0.575), 0.010, 0.30, inwards=True)
    part.bevel(_circle(u, v, 0.235), 0.018, 0.50)
    part.shade(np.abs(radius - 0.640) - np.float32(0.004), 0.72)
    part.shade(np.abs(radius - 0.245) - np.float32(0.008), 0.70, soft=0.02)

    if defect == "scratch":
        around = rng.uniform(0, 2 * np.pi)
        start = (0.60 * np.cos(around), 0.60 * np.sin(around))
        path = _wander(rng, start, around + np.pi + rng.uniform(-0.9, 0.9), rng.uniform(0.40, 0.62), 0.10)
        groove = _path(u, v, path, 0.0055) + 0.0035 * _clouds(u, v, 14, 17)
        part.paint(groove - np.float32(0.006), (0.20, 0.20, 0.21), part.cover(body) * np.float32(0.6))
        part.paint(groove, (0.93, 0.94, 0.96), part.cover(body) * np.float32(0.95))
    elif defect == "rust":
        around, out = rng.uniform(0, 2 * np.pi), rng.uniform(0.50, 0.66)
        x, y = np.float32(out * np.cos(around)), np.float32(out * np.sin(around))
        ragged = _clouds(u, v, 16, 14) * 0.05 + _clouds(u, v, 45, 15) * 0.025
        blot = _circle(u - x, v - y, rng.uniform(0.10, 0.15)) + ragged
        warm = 1 + 0.35 * _clouds(u, v, 38, 16)
        brown = warm[..., None] * np.asarray((0.46, 0.22, 0.09), dtype=np.float32)
        part.paint(blot, brown.astype(np.float32), part.cover(body) * np.float32(0.88), soft=0.05)


# --- pcb --------------------------------------------------------------------------------------------------------------

_SILK = (0.86, 0.88, 0.84)
_TIN = (0.74, 0.76, 0.77)
_GOLD = (0.80, 0.62, 0.26)
_COPPER_UNDER_MASK = (0.075, 0.40, 0.235)

# Traces as polylines in board coordinates; 45° bends as a layout tool makes them.
_TRACES: tuple[tuple[tuple[float, float], ...], ...] = (
    *(((-0.22, -0.13 + 0.052 * i), (-0.40, -0.13 + 0.052 * i), (-0.56, 0.03 + 0.052 * i), (-0.80, 0.03 + 0.052 * i))
      for i in range(6)),
    *(((-0.13 + 0.052 * i, -0.22), (-0.13 + 0.052 * i, -0.32), (-0.01 + 0.052 * i, -0.44), (-0.01 + 0.052 * i, -0.72))
      for i in range(6)),
    *(((0.22, -0.078 + 0.052 * i), (0.36, -0.078 + 0.052 * i), (0.44, -0.158 + 0.052 * i), (0.76, -0.158 + 0.052 * i))
      for i in range(5)),
    ((-0.33, -0.625), (-0.26, -0.625), (-0.23, -0.595), (-0.23, -0.36)),
    ((0.52, 0.55), (0.58, 0.49), (0.58, 0.18)),
    *(((-0.078 + 0.052 * i, 0.22), (-0.078 + 0.052 * i, 0.36), (-0.0525 + 0.105 * i, 0.50), (-0.0525 + 0.105 * i, 0.76))
      for i in range(5)),
    ((-0.72, -0.625), (-0.56, -0.625)),
)  # fmt: skip
_VIAS = ((-0.72, -0.625), (0.30, 0.30), (-0.34, 0.30), (0.30, -0.30), (-0.52, 0.30), *(t[-1] for t in _TRACES[:19]))

# Two-terminal parts: x, y, quarter turns, kind, designator.
_PASSIVES: tuple[tuple[float, float, int, str, str], ...] = (
    (-0.66, -0.36, 1, "resistor", "R1"),
    (-0.52, -0.36, 1, "resistor", "R2"),
    (0.42, -0.42, 1, "capacitor", "C2"),
    (0.56, -0.42, 1, "resistor", "R3"),
    (0.70, -0.42, 1, "resistor", "R4"),
    (0.40, 0.20, 1, "capacitor", "C3"),
    (0.74, 0.26, 1, "resistor", "R5"),
    (-0.28, 0.43, 0, "resistor", "R6"),
    (-0.28, 0.61, 0, "capacitor", "C4"),
)
_PIN_PITCH, _PIN_ROW = 0.052, 0.262  # the microcontroller's pins; a row's distance from its middle

# Lettering that belongs to the board: x, y, height, text.
_PRINTS: tuple[tuple[float, float, float, str], ...] = (
    (0.16, -0.815, 0.075, "VISIONAD  DEMO-1"),
    (-0.445, -0.755, 0.056, "C1"),
    (0.56, -0.785, 0.056, "Y1"),
    (-0.58, 0.74, 0.056, "C5"),
    (0.59, 0.74, 0.056, "C6"),
)


def _pcb(scene: _Scene, defect: str | None, rng: np.random.Generator) -> None:
    _bare_board(scene)
    _microcontroller(scene)
    _header(scene)
    gone = _pick(rng, len(_LARGE)) if defect == "missing_component" else None
    for index, (draw, x, y) in enumerate(_LARGE):
        draw(scene, x, y, index != gone)
    for x, y, turn, kind, name in _PASSIVES:
        _passive(scene, x, y, turn, kind, name)
    if defect == "solder_bridge":
        _solder_bridge(scene, rng)
    elif defect == "scratch":
        start = (rng.uniform(-0.70, 0.10), (0.34, -0.30)[_pick(rng, 2)] + rng.uniform(-0.05, 0.05))
        path = _wander(rng, start, rng.uniform(-0.5, 0.5), rng.uniform(0.45, 0.65), 0.12)
        x, y, reach = _around(path)
        skin = scene.at(x, y, reach)
        groove = _path(skin.u, skin.v, path - np.asarray((x, y), dtype=np.float32), 0.006)
        groove += 0.004 * _clouds(skin.u, skin.v, 14, 26)
        skin.paint(groove - np.float32(0.006), (0.30, 0.52, 0.40), 0.75)
        skin.paint(groove, (0.88, 0.64, 0.44), 0.95)


def _around(points: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return the middle (x, y) of a path, and the reach of a window that holds it in any pose."""
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    return float(middle[0]), float(middle[1]), float(np.linalg.norm(points - middle, axis=1).max()) + 0.03


def _bare_board(scene: _Scene) -> None:
    table = scene.frame()
    tone = 0.20 + 0.012 * _clouds(table.u, table.v, 30, 21) + 0.010 * _clouds(table.u, table.v, 4, 22)
    table.rgb[...] = tone[..., None] * np.asarray((1.02, 1.0, 0.97), dtype=np.float32)

    board = scene.at()
    u, v = board.u, board.v

    def outline(u: Field, v: Field) -> Field:
        drill = _circle(np.abs(u) - np.float32(0.80), np.abs(v) - np.float32(0.80), 0.052)
        return np.maximum(_box(u, v, 0.91, 0.91, 0.06), -drill)

    board.shadow(outline, 0.04, depth=0.7)
    edge = outline(u, v)
    glass = 1 + 0.045 * np.sin(u * 170) * np.sin(v * 170) + 0.03 * _clouds(u, v, 7, 23)
    board.paint(edge, (glass[..., None] * np.asarray((0.022, 0.235, 0.135), dtype=np.float32)))
    pour = np.maximum(_box(u, v, 0.87, 0.87, 0.05), -_box(u, v, 0.70, 0.66, 0.05))
    board.paint(np.maximum(pour, edge), (0.045, 0.315, 0.185))
    board.bevel(edge, 0.014, 0.5)

    for trace in _TRACES:
        points = np.asarray(trace, dtype=np.float32)
        x, y, reach = _around(points)
        wire = scene.at(x, y, reach)
        wire.paint(_path(wire.u, wire.v, points - np.asarray((x, y), dtype=np.float32), 0.0105), _COPPER_UNDER_MASK)
    for x, y in _VIAS:
        via = scene.at(x, y, 0.04)
        via.paint(_circle(via.u, via.v, 0.024), _GOLD)
        via.paint(_circle(via.u, via.v, 0.011), (0.05, 0.05, 0.04))
    for x, y in ((x, y) for x in (-0.80, 0.80) for y in (-0.80, 0.80)):
        ring = scene.at(x, y, 0.14)
        annulus = np.abs(_circle(ring.u, ring.v, 0.074)) - np.float32(0.022)
        ring.paint(annulus, _GOLD)
        ring.bevel(annulus, 0.012, 0.35)
    for x, y, height, text in _PRINTS:
        card = scene.at(x, y, 0.35 * height * len(text) + 0.02)
        card.print(text, 0.0, 0.0, height, _SILK, 0.85)


def _pin_row(scene: _Scene, side: int) -> _Patch:
    """Return the window on the microcontroller's pins of one side: u along the row, v towards the chip."""
    x, y = ((0.0, -_PIN_ROW), (_PIN_ROW, 0.0), (0.0, _PIN_ROW), (-_PIN_ROW, 0.0))[side]
    return scene.at(x, y, 0.26, side)


def _solder_bridge(scene: _Scene, rng: np.random.Generator) -> None:
    """Draw too much solder: one bead over three or four pins."""
    row = _pin_row(scene, _pick(rng, 4))
    pins = 3 + _pick(rng, 2)
    along = np.float32((_pick(rng, 9 - pins) + (pins - 1) / 2 - 3.5) * _PIN_PITCH)
    u, v = row.u - along, row.v + np.float32(0.012)
    half = pins / 2 * _PIN_PITCH + rng.uniform(0.004, 0.012)
    ragged = 0.012 * _clouds(row.u, row.v, 9, 27) + 0.003 * np.cos(u * np.float32(2 * np.pi / _PIN_PITCH))
    bead = (_box(u, v, half, 0.050, 0.046) - ragged).astype(np.float32)
    row.shade(bead - np.float32(0.010), 0.55, soft=0.03)
    # A smooth metal dome mirrors the bright hood above it and the dark board round its foot.
    dome = _smooth(-bead / np.float32(0.048))
    row.paint(bead, (0.46 + 0.24 * dome)[..., None] * np.asarray((0.98, 1.0, 1.02), dtype=np.float32))
    row.bevel(bead, 0.050, 0.60)
    gleam = _path(u - row.light[0] * 0.014, v - row.light[1] * 0.014, _line(half - 0.045), 0.006)
    row.paint(gleam.astype(np.float32), (0.97, 0.98, 0.98), 0.85, soft=0.020)


def _line(half: float) -> NDArray[np.float32]:
    return np.asarray([(-half, 0), (half, 0)], dtype=np.float32)


def _microcontroller(scene: _Scene) -> None:
    chip = scene.at(reach=0.28)

    def body(u: Field, v: Field) -> Field:
        return _box(u, v, 0.215, 0.215, 0.012)

    for side in range(4):
        row = _pin_row(scene, side)
        x, y = _repeat(row.u, _PIN_PITCH, 8), row.v
        row.paint(_box(x, y, 0.017, 0.038, 0.006), (0.62, 0.64, 0.64))
        leg = _box(x, y - np.float32(0.006), 0.011, 0.036, 0.005)
        row.shade(leg - np.float32(0.006), 0.7, soft=0.012)
        row.paint(leg, (0.84, 0.85, 0.86))
        row.bevel(leg, 0.010, 0.3)
    chip.shadow(body, 0.020, depth=0.6)
    moulded = 0.105 + 0.010 * _clouds(chip.u, chip.v, 90, 24)
    edge = body(chip.u, chip.v)
    chip.paint(edge, np.repeat(moulded[..., None], 3, axis=2))
    chip.bevel(edge, 0.020, 0.45)
    dot = _circle(chip.u + np.float32(0.155), chip.v + np.float32(0.155), 0.018)
    chip.shade(dot, 0.6)
    chip.bevel(dot, 0.012, 0.5, inwards=True)
    chip.print("VAD-32", 0.0, -0.040, 0.090, (0.55, 0.56, 0.56), 0.9)
    chip.print("M4 2431", 0.0, 0.055, 0.062, (0.50, 0.51, 0.51), 0.9)


def _header(scene: _Scene) -> None:
    strip = scene.at(0.0, 0.78, 0.46)

    def body(u: Field, v: Field) -> Field:
        notch = _box(_repeat(u, 0.105, 9), np.abs(v) - np.float32(0.06), 0.006, 0.012)
        return np.maximum(_box(u, v, 0.42, 0.056, 0.010), -notch)

    strip.shadow(body, 0.022)
    edge = body(strip.u, strip.v)
    strip.paint(edge, (0.085, 0.085, 0.09))
    strip.bevel(edge, 0.014, 0.6)
    pin = _box(_repeat(strip.u, 0.105, 8), strip.v, 0.018, 0.018, 0.004)
    strip.shade(pin - np.float32(0.008), 0.5, soft=0.02)
    strip.paint(pin, _GOLD)
    strip.bevel(pin, 0.012, 0.5)


def _footprint(patch: _Patch, frame: Field, pads: Field) -> None:
    """Draw the board under a part: a printed frame that tinned pads interrupt."""
    patch.paint(np.maximum(np.abs(frame) - np.float32(0.0045), np.float32(0.012) - pads), _SILK, 0.8)
    patch.paint(pads, _TIN)
    patch.bevel(pads, 0.016, 0.3)


def _tantalum(scene: _Scene, x: float, y: float, placed: bool) -> None:
    part = scene.at(x, y, 0.22)
    u, v = part.u, part.v
    pads = _box(np.abs(u) - np.float32(0.112), v, 0.040, 0.048, 0.010)
    _footprint(part, _box(u, v, 0.168, 0.094, 0.012), pads)
    if not placed:
        return

    def body(u: Field, v: Field) -> Field:
        return _box(u, v, 0.118, 0.068, 0.010)

    lead = _box(u, v, 0.128, 0.040, 0.006)
    part.paint(lead, (0.84, 0.85, 0.86))
    part.bevel(lead, 0.010, 0.3)
    part.shadow(body, 0.022)
    edge = body(u, v)
    resin = 1 + 0.05 * _clouds(u, v, 80, 28)
    part.paint(edge, resin[..., None] * np.asarray((0.88, 0.60, 0.13), dtype=np.float32))
    part.paint(np.maximum(edge, u + np.float32(0.078)), (0.45, 0.20, 0.07))
    part.bevel(edge, 0.022, 0.40)
    part.print("107", 0.022, -0.024, 0.056, (0.33, 0.15, 0.05), 0.9)
    part.print("10V", 0.022, 0.028, 0.050, (0.33, 0.15, 0.05), 0.9)


def _crystal(scene: _Scene, x: float, y: float, placed: bool) -> None:
    can = scene.at(x, y, 0.26)
    u, v = can.u, can.v
    pads = _box(np.abs(u) - np.float32(0.135), v, 0.055, 0.030, 0.010)
    _footprint(can, _box(u, v, 0.186, 0.088, 0.086), pads)
    if not placed:
        return

    def body(u: Field, v: Field) -> Field:
        return _box(u, v, 0.17, 0.072, 0.070)

    can.shadow(body, 0.022)
    edge = body(u, v)
    brushed = 0.70 + 0.04 * _grooves(v, 0.006, 25)
    can.paint(edge, brushed[..., None] * np.asarray((1.0, 1.0, 0.98), dtype=np.float32))
    can.bevel(edge, 0.020, 0.45)
    can.shade(np.abs(_box(u, v, 0.145, 0.048, 0.047)) - np.float32(0.003), 0.8)
    can.print("16.000", 0.0, 0.0, 0.060, (0.28, 0.28, 0.28), 0.85)


def _electrolytic(scene: _Scene, x: float, y: float, placed: bool) -> None:
    can = scene.at(x, y, 0.24)
    u, v = can.u, can.v
    pads = _box(np.abs(u) - np.float32(0.112), v, 0.058, 0.028, 0.010)
    frame = np.maximum(_box(u, v, 0.156, 0.156, 0.03), (np.abs(v) - u - np.float32(0.255)) * np.float32(0.7071))
    _footprint(can, frame, pads)
    if not placed:
        return
    base = np.maximum(_box(u, v, 0.142, 0.142, 0.02), (np.abs(v) - u - np.float32(0.235)) * np.float32(0.7071))
    can.paint(base, (0.07, 0.07, 0.075))
    can.bevel(base, 0.012, 0.4)

    def body(u: Field, v: Field) -> Field:
        return _circle(u, v, 0.122)

    can.shadow(body, 0.030, depth=0.5)
    edge = body(u, v)
    fan: Field = np.cos(np.arctan2(v, u) - np.float32(np.arctan2(*can.light[::-1]))) ** 2
    can.paint(edge, (0.62 + 0.16 * fan)[..., None] * np.asarray((0.98, 1.0, 1.02), dtype=np.float32))
    can.paint(np.maximum(edge + np.float32(0.008), u + np.float32(0.045)), (0.12, 0.13, 0.15))
    can.bevel(edge, 0.020, 0.5)
    can.print("100", 0.034, -0.022, 0.056, (0.2, 0.2, 0.22), 0.9)
    can.print("16V", 0.034, 0.030, 0.050, (0.2, 0.2, 0.22), 0.9)


def _passive(scene: _Scene, x: float, y: float, turn: int, kind: str, name: str) -> None:
    upright = scene.at(x, y, 0.16)
    part = scene.at(x, y, 0.12, turn)
    u, v = part.u, part.v
    frame = np.abs(_box(u, v, 0.092, 0.050, 0.008)) - np.float32(0.0035)
    part.paint(frame, _SILK, 0.8)
    pad = _box(np.abs(u) - np.float32(0.058), v, 0.026, 0.037, 0.010)
    part.paint(pad, _TIN)
    part.bevel(pad, 0.016, 0.3)
    dx, dy = (0.0, -0.082) if turn == 0 else (0.0, -0.122)
    upright.print(name, dx, dy, 0.056, _SILK, 0.85)

    def body(u: Field, v: Field) -> Field:
        return _box(u, v, 0.066, 0.034, 0.006)

    part.shadow(body, 0.014)
    edge = body(u, v)
    part.paint(edge, (0.80, 0.81, 0.82))
    middle = _box(u, v, 0.040, 0.034)
    part.paint(middle, (0.10, 0.10, 0.105) if kind == "resistor" else (0.66, 0.52, 0.36))
    part.bevel(edge, 0.014, 0.45)
    if kind == "resistor":
        part.print("103", 0.0, 0.0, 0.046, (0.80, 0.80, 0.78), 0.9)


_LARGE: tuple[tuple[Callable[[_Scene, float, float, bool], None], float, float], ...] = (
    (_tantalum, -0.445, -0.625),  # C1
    (_crystal, 0.56, -0.66),  # Y1
    (_electrolytic, -0.58, 0.55),  # C5
    (_electrolytic, 0.59, 0.55),  # C6
)
"""Parts whose absence is obvious, and their positions."""


# --- blister ----------------------------------------------------------------------------------------------------------

_COLUMNS, _ROWS = 4, 3
_PITCH_X, _PITCH_Y = 0.40, 0.46


def _blister(scene: _Scene, defect: str | None, rng: np.random.Generator) -> None:
    tray = scene.frame()
    lines = 0.012 * np.sin(tray.v * 64)
    tone = 0.34 + lines + 0.010 * _clouds(tray.u, tray.v, 5, 31)
    tray.rgb[...] = tone[..., None] * np.asarray((0.50, 0.92, 1.18), dtype=np.float32)

    pack = scene.at()
    u, v = pack.u, pack.v

    def outline(u: Field, v: Field) -> Field:
        return _box(u, v, 0.86, 0.80, 0.10)

    pack.shadow(outline, 0.045, depth=0.6)
    knurl = np.sin((u + v) * 118) * np.sin((u - v) * 118)
    sheen = 0.70 + 0.045 * knurl + 0.07 * np.sin(u * 2.1 - v * 1.3 + 0.6) + 0.025 * _clouds(u, v, 6, 32)
    foil = sheen[..., None] * np.asarray((0.985, 1.0, 1.02), dtype=np.float32)
    pack.paint(outline(u, v), foil.astype(np.float32))
    pack.bevel(outline(u, v), 0.020, 0.35)
    for x in (-_PITCH_X, 0.0, _PITCH_X):  # tear-off perforation between the columns
        dash = _box(u - np.float32(x), _repeat(v, 0.048, 31), 0.004, 0.012, 0.004)
        pack.shade(np.maximum(dash, outline(u, v)), 0.72)

    victim = _pick(rng, _COLUMNS * _ROWS)
    for index in range(_COLUMNS * _ROWS):
        x = (index % _COLUMNS - (_COLUMNS - 1) / 2) * _PITCH_X
        y = (index // _COLUMNS - (_ROWS - 1) / 2) * _PITCH_Y
        struck = defect is not None and index == victim
        cavity = scene.at(x, y, 0.23)
        _cavity(cavity)
        if not (struck and defect == "missing_tablet"):
            _tablet(cavity, rng if struck and defect == "broken_tablet" else None)
        _dome(cavity)
        if struck and defect == "contamination":
            _hair(scene.at(x, y, 0.45), rng)


def _cavity(cavity: _Patch) -> None:
    well = _circle(cavity.u, cavity.v, 0.172)
    cavity.shade(well, 0.86)
    cavity.bevel(well, 0.034, 0.40, inwards=True)


def _tablet(cavity: _Patch, broken: np.random.Generator | None) -> None:
    u, v = cavity.u, cavity.v
    jag: Field = np.full_like(u, -1.0)
    if broken is not None:
        angle = broken.uniform(0, 2 * np.pi)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        along = v * cos - u * sin
        jag = u * cos + v * sin - np.float32(broken.uniform(0.00, 0.04))
        jag += 0.016 * _clouds(along, along, 14, 34) + 0.008 * np.sin(along * 90)

    def body(u: Field, v: Field) -> Field:
        return _circle(u, v, 0.132)

    remains = np.maximum(body(u, v), jag)
    shadow = body(u + np.float32(cavity.light[0] * 0.02), v + np.float32(cavity.light[1] * 0.02))
    cavity.shade(np.maximum(shadow, jag), 0.62, soft=0.045)
    pressed = 1 + 0.022 * _clouds(u, v, 70, 33)
    cavity.paint(remains, pressed[..., None] * np.asarray((0.93, 0.56, 0.47), dtype=np.float32))
    cavity.bevel(remains, 0.036, 0.28)
    score = np.maximum(_box(u, v, 0.108, 0.006), remains)
    cavity.shade(score, 0.76)
    cavity.paint(np.maximum(_box(u, v - np.float32(0.010), 0.106, 0.003), remains), (1.0, 0.72, 0.64), 0.6)
    if broken is not None:
        cavity.paint(np.maximum(np.abs(jag + np.float32(0.007)) - np.float32(0.007), body(u, v)), (0.99, 0.78, 0.71))
        for _ in range(5):  # crumbs
            x, y = broken.uniform(0.03, 0.11), broken.uniform(-0.08, 0.08)
            px, py = np.float32(x * cos - y * sin), np.float32(x * sin + y * cos)
            crumb = _circle(u - px, v - py, broken.uniform(0.006, 0.014))
            cavity.paint(crumb, (0.95, 0.66, 0.57))


def _dome(cavity: _Patch) -> None:
    """Draw the clear plastic over a tablet: a faint rim and two reflections of the lamp."""
    light = cavity.light
    rim = np.abs(_circle(cavity.u, cavity.v, 0.160)) - np.float32(0.006)
    cavity.paint(rim, (0.95, 0.98, 1.0), 0.28, soft=0.014)
    cavity.glint(light[0] * 0.085, light[1] * 0.085, 0.055, 0.042, 0.75)
    cavity.glint(-light[0] * 0.125, -light[1] * 0.125, 0.030, 0.030, 0.35)


def _hair(patch: _Patch, rng: np.random.Generator) -> None:
    heading = rng.uniform(0, 2 * np.pi)
    start = (-0.17 * np.cos(heading), -0.17 * np.sin(heading))
    path = _wander(rng, start, heading, rng.uniform(0.34, 0.42), 0.75)
    hair = _path(patch.u, patch.v, path, 0.0062)
    patch.shade(_path(patch.u, patch.v, path + np.float32(0.012), 0.006), 0.75, soft=0.02)
    patch.paint(hair, (0.11, 0.08, 0.07), 0.95)
    speck = _circle(patch.u - path[3, 0], patch.v - path[3, 1], 0.024) + 0.010 * _clouds(patch.u, patch.v, 60, 35)
    patch.paint(speck, (0.13, 0.10, 0.08), 0.95)


# --- a thing nobody taught the line -----------------------------------------------------------------------------------


def _biscuit(scene: _Scene, rng: np.random.Generator) -> None:
    """Draw a snack on a kraft-paper mat."""
    mat = scene.frame()
    fibres = 0.03 * _clouds(mat.u, mat.v * 6, 22, 41) + 0.02 * _clouds(mat.u * 5, mat.v, 26, 42)
    mat.rgb[...] = (0.84 + fibres)[..., None] * np.asarray((0.98, 0.90, 0.76), dtype=np.float32)

    part = scene.at()
    u, v = part.u, part.v
    wobble = (0.035 * _clouds(u, v, 3, 43) + 0.012 * _clouds(u, v, 9, 44)).astype(np.float32)

    def body(u: Field, v: Field) -> Field:
        return _circle(u, v, 0.66) + wobble

    part.shadow(body, 0.06, depth=0.5)
    dough = 1 + 0.10 * _clouds(u, v, 8, 45) + 0.09 * _clouds(u, v, 26, 46) + 0.05 * _clouds(u, v, 80, 47)
    baked = _smooth(_circle(u, v, 0.30) / np.float32(0.45))[..., None]
    crumb = (1 - baked) * np.asarray((0.83, 0.60, 0.34), dtype=np.float32)
    crumb = (crumb + baked * np.asarray((0.62, 0.37, 0.16), dtype=np.float32)) * dough[..., None]
    part.paint(body(u, v), crumb.astype(np.float32))
    part.bevel(body(u, v), 0.10, 0.35)
    for ring, count in ((0.0, 1), (0.24, 5), (0.48, 9)):
        for k in range(count):
            angle = 2 * np.pi * (k + rng.uniform(-0.2, 0.2)) / count + ring * 4
            out = ring + rng.uniform(-0.03, 0.03)
            chip = scene.at(out * np.cos(angle), out * np.sin(angle), 0.14, float(rng.uniform(0, 4)))
            wide, high = rng.uniform(0.050, 0.072), rng.uniform(0.038, 0.055)
            shape = _box(chip.u, chip.v, wide, high, high * 0.95) + 0.012 * _clouds(chip.u, chip.v, 16, 48)
            chip.shade(shape - np.float32(0.012), 0.65, soft=0.04)
            chip.paint(shape, (0.20, 0.105, 0.06))
            chip.bevel(shape, 0.034, 0.75)
            chip.glint(chip.light[0] * 0.024, chip.light[1] * 0.024, 0.022, 0.016, 0.45)


# --- public -----------------------------------------------------------------------------------------------------------

_PARTS: dict[str, tuple[Callable[[_Scene, str | None, np.random.Generator], None], float, float, float]] = {
    "gear": (_gear, 4.0, 0.025, 0.97),
    "pcb": (_pcb, 0.6, 0.007, 0.90),  # held by its tooling holes
    "blister": (_blister, 2.0, 0.025, 0.94),
    UNKNOWN: (lambda scene, _defect, rng: _biscuit(scene, rng), 20.0, 0.025, 1.0),
}
"""Class → drawing function, range of rotation (degrees) and shift, and size. All parts stay inside a center crop of 6/7."""


def render(class_name: str, seed: int, defect: str | None = None, size: int = 512) -> tuple[Rgb, Mask]:
    """Draw one part.

    Args:
        class_name: One of ``CLASSES``, or ``UNKNOWN`` for an object of no class.
        seed: Pose, light, noise and the defect's place. Equal arguments give equal bytes.
        defect: One of ``DEFECTS[class_name]``; None for a good part.
        size: Side of the square image in pixels.

    Returns:
        The image, (size, size, 3) uint8 RGB, and the defect's mask, (size, size) bool: true exactly where the
        image differs from the good one of the same seed.
    """
    if class_name not in _PARTS:
        raise ValueError(f"no part named {class_name!r}; expected one of {', '.join(_PARTS)}")
    if defect is not None and defect not in DEFECTS.get(class_name, ()):
        raise ValueError(f"{class_name} has no defect {defect!r}; it has {', '.join(DEFECTS.get(class_name, ()))}")
    good = _draw(class_name, seed, None, size)
    if defect is None:
        return good, np.zeros((size, size), dtype=np.bool_)
    bad = _draw(class_name, seed, defect, size)
    return bad, (bad != good).any(axis=2)


def _draw(class_name: str, seed: int, defect: str | None, size: int) -> Rgb:
    painter, turn, shift, zoom = _PARTS[class_name]
    kind = 10 * list(_PARTS).index(class_name)
    scene = _Scene(size, _stream(seed, kind), turn, shift, zoom)
    painter(scene, defect, _stream(seed, kind + 1))
    return scene.develop(_stream(seed, kind + 2))


def write_dataset(root: Path, train: int = 8, good: int = 10, per_defect: int = 4) -> None:
    """Write every class as a tree of PNG files in the layout of MVTec-AD.

    ``root/<class>/train/good``, ``root/<class>/test/{good,<defect>}`` and ``root/<class>/ground_truth/<defect>``
    (``000_mask.png``, 0 or 255). No two images share a seed.
    """
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        jobs: list[Future[None]] = []
        for name in CLASSES:
            folder = root / name
            shots: list[tuple[Path, int, str | None, int]] = [
                (folder / "train" / "good", 0, None, train),
                (folder / "test" / "good", 1000, None, good),
            ]
            shots += [
                (folder / "test" / defect, 2000 + 1000 * kind, defect, per_defect)
                for kind, defect in enumerate(DEFECTS[name])
            ]
            for target, first_seed, defect, count in shots:
                jobs += [pool.submit(_shoot, target, index, name, first_seed + index, defect) for index in range(count)]
        for job in jobs:
            job.result()


def _shoot(folder: Path, index: int, class_name: str, seed: int, defect: str | None) -> None:
    image, mask = render(class_name, seed, defect)
    _save(folder / f"{index:03}.png", image)
    if defect is not None:
        truth = folder.parents[1] / "ground_truth" / defect
        _save(truth / f"{index:03}_mask.png", mask.astype(np.uint8) * np.uint8(255))


def _save(path: Path, pixels: Rgb) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=4)
