"""An acceptance report as an HTML page and as lines of text. Both use the report's JSON alone. The page needs Jinja2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...visualization.html import render

PITCH = (
    "What this station promises about good parts, which defects it finds, and on what evidence. For the quality file."
)
PLOT = 220
"""Side of a POD plot, in units of its view box."""


def percent(value: float | None) -> str:
    """Format a share; a dash for ``None``."""
    if value is None:
        return "–"
    digits = 2 if 0 < value < 0.01 else 1
    return f"{100 * value:.{digits}f} %"


def interval(rate: Mapping[str, Any]) -> str:
    """Format the exact interval of a rate."""
    return f"{percent(rate['low'])} to {percent(rate['high'])}"


def count(rate: Mapping[str, Any]) -> str:
    """Format a count."""
    return f"{rate['events']} of {rate['trials']}"


def pixels(value: float | None, beyond: str | None = None) -> str:
    """Format a size."""
    if value is None:
        return "not reached"
    text = f"{value:.0f} px" if value >= 10 else f"{value:.1f} px"
    return f"{text} *" if beyond else text


def summary(report: Mapping[str, Any]) -> list[str]:
    """Return a few lines for a terminal."""
    promise, rejects = report["promise"], report["false_rejects"]["all"]
    lines = [
        f"class {report['class']}: at most {percent(promise['guaranteed_false_reject'])} false rejects promised from "
        f"{promise['normals']} good parts",
        f"realized: {count(rejects['anomalous'])} fresh good images rejected, {interval(rejects['anomalous'])} at 95 %"
        + ("; the promise is broken" if rejects["broken"] else ""),
    ]
    for name, row in report["false_rejects"]["groups"].items():
        if row["broken"]:
            lines.append(
                f"group {name}: {count(row['anomalous'])} rejected, more than promised; calibrate with parts of this group too"
            )
    if report["misses"]:
        missed = report["misses"]["all"]["missed"]
        lines.append(f"defects: {count(missed)} missed, {interval(missed)} at 95 %")
    limit = report["detection_limit"]
    for kind, row in (limit["kinds"] if limit else {}).items():
        at = row["limits"][-1]
        lines.append(f"{kind} of contrast {at['contrast']:g}: a90/95 {pixels(at['a90_95'])}, a90 {pixels(at['a90'])}")
    if report["real_defects"] and report["real_defects"].get("disagree"):
        lines.append(f"painted and real defects disagree for: {', '.join(report['real_defects']['disagree'])}")
    times = report["latency"]
    lines.append(
        f"latency: p50 {times['p50']:.0f} ms"
        + "".join(f", {name} {times[name]:.0f} ms" for name in ("p95", "p99") if times[name] is not None)
    )
    return lines


def html_page(report: Mapping[str, Any]) -> str:
    """Return the page. It loads nothing from elsewhere and prints on A4."""
    rejects, misses = report["false_rejects"]["all"], report["misses"]
    facts = [
        ("false rejects promised, at most", percent(report["promise"]["guaranteed_false_reject"])),
        (f"good images rejected, {interval(rejects['anomalous'])}", count(rejects["anomalous"])),
        (
            "defects missed" if not misses else f"defects missed, {interval(misses['all']['missed'])}",
            "no images" if not misses else count(misses["all"]["missed"]),
        ),
        ("median latency", f"{report['latency']['p50']:.0f} ms"),
        ("date", report["created"][:10]),
        ("station", report["environment"]["cpu"]),
        ("backend", f"{report['backend']['name']}, {report['backend']['precision']}"),
        ("bank version", str(report["bank"]["version"])),
    ]
    return render(
        "qualification.html",
        title=f"Acceptance report: {report['class']}",
        pitch=PITCH,
        facts=facts,
        tables=_tables(report),
        limit=_limit(report["detection_limit"]),
        identity=_identity(report),
        notes=_notes(report),
    )


def _table(title: str, said: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"title": title, "said": said, "head": head, "rows": rows}


def _tables(report: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    return {
        "promise": _promise(report),
        "misses": None if not report["misses"] else _misses(report["misses"]),
        "real": None if not report["real_defects"] else _real(report["real_defects"]),
        "repeatability": None if not report["repeatability"] else _repeatability(report["repeatability"]),
        "contamination": _contamination(report["contamination"]),
        "latency": _latency(report),
    }


def _promise(report: Mapping[str, Any]) -> dict[str, Any]:
    promise, section = report["promise"], report["false_rejects"]

    def row(name: str, one: Mapping[str, Any]) -> list[str]:
        return [
            name, count(one["anomalous"]), interval(one["anomalous"]), count(one["not_ok"]), f"{one['median_score']:.4f}",
            str(one["anomalous"]["more_to_halve"]), "broken" if one["broken"] else "not refuted",
        ]  # fmt: skip

    said = (
        f"The threshold {promise['threshold']:.4f} comes from {promise['normals']} scores of good parts ({promise['method']}). "
        f"Another good part is rejected with probability at most {percent(promise['guaranteed_false_reject'])}, on average over "
        f"calibrations; this threshold's own rate is at most {percent(promise['bound_false_reject'])} with "
        f"{100 * promise['confidence']:g} % confidence."
    )
    rows = [row("all", section["all"]), *(row(name, one) for name, one in section["groups"].items())]
    head = ["good images", "rejected", "95 % interval", "not ok", "median score", "more to halve it", "promise"]
    return _table("Promise and realized false rejects", said, head, rows)


def _misses(section: Mapping[str, Any]) -> dict[str, Any]:
    def row(name: str, one: Mapping[str, Any]) -> list[str]:
        return [
            name, count(one["missed"]), interval(one["missed"]), count(one["not_rejected"]), f"{one['lowest_score']:.4f}",
            str(one["missed"]["more_to_halve"]),
        ]  # fmt: skip

    rows = [row("all", section["all"]), *(row(name, one) for name, one in section["types"].items())]
    head = ["defect", "missed", "95 % interval", "missed or for review", "lowest score", "more to halve it"]
    said = "A defect is missed if its image is ok. The last column says how many more images halve the interval."
    return _table("Misses", said, head, rows)


def _real(section: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [name, str(one["defects"]), pixels(one["median_size"]), percent(one["median_contrast"]), percent(one["predicted"]),
         f"{count(one['found'])} ({interval(one['found'])})", "yes" if one["agrees"] else "no"]
        for name, one in section["types"].items()
    ]  # fmt: skip
    said = section.get("why_empty") or (
        "Painted defects of the same extent and contrast predict how many real ones are found. Where they disagree, "
        "the detection limits above do not hold for that type of defect."
    )
    if section.get("factor") is not None:
        said += f" The size found with probability 0.5 is {section['factor']:.2g} times the painted one."
    head = ["defect", "images", "median extent", "median contrast", "predicted", "found", "agrees"]
    return _table("Painted against real defects", said, head, rows)


def _repeatability(section: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [one["part"], str(one["images"]), f"{one['mean_score']:.4f}", f"{one['deviation']:.5f}",
         ", ".join(f"{n} {v}" for v, n in one["verdicts"].items())]
        for one in section["parts"]
    ]  # fmt: skip
    kappa = "not defined (all verdicts are equal)" if section["kappa"] is None else f"{section['kappa']:.3f}"
    said = (
        f"All verdicts of a part agree for {count(section['agreement'])} parts ({interval(section['agreement'])}). "
        f"Fleiss' kappa: {kappa}."
    )
    parts = section["components"]
    if parts:
        said += f" Standard deviation of repeats {parts['repeatability']:.5f}"
        if parts["reproducibility"] is not None:
            said += f", between stations or days {parts['reproducibility']:.5f}"
        said += f", between parts {parts['parts']:.5f}"
        if parts["grr_share"] is not None:
            said += f"; GRR {percent(parts['grr_share'])} of the total"
        if parts["categories"] is not None:
            said += f", {parts['categories']:.1f} distinct categories"
        low, high = section["uncertain_band"]
        said += f". A score between {low:.4f} and {high:.4f} may get another verdict when the part is inspected again."
    elif section["why_no_components"]:
        said += f" No variance components: {section['why_no_components']}"
    head = ["part", "images", "mean score", "standard deviation", "verdicts"]
    return _table("Repeatability and reproducibility", said, head, rows)


def _contamination(section: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [one["sha256"][:12], one["source"].rsplit("/", 1)[-1], f"{one['score']:.4f}", f"{one['ratio']:.2f}",
         "look at it" if one["outlier"] else "like the others"]
        for one in sorted(section["rows"], key=lambda one: -one["ratio"])
    ]  # fmt: skip
    said = section["why_empty"] or (
        f"{section['outliers']} of {section['supports']} supports differ from the others more than {section['limit']:g} times as "
        "much as they do. A defect that was enrolled as good hides defects like it."
    )
    return _table("Supports", said, ["support", "file", "leave-one-out score", "ratio", ""], rows)


def _latency(report: Mapping[str, Any]) -> dict[str, Any]:
    times, start = report["latency"], report["cold_start"]
    rows = [[f"{name}, file to verdict", "–" if times[name] is None else f"{times[name]:.1f} ms"] for name in
            ("p50", "p95", "p99", "worst")]  # fmt: skip
    if start:
        rows += [["cold start: open the model", f"{start['open_s']:.2f} s"]]
        rows += [["cold start: first verdict", f"{start['first_verdict_s']:.2f} s"]]
        if start["peak_memory_mb"] is not None:
            rows += [["peak memory", f"{start['peak_memory_mb']:.0f} MB"]]
    load = "" if times["load_before"] is None else f" The machine's load was {times['load_before']:g} before"
    load += "" if times["load_after"] is None else f" and {times['load_after']:g} after."
    said = f"{times['calls']} inspections, {times['streams']} at a time, with up to {times['threads']} threads.{load}"
    return _table("Latency on this machine", said, ["", ""], rows)


def _limit(section: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if section is None:
        return None
    contrasts = section["contrasts"]
    rows = [
        [kind, f"{one['found']} of {one['defects']}",
         *(f"{pixels(at['a90'], at['beyond'])} / {pixels(at['a90_95'])}" for at in one["limits"])]
        for kind, one in section["kinds"].items()
    ]  # fmt: skip
    head = ["painted defect", "found", *(f"a90 / a90/95 at contrast {c:g}" for c in contrasts)]
    return {
        "head": head,
        "rows": rows,
        "defects": section["defects"],
        "images": len(section["images"]),
        "smallest": pixels(section["sizes"][0]),
        "largest": pixels(section["sizes"][-1]),
        "contrast": f"{contrasts[1]:g}",
        "note": section["note"],
        "plots": [_plot(kind, one, section["sizes"]) for kind, one in section["kinds"].items()],
    }


def _plot(kind: str, one: Mapping[str, Any], sizes: Sequence[float]) -> dict[str, Any]:
    low, high = math.log(sizes[0]), math.log(sizes[-1])

    def point(size: float, chance: float) -> tuple[float, float]:
        return PLOT * (math.log(size) - low) / (high - low), PLOT * (1 - chance)

    def cell(value: float | None) -> dict[str, str]:
        shade = 0.0 if value is None else 1 - (math.log(value) - low) / (high - low)
        return {"text": "–" if value is None else f"{value:.0f}", "opacity": f"{0.12 + 0.6 * shade:.2f}"}

    return {
        "name": kind,
        "side": PLOT,
        "curve": [point(size, pod) for size, pod, _ in one["curve"]],
        "bound": [point(size, lower) for size, _, lower in one["curve"]],
        "dots": [point(row["size"], row["rate"]) for row in one["levels"] if row["rate"] is not None],
        "ticks": [(point(size, 0)[0], f"{size:.0f}") for size in sizes],
        "map": [[cell(value) for value in row] for row in one["regions"]],
    }


def _identity(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    scoring, test = report["scoring"], report["backend"]["self_test"]
    roi = (
        "whole image"
        if report["roi"] is None
        else f"{', '.join(report['roi']['names'])} (sha256 {report['roi']['sha256']})"
    )
    return [
        ("model", f"{report['model']['describe']}, sha256 {report['model']['sha256']}"),
        ("bank", f"version {report['bank']['version']}, sha256 {report['bank']['sha256']}"),
        (
            "scoring",
            f"preset {scoring['preset'] or 'of the model'}: views {', '.join(scoring['views'])}, top {scoring['top_share']:g}, "
            f"self-similarity {'on' if scoring['rarity'] else 'off'}",
        ),
        ("inspected", roi + ("" if report["mask"] is None else f", mask sha256 {report['mask']}")),
        ("backend", f"{report['backend']['name']} in {report['backend']['precision']}"),
        ("self-test", "passed; " + ", ".join(f"{name} {value:.1e}" for name, value in test.items())),
        ("software", f"VisionAD {report['environment']['visionad']}, " + ", ".join(
            f"{name} {version}" for name, version in report["environment"]["versions"].items())),
        ("system", f"{report['environment']['platform']}, {report['environment']['cpu']}"),
    ]  # fmt: skip


def _notes(report: Mapping[str, Any]) -> list[str]:
    left = report["left_out"]
    notes = [
        f"{left['enrolled']} good images are enrolled and {left['calibration']} set the threshold. They were left out: they say "
        "nothing about the realized rate.",
        "Intervals are exact (Clopper and Pearson) at 95 %, for images that are independent of each other.",
    ]
    if report["why_no_limit"]:
        notes.append(f"No detection limit: {report['why_no_limit']}.")
    if report["detection_limit"]:
        notes += [
            "a90 is the extent that is found with probability 0.9; a90/95 is found so with 95 % confidence (MIL-HDBK-1823A, "
            "hit/miss, Wald bound, Firth's penalty). A star marks limits outside of the painted sizes.",
            "Painted defects are a model of defects. A limit for one type of real defect takes images of that type.",
            "The maps show the smallest painted extent from which on 90 % of a region's defects were found. A region has few "
            "defects: the maps point at weak places and are no limits.",
        ]
    if report["repeatability"]:
        notes.append("Variance components: AIAG, Measurement Systems Analysis, ANOVA method.")
    return notes
