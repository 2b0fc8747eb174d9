"""The result of a tuning as an HTML page. It uses the report's JSON alone, and needs Jinja2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...visualization.html import Axis, render

PITCH = (
    "Set-ups measured on your images on this machine: how well they tell good from bad parts, and how long they take."
)
WIDTH, HEIGHT, LEFT, TOP = 900, 360, 64, 16


def tune_page(report: Mapping[str, Any]) -> str:
    """Return the page. It loads nothing from elsewhere."""
    chosen = report["recommended"]
    facts = [
        ("set-ups", str(len(report["rows"]))),
        ("good images", str(report["images"]["good"])),
        ("bad images", str(report["images"]["bad"])),
        ("budget", "none" if report["budget_ms"] is None else f"{report['budget_ms']:g} ms"),
        ("station", report["environment"]["cpu"]),
        ("date", report["environment"]["date"]),
    ]
    return render(
        "tune.html",
        title="Which set-up to take",
        pitch=PITCH,
        facts=facts,
        sentence=report["sentence"],
        commands=report["commands"],
        head=[
            "set-up",
            "latency",
            "image AUROC",
            "chosen on / reported on",
            "caught at the promise",
            "promised",
            "spread",
            "memory",
            "",
        ],
        rows=[_row(row, report) for row in report["rows"]],
        plot=_plot(report),
        chosen=None if chosen is None else chosen["name"],
        notes=[
            "AUROC is measured on images that are not enrolled. With enough images, one half chooses and the other half reports.",
            "caught at the promise: bad images above the lowest threshold that the good images can promise.",
            "Latency is the median from the file to the verdict. Memory is the model's file and the bank's rows.",
            *report["notes"],
        ],
    )


def _row(row: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[str, list[str]]:
    chosen = report["recommended"]

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    caught = row["caught"]
    mark = row["status"] if row["status"] != "measured" else "on the front" if row["name"] in report["pareto"] else ""
    is_chosen = chosen is not None and row["name"] == chosen["name"]
    cells = [
        row["name"],
        "–" if row["latency_ms"] is None else f"{row['latency_ms']:.0f} ms",
        share(row["auroc"]),
        f"{share(row['auroc_choose'])} / {share(row['auroc_report'])}",
        "–" if caught is None else f"{caught['events']} of {caught['trials']}",
        "–" if row["promised"] is None else f"{100 * row['promised']:.1f} %",
        "–" if row["spread"] is None else f"{100 * row['spread']:.1f} %",
        "–" if row["memory_mb"] is None else f"{row['memory_mb']:.0f} MB",
        "recommended" if is_chosen else mark,
    ]
    return "mean" if is_chosen else "published" if row["status"] != "measured" else "", cells


def _plot(report: Mapping[str, Any]) -> dict[str, Any] | None:
    rows = [row for row in report["rows"] if row["status"] == "measured"]
    if not rows:
        return None
    has_bad = any(row["auroc"] is not None for row in rows)
    figure = "auroc" if has_bad else "spread"
    rows = [row for row in rows if row[figure] is not None]
    if not rows:
        return None
    across, up = Axis.around([0.0, *(row["latency_ms"] for row in rows)]), Axis.around([row[figure] for row in rows])

    def place(row: Mapping[str, Any]) -> tuple[float, float]:
        height = up.at(row[figure])
        return LEFT + WIDTH * across.at(row["latency_ms"]), TOP + HEIGHT * (1 - height if has_bad else height)

    chosen = report["recommended"]
    front = [row for name in report["pareto"] for row in rows if row["name"] == name]
    budget = report["budget_ms"]
    return {
        "dots": [
            (*place(row), "chosen" if chosen is not None and row["name"] == chosen["name"] else
             "paper" if row["candidate"]["preset"] == "paper" else "other", row["name"])
            for row in rows
        ],
        "front": [place(row) for row in front],
        "x_ticks": [(LEFT + WIDTH * across.at(t), f"{t:g}") for t in across.ticks() if t >= 0],
        "y_ticks": [
            (TOP + HEIGHT * ((1 - up.at(t)) if has_bad else up.at(t)), f"{t:.3g}")
            for t in up.ticks()
            if not has_bad or t <= 1
        ],
        "budget": None if budget is None or budget > across.high else LEFT + WIDTH * across.at(budget),
        "label": "image AUROC" if has_bad else "spread of good scores (low is better)",
    }  # fmt: skip
