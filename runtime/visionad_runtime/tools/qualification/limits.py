"""The detection limit from good images alone, and how far it agrees with real defects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import VisionADError
from ...images.pixels import RGB8
from .defects import KINDS, VISIBLE, paint
from .detection import MIN_DEFECTS, PodFit, fit_pod
from .inputs import Labeled
from .places import CONTRASTS, GRID, Specimen, extent, inspected_pixels, part_pixels, plan, shorter_side, size_levels
from .rates import Rate
from .scorer import Scored, Scorer

MAX_CANVASES = 12
"""Good images that defects are painted on."""
SHARE_FOUND = 0.9
"""Share of defects that must be found from a size on, for the map of regions."""
CURVE_POINTS = 40
NONE_PASSES = (
    "every good image is rejected, so nothing painted can be told from it; calibrate with good images of this station"
)


def passing_images(good: Sequence[Labeled], outcomes: Mapping[str, Scored]) -> list[Labeled]:
    """Return the good images that are not rejected."""
    return [one for one in good if outcomes[one.sha256].verdict != "anomalous"]


class Canvases:
    """Good images that defects are painted on: those that are not rejected unpainted.

    Attributes:
        images: the images.
        masks: bool (H, W) of each: inspected pixels of the part.
        sides: shorter side of what is inspected of each, in pixels.
        reference: the median of ``sides``: sizes are reported in pixels of such an image.
        note: what differs between the images, or ``None``.
    """

    def __init__(self, scorer: Scorer, good: Sequence[Labeled], outcomes: Mapping[str, Scored]) -> None:
        """Choose and read the images.

        Args:
            scorer: inspects.
            good: good images.
            outcomes: their outcomes.

        Raises:
            VisionADError: None of them passes, or no part is seen in one.
        """
        passing = passing_images(good, outcomes)
        if not passing:
            raise VisionADError(NONE_PASSES)
        # evenly spread, so that groups in different folders are all drawn
        spread = np.linspace(0, len(passing) - 1, min(len(passing), MAX_CANVASES)).round().astype(int)
        self.images = [passing[i] for i in spread]
        self._pixels = [scorer.load(one.path) for one in self.images]
        layout = scorer.inspector.require_class(scorer.class_name).classes[scorer.class_name].layout
        self.masks, self.sides = list[NDArray[np.bool_]](), list[float]()
        for one, rgb in zip(self.images, self._pixels, strict=True):
            inspected = inspected_mask(scorer, rgb)
            # Drawn regions of interest say already what matters.
            mask = inspected & part_pixels(rgb) if layout is None else inspected
            if not mask.any():
                raise VisionADError(
                    f"detection limit: no part is seen in what is inspected of {one.path}; look at the image"
                )
            self.masks.append(mask)
            self.sides.append(float(shorter_side(inspected)))
        self.reference = float(np.median(self.sides))
        sizes = {rgb.shape[:2] for rgb in self._pixels}
        self.note = (
            f"the good images have {len(sizes)} sizes; extents hold for an image with {self.reference:.0f} inspected pixels along "
            "its shorter side, and were painted in proportion on the others"
            if len(sizes) > 1
            else None
        )

    def pixels(self, index: int) -> RGB8:
        """Return an image, uint8 (H, W, 3) RGB or (H, W) gray."""
        return self._pixels[index]


def inspected_mask(scorer: Scorer, rgb: RGB8) -> NDArray[np.bool_]:
    """Return the pixels that are inspected, bool (H, W): the tiles of the class's ROIs, or the center crop."""
    layout = scorer.inspector.require_class(scorer.class_name).classes[scorer.class_name].layout
    spec = scorer.inspector.manifest.identity.preprocess
    if layout is None:
        return inspected_pixels(rgb.shape, [((0, 0, rgb.shape[1], rgb.shape[0]), None)], spec)
    layout.check(rgb)
    return inspected_pixels(rgb.shape, [(tile.box, tile.ignored) for tile in layout.tiles], spec)


def inspected_side(scorer: Scorer, rgb: RGB8) -> int:
    """Return the shorter side of what is inspected of an image, in pixels."""
    return shorter_side(inspected_mask(scorer, rgb))


