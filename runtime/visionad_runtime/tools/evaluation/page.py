"""An evaluation as an HTML page: table, curves, histograms and the hardest images. It needs Jinja2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...visualization.html import Axis, InlineImage, Strip, render
from .aggregate import Evaluation
from .metrics import PRO_MAX_FPR
from .published import published
from .report import comparison, percent_cell, remarks, seed_label, settings, table, title
from .store import EvaluationUnit
from .tally import best_threshold

BINS = 40
PITCH = "How well good and defective parts are told apart, and defects located, on images that are not enrolled."


class _Bar(NamedTuple):
    kind: str
    x: float
    height: float
    title: str


def html_page(evaluation: Evaluation) -> str:
    """Return the page. It loads nothing from elsewhere."""
    overall = evaluation.to_dict()["mean"]["all"]
    figures = [
        (f"{name}, mean over classes", percent_cell(overall[metric]))
        for name, metric in (("image AUROC", "image_auroc"), ("pixel AUROC", "pixel_auroc"), ("AUPRO", "pixel_aupro"))
    ]
    images = sum(unit.result["images"] for unit in evaluation.units if unit.result["seed"] == evaluation.seeds[0])
    head, rows = table(evaluation)
    row = published(evaluation.dataset, evaluation.shots)
    return render(
        "evaluation.html",
        title=title(evaluation),
        pitch=PITCH,
        facts=[*figures, ("test images", str(images)), *settings(evaluation)],
        head=head,
        rows=[(_row_kind(evaluation, cells[0]), cells) for cells in rows],
        comparison=None if row is None else comparison(evaluation, row),
        classes=[_class(evaluation, name) for name in evaluation.classes],
        notes=remarks(evaluation),
    )


def _row_kind(evaluation: Evaluation, name: str) -> str:
    if name in evaluation.classes:
        return ""
    return "mean" if name.startswith("mean of ") else "published"


def _class(evaluation: Evaluation, name: str) -> dict[str, Any]:
    units = evaluation.of_class(name)
    first = units[0]
    spread = evaluation.to_dict()["mean"]["by_class"][name]
    stats = [
        ("image AUROC", percent_cell(spread["image_auroc"])),
        ("AUPRO", percent_cell(spread["pixel_aupro"])),
        ("good", str(first.result["good"])),
        ("defects", str(first.result["defects"])),
    ]
    calibration = first.result.get("calibration")
    if calibration and calibration["threshold"] is not None:
        stats.append(("false rejects", f"{calibration['false_rejects']} of {first.result['good']}"))
        stats.append(("misses", f"{calibration['misses']} of {first.result['defects']}"))
    else:
        rates = (("false rejects", "false_reject_rate"), ("caught", "caught_rate"))
        stats += [(name, percent_cell(spread[rate])) for name, rate in rates]
    return {
        "name": name,
        "stats": stats,
        "supports": ", ".join(PurePosixPath(path).name for path in first.result["supports"]),
        "shown": f", seed {seed_label(first.result['seed'])}" if len(evaluation.seeds) > 1 else "",
        "plots": [
            _plot("Image ROC", "good rejected", "defects found", [_image_roc(u) for u in units], 1.0),
            _plot("Pixel ROC", "good pixels marked", "defect pixels marked", [u.arrays["roc"] for u in units], 1.0),
            _plot("PRO", "good pixels marked", "overlap with regions", [u.arrays["pro"] for u in units], PRO_MAX_FPR),
        ],
        "histogram": _histogram(first),
        "hardest": _hardest(first),
    }


def _image_roc(unit: EvaluationUnit) -> NDArray[np.float64]:
    scores, labels = unit.arrays["scores"], unit.arrays["labels"].astype(bool)
    if not labels.any() or labels.all():
        return np.empty((0, 2))
    order = np.argsort(-scores, kind="stable")
    detected, rejected = np.cumsum(labels[order]), np.cumsum(~labels[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are one step
    points = np.stack([rejected[last] / rejected[-1], detected[last] / detected[-1]], axis=1)
    return np.concatenate([[[0.0, 0.0]], points])


def _plot(name: str, x_label: str, y_label: str, curves: Sequence[NDArray[Any]], x_end: float) -> dict[str, Any]:
    """Scale curves to the unit square. The first one comes last, so that it is drawn on top."""
    return {
        "name": name,
        "x_label": x_label,
        "y_label": y_label,
        "x_end": x_end,
        "curves": [
            ("first" if index == 0 else "other", [(min(x / x_end, 1), y) for x, y in curve.tolist()])
            for index, curve in reversed(list(enumerate(curves)))
            if len(curve) > 1
        ],
    }


def _histogram(unit: EvaluationUnit) -> dict[str, Any] | None:
    scores, labels = unit.arrays["scores"], unit.arrays["labels"]
    if not scores.size:
        return None
    calibration = unit.result.get("calibration")
    threshold = calibration["threshold"] if calibration else None
    limit = best_threshold(scores, labels) if threshold is None else float(threshold)
    axis = Axis.around([*scores.tolist(), limit])
    frame = Strip(axis, 170, left=24, right=24, top=30)
    by_label = [np.histogram(scores[labels == label], BINS, (axis.low, axis.high)) for label in (0, 1)]
    shares = [counts / max(counts.sum(), 1) for counts, _ in by_label]
    highest = max(float(share.max()) for share in shares) or 1.0
    bars = [
        _Bar(
            "bad" if label else "good",
            frame.x(edges[k]),
            frame.height * share[k] / highest,
            f"{counts[k]} {'defects' if label else 'good'}, {edges[k]:.4g} to {edges[k + 1]:.4g}",
        )
        for label, ((counts, edges), share) in enumerate(zip(by_label, shares, strict=True))
        for k in range(BINS)
        if counts[k]
    ]
    return {
        "frame": frame,
        "bars": bars,
        "bar_width": frame.room / BINS - 1,
        "limit": limit,
        "limit_label": "best F1, known only in hindsight:" if threshold is None else "threshold",
    }


def _hardest(unit: EvaluationUnit) -> list[tuple[str, list[dict[str, Any]]]]:
    groups = []
    for label, heading in (
        (1, "Defects that look most like good parts"),
        (0, "Good parts that look most like defects"),
    ):
        cards = []
        for index, entry in enumerate(unit.result["worst"]):
            if entry["label"] != label or f"picture_{index}" not in unit.arrays:
                continue
            path = entry["image"]
            misrouted = entry["class"] != unit.result["class"]
            cards.append(
                {
                    "image": InlineImage.of_jpeg(unit.arrays[f"picture_{index}"].tobytes(), f"{path}, as taken"),
                    "overlay": InlineImage.of_jpeg(unit.arrays[f"overlay_{index}"].tobytes(), f"{path}, heat map"),
                    "defect": entry["defect"],
                    "score": entry["score"],
                    "path": path,
                    "taken_for": (entry["class"] or "no class") if misrouted else None,
                }
            )
        if cards:
            groups.append((heading, cards))
    return groups
