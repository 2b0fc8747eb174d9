"""The demo's result as one HTML page: every picture inside, nothing fetched, readable from ``file://`` by day and night.

All text that comes from outside passes ``_text``; a content security policy in the page forbids any other resource.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]

GOOD = "good"
UNKNOWN = "unknown"
PITCH = (
    "Show it a few good parts, and it inspects: where a new picture differs from all of them, it says so and shows it."
)

_THUMB = 256
_SUPPORT_THUMB = 160
_TRUTH_COLOUR = (255, 61, 190)
_HEADLINES = 4


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
        return "not recognised"
    if case.routed_class is not None and case.routed_class != case.class_name:
        return f"taken for {case.routed_class}"
    if case.truth == GOOD:
        return None if case.verdict == "ok" else "false alarm"
    return None if case.verdict == "anomalous" else "missed"


# --- pieces -----------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _auroc(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _picture(pixels: Rgb, alt: str, side: int) -> str:
    """An ``img`` with the picture inside it, its longest side at most ``side``."""
    stream = io.BytesIO()
    thumb = _thumb(pixels, side)
    Image.fromarray(thumb).save(stream, "JPEG", quality=85, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    height, width = thumb.shape[:2]
    return (
        f'<img src="data:image/jpeg;base64,{data}" alt="{_text(alt)}" width="{width}" height="{height}" '
        'decoding="async">'
    )


def _thumb(pixels: Rgb, side: int) -> Rgb:
    height, width = pixels.shape[:2]
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _with_truth(case: Case) -> Rgb:
    """The picture's thumbnail with the true defect outlined a little outside, so that the line hides nothing."""
    thumb = _thumb(case.picture, _THUMB).copy()
    if case.mask is None or not case.mask.any():
        return thumb
    height, width = thumb.shape[:2]
    share = cv2.resize(case.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    grown = cv2.dilate((np.asarray(share) > 0).astype(np.uint8), np.ones((7, 7), dtype=np.uint8))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    cv2.drawContours(thumb, contours, -1, _TRUTH_COLOUR, 1, cv2.LINE_AA)
    return thumb


def _page(report: Report) -> str:
    cases = [case for entry in report.classes for case in entry.cases]
    wrong = sum(mistake(case) is not None for case in cases)
    body = [
        _header(report),
        _filter(len(cases), wrong),
        *(_class_section(index, entry) for index, entry in enumerate(report.classes)),
        _timings(report.timings_ms),
        _notes(report.notes),
        _commands(report.commands),
        "<footer>One file, no network: pictures, figures and style are all inside.</footer>",
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{_text(report.title)}</title>",
            f"<style>{_STYLE}</style></head>",
            "<body><main>",
            *(part for part in body if part),
            "</main></body></html>",
            "",
        ]
    )


