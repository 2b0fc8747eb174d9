"""The demo's result as one HTML page: every picture inside, nothing fetched, readable from ``file://`` by day and night.

All text that comes from outside passes :func:`~visionad_runtime.page.text`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..page import Axis, Mask, Rgb, document, header, image, notes, number, text, with_truth

GOOD = "good"
UNKNOWN = "unknown"
PITCH = (
    "Show it a few good parts, and it inspects: where a new picture differs from all of them, it says so and shows it."
)

_THUMB = 256
_SUPPORT_THUMB = 160


@dataclass(frozen=True, eq=False)
class Case:
    """One inspected picture."""

    image_path: str
    class_name: str
    truth: str | None
    """``good``, a defect's name, ``unknown`` for an object of no class, or None if nobody knows."""
    score: float
    threshold: float | None
    verdict: str
    """``ok``, ``anomalous`` or ``unknown``."""
    overlay: Rgb
    """(h, w, 3) uint8 RGB, any size; without a caption strip it sits best beside the picture."""
    picture: Rgb
    """(h, w, 3) uint8 RGB, any size."""
    routed_class: str | None = None
    class_margin: float | None = None
    mask: Mask | None = None
    """(h, w) bool, the true defect over the whole picture; outlined on it."""


@dataclass(frozen=True, eq=False)
class ClassReport:
    """One class: what it was taught with and how it fared."""

    name: str
    supports: Sequence[Rgb]
    cases: Sequence[Case]
    image_auroc: float | None = None
    pixel_auroc: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """The page. The first four facts are its headline figures, the rest a list."""

    title: str
    facts: Sequence[tuple[str, str]]
    classes: Sequence[ClassReport]
    timings_ms: dict[str, float]
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write the page to ``path``, parents included; equal reports give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(report), encoding="utf-8", newline="\n")


def mistake(case: Case) -> str | None:
    """What went wrong in words; None if the case came out right or nobody knows the truth."""
    if case.truth is None:
        return None
    if case.truth == UNKNOWN:
        return None if case.verdict == UNKNOWN else f"taken for {case.routed_class or 'a known class'}"
    if case.verdict == UNKNOWN:
        return "no verdict" if case.routed_class else "not recognised"
    if case.routed_class is not None and case.routed_class != case.class_name:
        return f"taken for {case.routed_class}"
    if case.truth == GOOD:
        return None if case.verdict == "ok" else "false alarm"
    return None if case.verdict == "anomalous" else "missed"


# --- pieces -----------------------------------------------------------------------------------------------------------


