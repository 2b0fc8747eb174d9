"""Overlays: the heat map on the original image with the verdict below it. Also contact sheets."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..formats.files import atomic_write
from ..formats.roi import WHOLE_IMAGE
from ..images.pixels import to_rgb
from ..scoring.anomaly_map import MAP_SIZE
from ..scoring.regions import Geometry, Region
from .drawing import FAINT, INK, PANEL, Color, font, shorten
from .evidence import SupportReader, draw_evidence

if TYPE_CHECKING:
    from ..result import Result
    from ..scoring.areas import Area

Rgb = NDArray[np.uint8]
Field = NDArray[np.float32]

LONGEST_SIDE = 1024
SHORTEST_LONG_SIDE = 256
_CAPTION_WIDTH = 320  # a narrower caption is not readable

VERDICT_COLORS: dict[str, Color] = {
    "ok": (34, 150, 84),
    "review": (201, 128, 10),
    "anomalous": (208, 46, 46),
    "unknown": (110, 116, 128),
}
_FRAME: Color = (96, 190, 255)


def heatmap(anomaly_map: Field, scale: tuple[float, float]) -> Rgb:
    """Color an anomaly map.

    Args:
        anomaly_map: (H, W) float32.
        scale: (coldest, hottest) in map units; values beyond are clipped. It is never taken from the image, so that a good part
            looks cold.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    levels = (_normalised(anomaly_map, scale) * 255 + np.float32(0.5)).astype(np.uint8)
    colored = cv2.applyColorMap(levels, cv2.COLORMAP_TURBO)
    return np.ascontiguousarray(colored[..., ::-1], dtype=np.uint8)


def draw_overlay(
    image: Rgb,
    anomaly_map: Field,
    geometry: Geometry,
    regions: Sequence[Region],
    verdict: str,
    score: float,
    threshold: float | None,
    class_name: str | None,
    scale: tuple[float, float],
    *,
    caption: bool = True,
    areas: Sequence[Area] = (),
) -> Rgb:
    """Draw the heat map over the original image, and the verdict below it.

    Args:
        image: original image, (height, width, 3) uint8 RGB.
        anomaly_map: (256, 256) float32 over the center crop, in map units.
        geometry: position of the crop in the image.
        regions: regions to outline in white.
        verdict: ``ok``, ``review``, ``anomalous`` or ``unknown``.
        score: score of the image.
        threshold: ``None`` if the class is not calibrated.
        class_name: ``None`` if the image is of no known class.
        scale: (coldest, hottest) map value of the colors; the same for all images that are compared.
        caption: whether to add the strip with the verdict.
        areas: tiles of the image; each map is drawn in its place, and boxes of ROIs are outlined. Without any, ``anomaly_map`` is
            drawn.

    Returns:
        (h, w, 3) uint8 RGB. The longest side of the image is scaled into 256..1024 pixels.
    """
    canvas = _fit(image)
    height, width = canvas.shape[:2]
    to_x, to_y = width / image.shape[1], height / image.shape[0]

    covered = np.zeros((height, width), dtype=np.float32)
    stretched = np.zeros((height, width), dtype=np.float32)
    frames = []
    for one_map, place, ignored, box in _drawn(anomaly_map, geometry, areas):
        left, top = _scaled(place.to_original(0, 0), to_x, to_y)
        right, bottom = _scaled(place.to_original(MAP_SIZE, MAP_SIZE), to_x, to_y)
        values = _stretched(one_map, (left, top, right, bottom), (width, height))
        x0, y0 = round(left), round(top)
        x1, y1 = max(x0 + 1, round(right)), max(y0 + 1, round(bottom))
        shown = np.zeros((height, width), dtype=np.bool_)
        shown[y0:y1, x0:x1] = True
        if ignored is not None:
            shown &= ~_on_canvas(ignored, box, (to_x, to_y), (width, height))
        first = shown & (covered == 0)
        stretched[first] = values[first]
        np.maximum(stretched, values, out=stretched, where=shown)
        covered[shown] = 1
        frames.append((x0, y0, x1, y1))
    if not covered.any():
        stretched[:] = scale[0]

    blended = _blended(canvas, stretched, covered, scale)
    for frame in frames:
        _corner_marks(blended, *frame)
    for name in dict.fromkeys(area.roi for area in areas if area.roi != WHOLE_IMAGE):
        _roi_frame(blended, [area.box for area in areas if area.roi == name], to_x, to_y)
    for region in regions:
        outline = np.asarray(region.polygon, dtype=np.float64).reshape(-1, 2)
        if len(outline):
            _outline(blended, (outline + 0.5) * (to_x, to_y) - 0.5)
    if not caption:
        return blended
    framed = _centered(blended, max(width, _CAPTION_WIDTH), height)
    return np.concatenate([framed, _caption(framed.shape[1], verdict, score, threshold, class_name)])