def _header(report: Report) -> str:
    tiles = "".join(
        f'<div class="tile"><b>{_text(value)}</b><span>{_text(name)}</span></div>'
        for name, value in report.facts[:_HEADLINES]
    )
    rest = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in report.facts[_HEADLINES:]
    )
    return (
        f'<header><p class="brand">{_MARK}VisionAD</p><h1>{_text(report.title)}</h1><p class="pitch">{PITCH}</p>'
        + (f'<div class="tiles">{tiles}</div>' if tiles else "")
        + (f'<dl class="facts">{rest}</dl>' if rest else "")
        + "</header>"
    )


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
        ("threshold", _number(entry.threshold)),
        ("right", f"{right} of {len(known)}"),
    ]
    chips = "".join(f"<div><b>{_text(value)}</b><span>{name}</span></div>" for name, value in stats if value != "–")
    supports = "".join(
        _picture(shot, f"{entry.name}: good part {number}", _SUPPORT_THUMB)
        for number, shot in enumerate(entry.supports, start=1)
    )
    scores = [case.score for case in entry.cases if math.isfinite(case.score)]
    axis = _Axis.around([*scores, *([entry.threshold] if entry.threshold is not None else [])])
    order = sorted(range(len(entry.cases)), key=lambda k: _interest(entry.cases[k]))
    cards = "".join(_card(f"c{index}-{k}", entry.cases[k], axis) for k in order)
    taught = len(entry.supports)
    return (
        f'<section><div class="head"><h2>{_text(entry.name)}</h2><div class="stats">{chips}</div></div>'
        + (
            f'<h3>Taught with {taught} good picture{"s" if taught != 1 else ""}</h3><div class="supports">{supports}</div>'
            if taught
            else ""
        )
        + (f"<h3>Scores</h3>{_strip(index, entry, axis)}" if len(scores) > 1 else "")
        + (f'<h3>Verdicts</h3><div class="cards">{cards}</div>' if cards else "")
        + "</section>"
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float]) -> _Axis:
        """An axis with round ticks that holds all values with some air."""
        low, high = min(values, default=0.0), max(values, default=1.0)
        span = (high - low) or max(abs(high), 1.0)
        low, high = low - 0.06 * span, high + 0.06 * span
        rough = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        return cls(low, high, min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda step: abs(step - rough)))

    def at(self, value: float) -> float:
        """Place of a value, 0..1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self) -> list[float]:
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
        return [k * self.step for k in range(first, last + 1)]


def _strip(index: int, entry: ClassReport, axis: _Axis) -> str:
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
            f"threshold {_number(entry.threshold)}</text>"
        )
    for row, truth in enumerate(rows):
        y = top + row_height * (row + 0.5)
        parts.append(f'<text class="row" x="{left - 16}" y="{y + 4:.1f}">{_text(_words(truth))}</text>')
        members = [(x_of(case.score), number, case) for number, case in enumerate(entry.cases) if case.truth == truth]
        for (x, number, case), lift in zip(members, _lifts([x for x, _, _ in members]), strict=True):
            if not math.isfinite(case.score):
                continue
            kind = ("ring " if mistake(case) else "") + _kind(case)
            parts.append(
                f'<a href="#c{index}-{number}"><circle class="dot {kind}" cx="{x:.1f}" cy="{y + lift:.1f}" r="5">'
                f"<title>{_text(Path(case.image_path).name)}: {_number(case.score)}</title></circle></a>"
            )
    label = f"Scores of {_text(entry.name)}"
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


def _card(anchor: str, case: Case, axis: _Axis) -> str:
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
    limit = "" if case.threshold is None else f"threshold {_number(case.threshold)}"
    routed = ""
    if case.routed_class is not None:
        margin = "" if case.class_margin is None else f", margin {_number(case.class_margin)}"
        routed = f"<span>routed to {_text(case.routed_class)}{margin}</span>"
    return (
        f'<article class="case {_kind(case)}{" wrong" if wrong else ""}" id="{anchor}"><div class="pair">'
        + (f"<em>{_text(wrong)}</em>" if wrong else "")
        + f"{_picture(_with_truth(case), f'{name}, as taken', _THUMB)}{_picture(case.overlay, f'{name}, heat map', _THUMB)}</div>"
        f'<div class="line1"><span class="pill {verdict}">{_text(case.verdict)}</span>'
        f"<b>{_text(_words(case.truth))}</b>"
        f'<span class="score" title="{limit}">{_number(case.score)}</span></div><div class="gauge">{gauge}</div>'
        f'<div class="line2"><span title="{_text(case.image_path)}">{_text(name)}</span>{routed}</div></article>'
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
            f"<title>{_text(name)}: {ms:.1f} ms</title></rect>"
        )
        if share > 110:
            bars.append(f'<text x="{x + 12:.2f}" y="22">{_text(name)}</text>')
        keys.append(
            f'<li><i class="{hue}"></i>{_text(name)}<b>{ms:.1f} ms</b><span>{100 * ms / total:.0f} %</span></li>'
        )
        x += share
    return (
        f'<section><div class="head"><h2>Where the time goes</h2><div class="stats"><div><b>{total:.1f} ms</b>'
        "<span>a picture</span></div></div></div>"
        f'<svg class="stages" viewBox="0 0 1000 34" preserveAspectRatio="none" role="img" aria-label="Time per stage">'
        f'{"".join(bars)}</svg><ul class="keys">{"".join(keys)}</ul></section>'
    )


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return (
        f'<section><div class="head"><h2>Good to know</h2></div><ul class="notes">{items}</ul></section>'
        if items
        else ""
    )


def _commands(commands: Iterable[str]) -> str:
    items = "".join(f"<li><code>{_text(command)}</code></li>" for command in commands)
    if not items:
        return ""
    return f'<section><div class="head"><h2>What to do next</h2></div><ol class="commands">{items}</ol></section>'


_MARK = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M2 8V2h6M16 2h6v6M22 16v6h-6M8 22H2v-6" fill="none" '
    'stroke="currentColor" stroke-width="2.4"/><circle cx="13.5" cy="11" r="4.2" fill="var(--bad)"/></svg>'
)

_STYLE = """
:root{--page:#f4f5f7;--card:#fff;--ink:#14171c;--soft:#5d6673;--edge:#e1e4e9;--good:#1c8f52;--bad:#d63a3a;--amber:#b97708;
--accent:#2f5fd0;--code:#eef1f5;--truth:#ff3dbe}
@media (prefers-color-scheme:dark){:root{--page:#0e1014;--card:#171a20;--ink:#e9ecf1;--soft:#98a2b0;--edge:#282d36;
--good:#3fbf7d;--bad:#ff6363;--amber:#e5a63a;--accent:#86a9ff;--code:#20242c}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:76px}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1180px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:clamp(28px,4vw,42px);line-height:1.12;letter-spacing:-.022em;margin:0 0 10px;text-wrap:balance}
h2{font-size:24px;letter-spacing:-.012em;margin:0}
h3{font-size:12px;font-weight:600;letter-spacing:.07em;text-transform:uppercase;color:var(--soft);margin:26px 0 10px}
.brand{display:flex;align-items:center;gap:9px;font-weight:650;margin:0 0 26px}
.brand svg{width:22px;height:22px}
.pitch{font-size:18px;color:var(--soft);max-width:62ch;margin:0 0 28px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:14px}
.tile{background:var(--card);border:1px solid var(--edge);border-radius:14px;padding:18px 20px}
.tile b{display:block;font-size:30px;line-height:1.15;letter-spacing:-.02em;overflow-wrap:anywhere}
.tile span,.stats span{color:var(--soft);font-size:13px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:0 28px;margin:20px 0 0}
.facts div{display:flex;justify-content:space-between;gap:16px;padding:8px 0;border-bottom:1px solid var(--edge)}
.facts dt{color:var(--soft)}.facts dd{margin:0;text-align:right;overflow-wrap:anywhere}
nav{position:sticky;top:0;z-index:2;display:flex;flex-wrap:wrap;align-items:center;justify-content:space-between;gap:8px 20px;
margin:28px -24px 0;padding:12px 24px;background:color-mix(in srgb,var(--page) 88%,transparent);backdrop-filter:blur(10px)}
.choices{display:flex;gap:4px;padding:4px;border-radius:12px;background:var(--card);border:1px solid var(--edge)}
.choices input{position:absolute;opacity:0;pointer-events:none}
.choices label{padding:5px 14px;border-radius:8px;color:var(--soft);cursor:pointer;font-size:14px}
.choices input:checked+label{background:var(--ink);color:var(--page)}
.choices input:focus-visible+label{outline:2px solid var(--accent)}
.legend{display:flex;align-items:center;gap:8px;margin:0;color:var(--soft);font-size:13px}
.legend i{display:inline-block;margin-left:10px;border-radius:3px}
.legend .line{width:16px;height:12px;border:2px solid var(--truth)}
.legend .ramp{width:64px;height:10px;background:linear-gradient(90deg,#30123b,#4686fb,#1ae4b6,#a4fc3c,#fb7e21,#7a0403)}
section{background:var(--card);border:1px solid var(--edge);border-radius:18px;padding:26px;margin-top:20px}
.head{display:flex;flex-wrap:wrap;align-items:center;justify-content:space-between;gap:12px 28px}
.head h2{overflow-wrap:anywhere}
.stats{display:flex;flex-wrap:wrap;gap:8px 28px}.stats b{display:block;font-size:18px;line-height:1.25}
.supports{display:flex;flex-wrap:wrap;gap:10px}
.supports img{width:112px;height:112px;object-fit:contain;border-radius:10px;background:#0c0d10}
.strip,.stages{display:block;width:100%;height:auto}
.strip text{fill:var(--soft);font-size:12.5px}.strip .row{text-anchor:end}.strip .tick{text-anchor:middle}
.strip .grid{stroke:var(--edge)}
.strip line.limit{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 4}.strip text.limit{fill:var(--ink)}
.strip .reject{fill:var(--bad);opacity:.07}
.dot{fill:var(--c);stroke:var(--card);stroke-width:1.2}.dot:hover{stroke:var(--ink)}
.dot.good{--c:var(--good)}.dot.bad{--c:var(--bad)}.dot.foreign{--c:var(--amber)}.dot.open{--c:var(--soft)}
.dot.ring{fill:var(--card);stroke:var(--c);stroke-width:3}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:16px}
.case{border:1px solid var(--edge);border-radius:14px;overflow:hidden;break-inside:avoid;background:var(--page)}
.case.wrong{border-color:var(--bad)}
.case:target{outline:3px solid var(--accent);outline-offset:2px}
.pair{position:relative;display:grid;grid-template-columns:1fr 1fr;gap:2px;background:#0c0d10}
.pair img{display:block;width:100%;height:auto;aspect-ratio:1;object-fit:contain}
.line1,.line2{display:flex;align-items:center;gap:10px;padding:0 13px}
.line1{padding-top:12px;gap:8px}.line1 b{font-weight:600;font-size:14px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.pair em{position:absolute;top:10px;left:10px;padding:2px 10px;border-radius:6px;background:#d03030;color:#fff;font-style:normal;
font-size:12.5px;font-weight:600}
.line2{justify-content:space-between;padding-bottom:12px;color:var(--soft);font-size:12.5px}
.line2 span:first-child{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}.line2 span+span{flex:none}
.score{margin-left:auto;font-weight:600}
.pill{padding:2px 9px;border-radius:99px;font-size:12px;font-weight:600;color:#fff}
.pill.ok{background:#1c8f52}.pill.anomalous{background:#d03030}.pill.unknown{background:#b06f06}
.gauge{position:relative;height:5px;margin:10px 14px 9px;border-radius:3px;background:var(--edge)}
.fill{position:absolute;inset:0 auto 0 0;border-radius:3px}
.fill.ok{background:var(--good)}.fill.anomalous{background:var(--bad)}.fill.unknown{background:var(--amber)}
.mark{position:absolute;top:-3px;bottom:-3px;width:2px;margin-left:-1px;background:var(--ink)}
body:has(#show-good:checked) .case:not(.good),body:has(#show-bad:checked) .case:not(.bad),
body:has(#show-wrong:checked) .case:not(.wrong){display:none}
.stages{height:38px;margin-top:20px;border-radius:8px;overflow:hidden}.stages text{fill:#fff;font-size:13px}
.s0{fill:#2f5fd0;background:#2f5fd0}.s1{fill:#7a55c7;background:#7a55c7}.s2{fill:#b0468f;background:#b0468f}
.s3{fill:#c7513f;background:#c7513f}.s4{fill:#a8740f;background:#a8740f}.s5{fill:#3f8a4b;background:#3f8a4b}
.s6{fill:#21838c;background:#21838c}
.keys{list-style:none;display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:4px 28px;padding:0;margin:16px 0 0}
.keys li{display:flex;align-items:center;gap:9px}.keys i{width:11px;height:11px;border-radius:3px}
.keys b{margin-left:auto;font-weight:600}.keys span{color:var(--soft);width:44px;text-align:right}
.notes{margin:14px 0 0;padding-left:20px}.notes li{margin:6px 0;max-width:80ch}
.commands{list-style:none;margin:16px 0 0;padding:0;display:grid;gap:8px}
.commands code{display:block;padding:11px 16px;border-radius:10px;background:var(--code);user-select:all;
font:13.5px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere}
.commands code::before{content:"$ ";color:var(--soft);user-select:none}
footer{margin-top:28px;text-align:center;color:var(--soft);font-size:13px}
@media print{nav{display:none}section{break-inside:auto}}
"""