def _auroc(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _page(report: Report) -> str:
    cases = [case for entry in report.classes for case in entry.cases]
    wrong = sum(mistake(case) is not None for case in cases)
    body = [
        header(report.title, PITCH, report.facts),
        _filter(len(cases), wrong),
        *(_class_section(index, entry) for index, entry in enumerate(report.classes)),
        _timings(report.timings_ms),
        notes(report.notes),
        _commands(report.commands),
        "<footer>One file, no network: pictures, figures and style are all inside.</footer>",
    ]
    return document(report.title, body)


def _filter(count: int, wrong: int) -> str:
    if not count:
        return ""
    choices = (("all", f"All {count}"), ("good", "Good parts"), ("bad", "Defects"), ("wrong", f"Mistakes {wrong}"))
    buttons = "".join(
        f'<input type="radio" name="show" id="show-{key}"{" checked" if key == "all" else ""}>'
        f'<label for="show-{key}">{label}</label>'
        for key, label in choices
    )
    return (
        f'<nav aria-label="Filter"><div class="choices">{buttons}</div>'
        '<p class="legend"><i class="line"></i>true defect<i class="ramp"></i>found: cold to hot, one scale a class</p></nav>'
    )


def _class_section(index: int, entry: ClassReport) -> str:
    known = [case for case in entry.cases if case.truth is not None]
    right = sum(mistake(case) is None for case in known)
    stats = [
        ("image AUROC", _auroc(entry.image_auroc)),
        ("pixel AUROC", _auroc(entry.pixel_auroc)),
        ("threshold", number(entry.threshold)),
        ("right", f"{right} of {len(known)}"),
    ]
    chips = "".join(f"<div><b>{text(value)}</b><span>{name}</span></div>" for name, value in stats if value != "–")
    supports = "".join(
        image(shot, f"{entry.name}: good part {place}", _SUPPORT_THUMB)
        for place, shot in enumerate(entry.supports, start=1)
    )
    scores = [case.score for case in entry.cases if math.isfinite(case.score)]
    axis = Axis.around([*scores, *([entry.threshold] if entry.threshold is not None else [])])
    order = sorted(range(len(entry.cases)), key=lambda k: _interest(entry.cases[k]))
    cards = "".join(_card(f"c{index}-{k}", entry.cases[k], axis) for k in order)
    taught = len(entry.supports)
    return (
        f'<section><div class="head"><h2>{text(entry.name)}</h2><div class="stats">{chips}</div></div>'
        + (
            f'<h3>Taught with {taught} good picture{"s" if taught != 1 else ""}</h3><div class="supports">{supports}</div>'
            if taught
            else ""
        )
        + (f'<h3>Scores</h3><div class="wide">{_strip(index, entry, axis)}</div>' if len(scores) > 1 else "")
        + (f'<h3>Verdicts</h3><div class="cards">{cards}</div>' if cards else "")
        + "</section>"
    )


def _strip(index: int, entry: ClassReport, axis: Axis) -> str:
    """Scores as dots, one row for each truth, good on top; a mistake is a ring."""
    rows = sorted({case.truth for case in entry.cases}, key=lambda truth: (truth != GOOD, truth is None, truth or ""))
    left, right, top, row_height, width = 150, 24, 26, 30, 1000
    bottom = top + row_height * len(rows)
    room = width - left - right

    def x_of(value: float) -> float:
        return left + room * axis.at(value)

    parts = [
        f'<line class="grid" x1="{x_of(t):.1f}" x2="{x_of(t):.1f}" y1="{top}" y2="{bottom}"/>' for t in axis.ticks()
    ]
    parts += [f'<text class="tick" x="{x_of(t):.1f}" y="{bottom + 18}">{t:.4g}</text>' for t in axis.ticks()]
    if entry.threshold is not None:
        x = x_of(entry.threshold)
        parts.append(
            f'<rect class="reject" x="{x:.1f}" y="{top}" width="{width - right - x:.1f}" height="{bottom - top}"/>'
        )
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{bottom}"/>')
        anchor = "start" if x < left + room * 0.75 else "end"
        parts.append(
            f'<text class="limit" x="{x:.1f}" y="{top - 11}" text-anchor="{anchor}">'
            f"threshold {number(entry.threshold)}</text>"
        )
    for row, truth in enumerate(rows):
        y = top + row_height * (row + 0.5)
        parts.append(f'<text class="row" x="{left - 16}" y="{y + 4:.1f}">{text(_words(truth))}</text>')
        members = [(x_of(case.score), place, case) for place, case in enumerate(entry.cases) if case.truth == truth]
        for (x, place, case), lift in zip(members, _lifts([x for x, _, _ in members]), strict=True):
            if not math.isfinite(case.score):
                continue
            kind = ("ring " if mistake(case) else "") + _kind(case)
            parts.append(
                f'<a href="#c{index}-{place}"><circle class="dot {kind}" cx="{x:.1f}" cy="{y + lift:.1f}" r="5">'
                f"<title>{text(Path(case.image_path).name)}: {number(case.score)}</title></circle></a>"
            )
    label = f"Scores of {text(entry.name)}"
    return (
        f'<svg class="strip" viewBox="0 0 {width} {bottom + 26}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _lifts(places: Sequence[float]) -> list[float]:
    """Vertical offsets that keep dots of one row from lying on each other."""
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
    """Sorting key: mistakes come first, good parts last."""
    return 0 if mistake(case) else 2 if case.truth == GOOD else 1


def _words(truth: str | None) -> str:
    return {None: "not labelled", UNKNOWN: "foreign object"}.get(truth) or str(truth).replace("_", " ")


def _card(anchor: str, case: Case, axis: Axis) -> str:
    wrong = mistake(case)
    verdict = case.verdict if case.verdict in ("ok", "anomalous") else UNKNOWN
    name = Path(case.image_path).name
    gauge = (
        f'<span class="fill {verdict}" style="width:{100 * axis.at(case.score):.1f}%"></span>'
        if math.isfinite(case.score)
        else ""
    )
    if case.threshold is not None:
        gauge += f'<span class="mark" style="left:{100 * axis.at(case.threshold):.1f}%"></span>'
    limit = "" if case.threshold is None else f"threshold {number(case.threshold)}"
    routed = ""
    if case.routed_class is not None:
        margin = "" if case.class_margin is None else f", margin {number(case.class_margin)}"
        routed = f"<span>routed to {text(case.routed_class)}{margin}</span>"
    return (
        f'<article class="case {_kind(case)}{" wrong" if wrong else ""}" id="{anchor}"><div class="pair">'
        + (f"<em>{text(wrong)}</em>" if wrong else "")
        + image(with_truth(case.picture, case.mask, _THUMB), f"{name}, as taken", _THUMB)
        + image(case.overlay, f"{name}, heat map", _THUMB)
        + "</div>"
        f'<div class="line1"><span class="pill {verdict}">{text(case.verdict)}</span>'
        f"<b>{text(_words(case.truth))}</b>"
        f'<span class="score" title="{limit}">{number(case.score)}</span></div><div class="gauge">{gauge}</div>'
        f'<div class="line2"><span title="{text(case.image_path)}">{text(name)}</span>{routed}</div></article>'
    )


def _timings(timings_ms: dict[str, float]) -> str:
    stages = [(name, ms) for name, ms in timings_ms.items() if math.isfinite(ms) and ms > 0]
    total = sum(ms for _, ms in stages)
    if not total:
        return ""
    x, bars, keys = 0.0, [], []
    for index, (name, ms) in enumerate(stages):
        share = 1000 * ms / total
        hue = f"s{index % 7}"
        bars.append(
            f'<rect class="{hue}" x="{x:.2f}" y="0" width="{max(0.0, share - 2):.2f}" height="34">'
            f"<title>{text(name)}: {ms:.1f} ms</title></rect>"
        )
        if share > 110:
            bars.append(f'<text x="{x + 12:.2f}" y="22">{text(name)}</text>')
        keys.append(
            f'<li><i class="{hue}"></i>{text(name)}<b>{ms:.1f} ms</b><span>{100 * ms / total:.0f} %</span></li>'
        )
        x += share
    return (
        f'<section><div class="head"><h2>Where the time goes</h2><div class="stats"><div><b>{total:.1f} ms</b>'
        "<span>a picture</span></div></div></div>"
        f'<svg class="stages" viewBox="0 0 1000 34" preserveAspectRatio="none" role="img" aria-label="Time per stage">'
        f'{"".join(bars)}</svg><ul class="keys">{"".join(keys)}</ul></section>'
    )


def _commands(commands: Iterable[str]) -> str:
    items = "".join(f"<li><code>{text(command)}</code></li>" for command in commands)
    if not items:
        return ""
    return f'<section><div class="head"><h2>What to do next</h2></div><ol class="commands">{items}</ol></section>'
