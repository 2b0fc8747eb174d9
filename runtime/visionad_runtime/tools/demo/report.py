"""The demo's result as one HTML page: images embedded, nothing fetched, in a light and a dark theme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...visualization.html import Axis, InlineImage, Strip, number, render
from ...visualization.thumbnails import Mask, Rgb, draw_ground_truth

GOOD = "good"
UNKNOWN = "unknown"
PITCH = "Enroll a few good parts, then inspect. Where a new image differs from all of them, it is reported and shown."

_THUMB = 256
_SUPPORT_THUMB = 160


@dataclass(frozen=True, eq=False)
class Case:
    """One inspected image.

    Attributes:
        image_path: image file.
        class_name: class of the image.
        truth: ``good``, the name of a defect, ``unknown`` for an object of no class, or ``None`` without a label.
        score: score of the image.
        threshold: threshold of the class, if calibrated.
        verdict: ``ok``, ``review``, ``anomalous`` or ``unknown``.
        overlay: (h, w, 3) uint8 RGB of any size, without a caption.
        image: (h, w, 3) uint8 RGB of any size.
        routed_class: class that the image was routed to.
        class_margin: margin of the routing.
        mask: (h, w) bool, the true defect over the whole image; it is outlined.
    """

    image_path: str
    class_name: str
    truth: str | None
    score: float
    threshold: float | None
    verdict: str
    overlay: Rgb
    image: Rgb
    routed_class: str | None = None
    class_margin: float | None = None
    mask: Mask | None = None


@dataclass(frozen=True, eq=False)
class ClassReport:
    """One class.

    Attributes:
        name: name of the class.
        supports: enrolled images, (h, w, 3) uint8 RGB.
        cases: inspected images.
        image_auroc: image AUROC, if defined.
        pixel_auroc: pixel AUROC, if defined.
        threshold: threshold, if calibrated.
    """

    name: str
    supports: Sequence[Rgb]
    cases: Sequence[Case]
    image_auroc: float | None = None
    pixel_auroc: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """Content of the page.

    Attributes:
        title: its title.
        facts: name and value; the first four are shown large.
        classes: classes in order.
        timings_ms: milliseconds by stage.
        notes: remarks.
        commands: commands to try next.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    classes: Sequence[ClassReport]
    timings_ms: dict[str, float]
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the page. Equal reports give equal bytes.

    Args:
        path: the file; its folder is created.
        report: content of the page.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(report), encoding="utf-8", newline="\n")


def mistake(case: Case) -> str | None:
    """Describe what is wrong with a verdict; ``None`` if it is correct or the image has no label."""
    if case.truth is None:
        return None
    if case.truth == UNKNOWN:
        return None if case.verdict == UNKNOWN else f"routed to {case.routed_class or 'a known class'}"
    if case.verdict in (UNKNOWN, "review"):
        return "no verdict" if case.routed_class else "not recognized"
    if case.routed_class is not None and case.routed_class != case.class_name:
        return f"routed to {case.routed_class}"
    if case.truth == GOOD:
        return None if case.verdict == "ok" else "false alarm"
    return None if case.verdict == "anomalous" else "missed"


# --- what the template shows ------------------------------------------------------------------------------------------


class _Dot(NamedTuple):
    """A score in the diagram. ``anchor`` is the id of its card."""

    anchor: str
    kind: str
    x: float
    y: float
    title: str


class _Row(NamedTuple):
    """The scores of one truth. ``y`` is the middle of the row."""

    label: str
    y: float
    dots: list[_Dot]


class _Stage(NamedTuple):
    """A stage's part of a bar that is 1000 units wide."""

    name: str
    ms: float
    percent: float
    hue: str
    x: float
    width: float
    is_wide: bool


def _page(report: Report) -> str:
    cases = [case for entry in report.classes for case in entry.cases]
    total, stages = _stages(report.timings_ms)
    return render(
        "demo.html",
        title=report.title,
        pitch=PITCH,
        facts=list(report.facts),
        count=len(cases),
        wrong=sum(mistake(case) is not None for case in cases),
        classes=[_class(index, entry) for index, entry in enumerate(report.classes)],
        total=total,
        stages=stages,
        notes=list(report.notes),
        commands=list(report.commands),
    )