def _drawn(
    anomaly_map: Field, geometry: Geometry, areas: Sequence[Area]
) -> list[tuple[Field, Geometry, NDArray[np.bool_] | None, tuple[int, int, int, int]]]:
    """Return the maps to draw: map, place, ignored pixels and box of each."""
    if areas:
        return [(area.anomaly_map, area.geometry, area.ignored, area.box) for area in areas]
    return [(anomaly_map, geometry, None, (0, 0, geometry.width, geometry.height))]


def _on_canvas(
    ignored: NDArray[np.bool_], box: tuple[int, int, int, int], scale: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return where the ignored pixels of a box lie on a canvas, bool (h, w)."""
    x, y, (to_x, to_y) = box[0], box[1], scale
    transform = np.array([[to_x, 0, (x + 0.5) * to_x - 0.5], [0, to_y, (y + 0.5) * to_y - 0.5]], dtype=np.float64)
    source = np.ascontiguousarray(ignored).view(np.uint8)
    return np.asarray(cv2.warpAffine(source, transform, size, flags=cv2.INTER_NEAREST)) > 0


def _roi_frame(canvas: Rgb, boxes: Sequence[tuple[int, int, int, int]], to_x: float, to_y: float) -> None:
    """Draw a thin frame around the tiles of a ROI."""
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, bottom = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    corners = (round(left * to_x), round(top * to_y)), (round(right * to_x) - 1, round(bottom * to_y) - 1)
    for color, thickness in (((20, 20, 20), 3), (_FRAME, 1)):
        cv2.rectangle(canvas, *corners, color, thickness)


def overlay_png(rgb: Rgb, result: Result, read_support: SupportReader | None = None) -> bytes:
    """Return the overlay of an inspected image as a PNG file.

    Args:
        rgb: uint8 (H, W, 3) RGB or (H, W) gray.
        result: result of the image.
        read_support: reads supports, for the evidence of the result's regions, which is drawn at the right. ``None`` leaves it out.
    """
    image = to_rgb(rgb) if rgb.ndim == 2 else np.ascontiguousarray(rgb)
    name = result.class_name
    if result.class_mismatch is not None:
        name = f"{name}, nearer to {result.class_mismatch}"
    drawn = draw_overlay(
        image,
        result.anomaly_map,
        result.geometry,
        result.regions,
        result.verdict,
        result.score,
        result.threshold,
        name,
        result.map_scale,
        areas=result.areas,
    )
    panel = None if read_support is None else draw_evidence(image, result.regions, read_support)
    if panel is not None:
        drawn = _side_by_side(drawn, panel)
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "PNG", compress_level=2)  # a quarter of the default's time, a tenth more bytes
    return file.getvalue()


def save_overlay(path: Path, rgb: Rgb, result: Result, read_support: SupportReader | None = None) -> None:
    """Write :func:`overlay_png` to a file, and create its parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, overlay_png(rgb, result, read_support))


