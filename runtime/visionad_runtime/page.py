"""What the project's HTML pages share: one file each, everything inside, nothing fetched, readable by day and night.

All text that comes from outside passes :func:`text`; a content security policy forbids any other resource.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Rgb = NDArray[np.uint8]
Mask = NDArray[np.bool_]

HEADLINES = 4
_TRUTH_COLOUR = (255, 61, 190)


def text(value: object) -> str:
    """Anything as text that is safe in a page, attributes included."""
    return html.escape(str(value), quote=True)


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def jpeg(pixels: Rgb, side: int) -> bytes:
    """A picture as JPEG, its longest side at most ``side``."""
    stream = io.BytesIO()
    Image.fromarray(thumbnail(pixels, side)).save(stream, "JPEG", quality=85, optimize=True)
    return stream.getvalue()


def image_of(data: bytes, alt: str) -> str:
    """An ``img`` with the JPEG inside it."""
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
    return (
        f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode("ascii")}" alt="{text(alt)}" '
        f'width="{width}" height="{height}" decoding="async">'
    )


def image(pixels: Rgb, alt: str, side: int) -> str:
    """An ``img`` with the picture inside it, its longest side at most ``side``."""
    return image_of(jpeg(pixels, side), alt)


def thumbnail(pixels: Rgb, side: int) -> Rgb:
    """The picture with its longest side at most ``side``."""
    height, width = pixels.shape[:2]
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def with_truth(pixels: Rgb, mask: Mask | None, side: int) -> Rgb:
    """The thumbnail with the true defect outlined a little outside, so that the line hides nothing.

    Args:
        mask: bool, any size, over the whole picture.
    """
    thumb = thumbnail(pixels, side).copy()
    if mask is None or not mask.any():
        return thumb
    height, width = thumb.shape[:2]
    share = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    grown = cv2.dilate((np.asarray(share) > 0).astype(np.uint8), np.ones((7, 7), dtype=np.uint8))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_TC89_L1)
    cv2.drawContours(thumb, contours, -1, _TRUTH_COLOUR, 1, cv2.LINE_AA)
    return thumb


@dataclass(frozen=True)
class Axis:
    """A scale with round ticks."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float]) -> Axis:
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
        """Values to mark."""
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
        return [k * self.step for k in range(first, last + 1)]


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole page of the non-empty parts of ``body``; ``style`` is added to the common one."""
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            '<head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f"<title>{text(title)}</title>",
            f"<style>{_STYLE}{style}</style></head>",
            "<body><main>",
            *(part for part in body if part),
            "</main></body></html>",
            "",
        ]
    )


def header(title: str, pitch: str, facts: Sequence[tuple[str, str]]) -> str:
    """The page's top. The first facts are its headline figures, the rest a list."""
    tiles = "".join(
        f'<div class="tile"><b>{text(value)}</b><span>{text(name)}</span></div>' for name, value in facts[:HEADLINES]
    )
    rest = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in facts[HEADLINES:])
    return (
        f'<header><p class="brand">{_MARK}VisionAD</p><h1>{text(title)}</h1><p class="pitch">{text(pitch)}</p>'
        + (f'<div class="tiles">{tiles}</div>' if tiles else "")
        + (f'<dl class="facts">{rest}</dl>' if rest else "")
        + "</header>"
    )


def notes(lines: Iterable[str]) -> str:
    """A section of remarks; nothing without any."""
    items = "".join(f"<li>{text(note)}</li>" for note in lines)
    return (
        f'<section><div class="head"><h2>Good to know</h2></div><ul class="notes">{items}</ul></section>'
        if items
        else ""
    )


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
.wide{overflow-x:auto}.strip{min-width:620px}
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