def _class(index: int, entry: ClassReport) -> dict[str, Any]:
    labeled = [case for case in entry.cases if case.truth is not None]
    correct = sum(mistake(case) is None for case in labeled)
    stats = [
        ("image AUROC", _auroc(entry.image_auroc)),
        ("pixel AUROC", _auroc(entry.pixel_auroc)),
        ("threshold", number(entry.threshold)),
        ("correct", f"{correct} of {len(labeled)}"),
    ]
    scores = [case.score for case in entry.cases if math.isfinite(case.score)]
    axis = Axis.around([*scores, *([entry.threshold] if entry.threshold is not None else [])])
    order = sorted(range(len(entry.cases)), key=lambda k: _interest(entry.cases[k]))
    return {
        "name": entry.name,
        "stats": [(name, value) for name, value in stats if value != "–"],
        "supports": [
            InlineImage.of_pixels(shot, f"{entry.name}: good part {place}", _SUPPORT_THUMB)
            for place, shot in enumerate(entry.supports, start=1)
        ],
        "scores": _scores(index, entry, axis) if len(scores) > 1 else None,
        "cards": [_card(_anchor(index, k), entry.cases[k], axis) for k in order],
    }


def _anchor(index: int, place: int) -> str:
    return f"c{index}-{place}"


def _auroc(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _scores(index: int, entry: ClassReport, axis: Axis) -> dict[str, Any]:
    """Lay out the scores as dots, one row per truth, good on top. A mistake is a ring."""
    truths = sorted({case.truth for case in entry.cases}, key=lambda truth: (truth != GOOD, truth is None, truth or ""))
    row_height = 30
    frame = Strip(axis, row_height * len(truths), left=150, right=24, top=26)
    rows = []
    for row, truth in enumerate(truths):
        y = frame.top + row_height * (row + 0.5)
        members = [(frame.x(case.score), k, case) for k, case in enumerate(entry.cases) if case.truth == truth]
        dots = [
            _Dot(
                _anchor(index, k),
                ("ring " if mistake(case) else "") + _kind(case),
                x,
                y + lift,
                f"{Path(case.image_path).name}: {number(case.score)}",
            )
            for (x, k, case), lift in zip(members, _lifts([x for x, _, _ in members]), strict=True)
            if math.isfinite(case.score)
        ]
        rows.append(_Row(_words(truth), y, dots))
    return {"frame": frame, "threshold": entry.threshold, "rows": rows}


def _lifts(places: Sequence[float]) -> list[float]:
    """Return vertical offsets that keep the dots of one row apart."""
    lifts = [0.0] * len(places)
    placed: list[tuple[float, float]] = []
    for index in sorted(range(len(places)), key=lambda k: places[k]):
        near = [lift for x, lift in placed if abs(x - places[index]) < 10]
        lifts[index] = next((lift for lift in (0.0, -7.0, 7.0) if lift not in near), 0.0)
        placed.append((places[index], lifts[index]))
    return lifts


def _kind(case: Case) -> str:
    if case.truth is None:
        return "open"
    return "good" if case.truth == GOOD else "foreign" if case.truth == UNKNOWN else "bad"


def _interest(case: Case) -> int:
    """Return a sorting key: mistakes first, good parts last."""
    return 0 if mistake(case) else 2 if case.truth == GOOD else 1


def _words(truth: str | None) -> str:
    return {None: "not labeled", UNKNOWN: "foreign object"}.get(truth) or str(truth).replace("_", " ")


def _card(anchor: str, case: Case, axis: Axis) -> dict[str, Any]:
    name = Path(case.image_path).name
    routed = ""
    if case.routed_class is not None:
        margin = "" if case.class_margin is None else f", margin {number(case.class_margin)}"
        routed = f"routed to {case.routed_class}{margin}"
    return {
        "anchor": anchor,
        "kind": _kind(case),
        "mistake": mistake(case),
        "image": InlineImage.of_pixels(draw_ground_truth(case.image, case.mask, _THUMB), f"{name}, as taken", _THUMB),
        "overlay": InlineImage.of_pixels(case.overlay, f"{name}, heat map", _THUMB),
        "verdict": case.verdict,
        "verdict_class": case.verdict,
        "truth": _words(case.truth),
        "score": case.score,
        "limit": "" if case.threshold is None else f"threshold {number(case.threshold)}",
        "fill": 100 * axis.at(case.score) if math.isfinite(case.score) else None,
        "mark": None if case.threshold is None else 100 * axis.at(case.threshold),
        "path": case.image_path,
        "name": name,
        "routed": routed,
    }


def _stages(timings_ms: Mapping[str, float]) -> tuple[float, list[_Stage]]:
    """Return total milliseconds, and the stages that take time."""
    known = [(name, ms) for name, ms in timings_ms.items() if math.isfinite(ms) and ms > 0]
    total = sum(ms for _, ms in known)
    stages, x = [], 0.0
    for index, (name, ms) in enumerate(known):
        width = 1000 * ms / total
        stages.append(_Stage(name, ms, 100 * ms / total, f"s{index % 7}", x, max(0.0, width - 2), width > 110))
        x += width
    return total, stages