def contact_sheet(tiles: Sequence[Rgb], columns: int, title: str) -> Rgb:
    """Arrange images on one contact sheet.

    Args:
        tiles: images, each (h, w, 3) uint8 RGB of any size.
        columns: images per row.
        title: text above them.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    gap = 12
    cell_w = min(512, max((tile.shape[1] for tile in tiles), default=256))
    cell_h = min(512, max((tile.shape[0] for tile in tiles), default=64))
    columns = max(1, min(columns, len(tiles) or 1))
    cells = [_centered(_shrink(tile, cell_w, cell_h), cell_w, cell_h) for tile in tiles]
    width = max(_CAPTION_WIDTH, columns * (cell_w + gap) + gap)
    rows = -(-len(cells) // columns)
    page = np.empty((64 + rows * (cell_h + gap), width, 3), dtype=np.uint8)
    page[:] = PANEL
    for index, cell in enumerate(cells):
        y, x = 64 + index // columns * (cell_h + gap), gap + index % columns * (cell_w + gap)
        page[y : y + cell_h, x : x + cell_w] = cell
    drawing = Image.fromarray(page)
    face = font(26)
    ImageDraw.Draw(drawing).text((gap, 32), shorten(title, face, width - 2 * gap), fill=INK, font=face, anchor="lm")
    return np.array(drawing, dtype=np.uint8)


def _normalised(anomaly_map: Field, scale: tuple[float, float]) -> Field:
    """Scale map units to 0..1. NaN counts as hottest, so that it is visible."""
    cold, hot = scale
    span = max(hot - cold, 1e-12)
    level = (np.asarray(anomaly_map, dtype=np.float64) - cold) / span
    return np.nan_to_num(np.clip(level, 0, 1), nan=1.0).astype(np.float32)


def _scaled(point: tuple[float, float], to_x: float, to_y: float) -> tuple[float, float]:
    return point[0] * to_x, point[1] * to_y


def _stretched(anomaly_map: Field, edges: tuple[float, float, float, float], size: tuple[int, int]) -> Field:
    """Stretch a map over a canvas. Beyond its edges the border values are repeated.

    Args:
        anomaly_map: (H, W) float32.
        edges: left, top, right and bottom of the map on the canvas, in pixels.
        size: width and height of the canvas.
    """
    left, top, right, bottom = edges
    step_x, step_y = (right - left) / MAP_SIZE, (bottom - top) / MAP_SIZE
    # Edges are positions of pixel edges, and warpAffine takes pixel centers: hence the halves.
    transform = np.array([[step_x, 0, left + step_x / 2 - 0.5], [0, step_y, top + step_y / 2 - 0.5]], dtype=np.float64)
    source = np.ascontiguousarray(anomaly_map, dtype=np.float32)
    return np.asarray(cv2.warpAffine(source, transform, size, borderMode=cv2.BORDER_REPLICATE), dtype=np.float32)


def _blended(canvas: Rgb, stretched: Field, covered: Field, scale: tuple[float, float]) -> Rgb:
    """Blend the heat map over the canvas. Its opacity grows with the heat.

    Args:
        canvas: (h, w, 3) uint8 RGB.
        stretched: (h, w) map values.
        covered: (h, w), 1 where the method inspects and 0 elsewhere; the rest is dimmed.
        scale: as in :func:`heatmap`.
    """
    ramp = np.clip((_normalised(stretched, scale) - np.float32(0.15)) / np.float32(0.60), 0, 1)
    alpha = (ramp * ramp * (3 - 2 * ramp) * np.float32(0.72) * covered)[..., None]
    base = canvas.astype(np.float32) * (np.float32(0.62) + np.float32(0.38) * covered)[..., None]
    blended: Rgb = (base * (1 - alpha) + heatmap(stretched, scale) * alpha + np.float32(0.5)).astype(np.uint8)
    return blended


def _fit(image: Rgb) -> Rgb:
    """Scale the longest side into 256..1024: down by averaging, up by repeating pixels a whole number of times."""
    height, width = image.shape[:2]
    longest = max(height, width)
    if longest > LONGEST_SIDE:
        return _shrink(image, LONGEST_SIDE, LONGEST_SIDE)
    times = -(-SHORTEST_LONG_SIDE // longest)
    return np.repeat(np.repeat(image, times, axis=0), times, axis=1) if times > 1 else image


def _shrink(image: Rgb, width: int, height: int) -> Rgb:
    factor = min(width / image.shape[1], height / image.shape[0])
    if factor >= 1:
        return image
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _centered(image: Rgb, width: int, height: int) -> Rgb:
    """Center the image on a dark panel of the given size, or a larger one if it does not fit."""
    spare_x, spare_y = max(0, width - image.shape[1]), max(0, height - image.shape[0])
    if not spare_x and not spare_y:
        return image
    page = np.empty((image.shape[0] + spare_y, image.shape[1] + spare_x, 3), dtype=np.uint8)
    page[:] = PANEL
    x, y = spare_x // 2, spare_y // 2
    page[y : y + image.shape[0], x : x + image.shape[1]] = image
    return page


def _side_by_side(left: Rgb, right: Rgb) -> Rgb:
    """Join two images at their top; a dark panel fills what the shorter one lacks."""
    page = np.empty((max(len(left), len(right)), left.shape[1] + right.shape[1], 3), dtype=np.uint8)
    page[:] = PANEL
    page[: len(left), : left.shape[1]] = left
    page[: len(right), left.shape[1] :] = right
    return page


def _corner_marks(canvas: Rgb, x0: int, y0: int, x1: int, y1: int) -> None:
    """Mark the corners of the inspected square, as in a viewfinder."""
    arm = max(2, min(x1 - x0, y1 - y0) // 20)
    for x, y, dx, dy in ((x0, y0, 1, 1), (x1 - 1, y0, -1, 1), (x0, y1 - 1, 1, -1), (x1 - 1, y1 - 1, -1, -1)):
        for color, thickness in (((20, 20, 20), 3), (INK, 1)):
            cv2.line(canvas, (x, y), (x + dx * arm, y), color, thickness)
            cv2.line(canvas, (x, y), (x, y + dy * arm), color, thickness)


def _outline(canvas: Rgb, points: NDArray[np.float64]) -> None:
    """Draw a white line with a dark rim, visible on any image. ``points`` (N, 2) are in canvas pixels."""
    fixed = [np.round(points * 16).astype(np.int32)]
    weight = max(1, round(max(canvas.shape[:2]) / 420))
    cv2.polylines(canvas, fixed, True, (15, 15, 15), weight + 2, cv2.LINE_AA, shift=4)
    cv2.polylines(canvas, fixed, True, (255, 255, 255), weight, cv2.LINE_AA, shift=4)


def _caption(width: int, verdict: str, score: float, threshold: float | None, class_name: str | None) -> Rgb:
    """Draw the strip below the image: verdict, class, score and threshold; (h, width, 3) uint8 RGB."""
    unit = max(14, min(26, width // 30))
    strip = Image.new("RGB", (width, round(unit * 2.6)), PANEL)
    pen = ImageDraw.Draw(strip)
    color = VERDICT_COLORS.get(verdict, VERDICT_COLORS["unknown"])
    middle, gap = strip.height / 2, unit * 0.6
    small, bold = font(unit - 2), font(unit)

    label = verdict.upper()
    pill = bold.getbbox(label)[2] + 2 * gap
    box = (gap, middle - unit * 0.85, gap + pill, middle + unit * 0.85)
    pen.rounded_rectangle(box, radius=unit * 0.4, fill=color)
    pen.text((2 * gap, middle), label, fill=(255, 255, 255), font=bold, anchor="lm")

    limit = "no threshold" if threshold is None else f"limit {threshold:.4g}"
    number = f"{score:.4g}"
    right = width - gap
    pen.text((right, middle), limit, fill=FAINT, font=small, anchor="rm")
    right -= small.getbbox(limit)[2] + gap
    pen.text((right, middle), number, fill=INK, font=bold, anchor="rm")
    right -= bold.getbbox(number)[2] + gap

    left = pill + 2 * gap
    name = shorten(class_name or "no class", bold, right - left)
    pen.text((left, middle), name, fill=INK if class_name else FAINT, font=bold, anchor="lm")
    pen.rectangle((0, 0, width, max(2, unit // 8) - 1), fill=color)
    return np.array(strip, dtype=np.uint8)