def detection_limit(
    scorer: Scorer, canvases: Canvases, count: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Paint defects on good images, inspect them, and fit POD curves.

    Args:
        scorer: inspects, and keeps the outcomes.
        canvases: good images.
        count: number of defects.
        seed: of the draws.

    Returns:
        The section of the report, and one row for each defect.
    """
    specimens, levels = plan(canvases.masks, canvases.sides, count, seed), size_levels(canvases.reference)
    rows = []
    for specimen in specimens:
        row = _inspect(scorer, canvases, specimen, levels[specimen.level])
        if row is not None:
            rows.append(row)
    return limit_report(rows, levels) | {
        "images": [one.name for one in canvases.images],
        "planned": len(specimens),
        "invisible": len(specimens) - len(rows),
        "seed": seed,
        "note": canvases.note,
    }, rows


def _inspect(scorer: Scorer, canvases: Canvases, specimen: Specimen, size: float) -> dict[str, Any] | None:
    canvas, defect = canvases.images[specimen.image], specimen.defect
    rgb = canvases.pixels(specimen.image)
    painted = paint(rgb, defect)
    if painted.change < VISIBLE:
        scorer.step()
        return None
    scored = scorer.score_pixels(painted.rgb)
    measured, scale = extent(painted.rgb, painted.mask), canvases.reference / canvases.sides[specimen.image]
    return {
        "image": canvas.name,
        "kind": defect.kind,
        "row": specimen.row,
        "column": specimen.column,
        "size": size,
        "contrast": defect.contrast,
        "measured_size": None if measured is None else measured.size * scale,
        "measured_contrast": None if measured is None else measured.contrast,
        "score": scored.score,
        "found": scored.verdict == "anomalous",
    }


def limit_report(rows: Sequence[Mapping[str, Any]], levels: Sequence[float]) -> dict[str, Any]:
    """Return POD curves by kind, and the smallest defect found by region.

    Args:
        rows: one for each defect, with ``kind``, ``row``, ``column``, ``size``, ``contrast`` and ``found``.
        levels: painted sizes in pixels, ascending.
    """
    kinds = {}
    for kind in KINDS:
        own = [row for row in rows if row["kind"] == kind]
        if len(own) < MIN_DEFECTS:
            continue
        fit = fit_pod([r["size"] for r in own], [r["contrast"] for r in own], [r["found"] for r in own])
        kinds[kind] = {
            "defects": len(own),
            "found": sum(r["found"] for r in own),
            "coefficients": list(fit.coefficients),
            "limits": [limits_at(fit, contrast) for contrast in CONTRASTS],
            "curve": curve(fit, CONTRASTS[1]),
            "levels": [_level(own, size) for size in levels],
            "regions": smallest_found(own, levels),
        }
    return {"sizes": list(levels), "contrasts": list(CONTRASTS), "grid": GRID, "defects": len(rows), "kinds": kinds}


def limits_at(fit: PodFit, contrast: float) -> dict[str, Any]:
    """Return ``a50``, ``a90`` and ``a90_95`` in pixels at a contrast; ``None`` where they are beyond reach.

    ``beyond`` says whether ``a90`` lies outside of the painted sizes, where it rests on the fitted curve alone: ``below`` or
    ``above``.
    """
    a90 = fit.size_at(contrast)
    beyond = "above" if a90 is None or a90 > fit.largest else "below" if a90 < fit.smallest else None
    return {
        "contrast": contrast,
        "a50": fit.size_at(contrast, 0.5),
        "a90": a90,
        "a90_95": fit.confident_size_at(contrast),
        "beyond": beyond,
    }


def curve(fit: PodFit, contrast: float) -> list[list[float]]:
    """Return points of a POD curve over the painted sizes: size, POD, lower 95 % bound."""
    sizes = np.geomspace(fit.smallest, fit.largest, CURVE_POINTS)
    return [[float(s), fit.pod(float(s), contrast), fit.lower_pod(float(s), contrast)] for s in sizes]


def _level(rows: Sequence[Mapping[str, Any]], size: float) -> dict[str, Any]:
    own = [row for row in rows if row["size"] == size]
    return {"size": size, **Rate.of(sum(r["found"] for r in own), len(own)).to_dict()}


def smallest_found(rows: Sequence[Mapping[str, Any]], levels: Sequence[float]) -> list[list[float | None]]:
    """Return the smallest painted size from which on 90 % of the defects of a region were found.

    Only contrasts from the middle one on count. A region has few defects, so this is a map, not a limit with a confidence.

    Args:
        rows: defects of one kind.
        levels: painted sizes, ascending.

    Returns:
        Rows of columns; ``None`` where even the largest ones were missed, or nothing was painted.
    """
    table: list[list[float | None]] = []
    for r in range(GRID):
        table.append([])
        for c in range(GRID):
            own = [x for x in rows if (x["row"], x["column"]) == (r, c) and x["contrast"] >= CONTRASTS[1]]
            smallest = None
            for size in reversed(levels):
                above = [x["found"] for x in own if x["size"] >= size]
                if above and sum(above) < SHARE_FOUND * len(above):
                    break
                smallest = size if any(x["size"] == size for x in own) else smallest
            table[-1].append(smallest)
    return table


def compare_with_real(
    scorer: Scorer,
    bad: Sequence[Labeled],
    masks: Mapping[str, Path],
    outcomes: Mapping[str, Scored],
    painted: Sequence[Mapping[str, Any]],
    reference: float,
) -> dict[str, Any]:
    """Compare what painted defects predict with what was found of real ones.

    A POD curve over the measured extent and contrast of all painted defects predicts the chance of each real defect, by its mask.

    Args:
        scorer: reads the images.
        bad: images with defects.
        masks: sha256 of an image → its mask.
        outcomes: outcomes of ``bad``.
        painted: rows of :func:`detection_limit`.
        reference: shorter inspected side of the images that extents are stated for.

    Raises:
        VisionADError: A mask has another size than its image.
    """
    real = []
    for one in bad:
        if one.sha256 not in masks:
            continue
        rgb, mask = scorer.load(one.path), read_mask(scorer, masks[one.sha256])
        if mask.shape != rgb.shape[:2]:
            raise VisionADError(
                f"{masks[one.sha256]}: expected a mask of {rgb.shape[1]} x {rgb.shape[0]} pixels, the size of its image, got "
                f"{mask.shape[1]} x {mask.shape[0]}"
            )
        measured = extent(rgb, mask)
        if measured is not None:
            scale = reference / inspected_side(scorer, rgb)
            real.append(
                {
                    "image": one.name,
                    "type": one.group,
                    "size": measured.size * scale,
                    "contrast": measured.contrast,
                    "found": outcomes[one.sha256].verdict == "anomalous",
                }
            )
    return real_report(real, painted)


def real_report(real: Sequence[Mapping[str, Any]], painted: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return predicted and realized detection by type of defect.

    ``agrees`` is whether the prediction lies in the exact interval of the realized share. ``factor`` is the ratio of the real and
    the painted a50 at the real defects' median contrast, where real defects were both found and missed.
    """
    known = [row for row in painted if row["measured_size"] is not None]
    if len(known) < MIN_DEFECTS or not real:
        return {"defects": len(real), "types": {}, "why_empty": "too few painted defects, or no mask has a defect"}
    fit = fit_pod(
        [r["measured_size"] for r in known], [r["measured_contrast"] for r in known], [r["found"] for r in known]
    )
    types = {}
    for name in sorted({row["type"] for row in real}):
        own = [row for row in real if row["type"] == name]
        rate = Rate.of(sum(r["found"] for r in own), len(own))
        predicted = float(np.mean([fit.pod(r["size"], r["contrast"]) for r in own]))
        types[name] = {
            "defects": len(own),
            "median_size": float(np.median([r["size"] for r in own])),
            "median_contrast": float(np.median([r["contrast"] for r in own])),
            "predicted": predicted,
            "found": rate.to_dict(),
            "agrees": rate.low <= predicted <= rate.high,
        }
    factor, hits = None, [r["found"] for r in real]
    if len(real) >= MIN_DEFECTS and 0 < sum(hits) < len(hits):
        contrast = float(np.median([r["contrast"] for r in real]))
        own_fit = fit_pod([r["size"] for r in real], [r["contrast"] for r in real], hits)
        a_real, a_painted = own_fit.size_at(contrast, 0.5), fit.size_at(contrast, 0.5)
        factor = None if a_real is None or a_painted is None else a_real / a_painted
    return {
        "defects": len(real),
        "types": types,
        "disagree": [name for name, row in types.items() if not row["agrees"]],
        "factor": factor,
        "rows": list(real),
    }


def read_mask(scorer: Scorer, path: Path) -> NDArray[np.bool_]:
    """Return the defective pixels of a mask file, bool (H, W): above 127, or, in a map of labels up to 127, above 0."""
    raw = scorer.load(path)
    gray = raw if raw.ndim == 2 else raw.max(axis=2)
    mask: NDArray[np.bool_] = gray > (127 if gray.max() > 127 else 0)
    return mask
