"""An evaluation as text: a table for a terminal or Markdown, and remarks that explain it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .aggregate import Evaluation
from .published import METRICS, Published, classes_of, published, same_model

HEADS = ("I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO")

Row = list[str]


def table(evaluation: Evaluation) -> tuple[Row, list[Row]]:
    """Return the head and the rows, in percent: one row per class, their mean, and published numbers if there are any."""
    facts = evaluation.to_dict()
    by_class, overall = facts["mean"]["by_class"], facts["mean"]["all"]
    extra = [(name, title) for name, title in _EXTRA if name in overall]
    row = published(evaluation.dataset, evaluation.shots)
    compare = row is not None and any(name in row.by_class for name in by_class)
    head = ["class", "images", *HEADS, *(title for _, title in extra)]
    columns = [*METRICS, *(name for name, _ in extra)]
    rows = []
    for name in evaluation.classes:
        images = max(unit.result["images"] for unit in evaluation.of_class(name))
        cells = [name, str(images), *(percent_cell(by_class[name].get(column)) for column in columns)]
        rows.append([*cells, *([_share(row.by_class.get(name))] if row is not None and compare else [])])
    count = sum(int(cells[1]) for cells in rows)
    mean = [f"mean of {len(rows)}", str(count), *(percent_cell(overall.get(column)) for column in columns)]
    if compare and row is not None:
        head.append("published I-AUROC (ViT-L)")
        shared = [row.by_class.get(name) for name in evaluation.classes]
        known = [value for value in shared if value is not None]
        mean.append(_share(math.fsum(known) / len(known)) if len(known) == len(shared) else "–")
    rows.append(mean)
    if row is not None and _whole(evaluation):
        spread = {"image_auroc": row.image_auroc_std}
        figures = [percent_cell({"mean": row.mean.get(m), "std": spread.get(m)}) for m in METRICS]
        rows.append([row.label, "", *figures, *([""] * (len(head) - 2 - len(METRICS)))])
    return head, rows


def markdown(evaluation: Evaluation) -> str:
    """Format the table and the remarks as Markdown."""
    head, rows = table(evaluation)
    lines = [
        f"## {_escaped(title(evaluation))}",
        "",
        *(f"- {_escaped(name)}: {_escaped(value)}" for name, value in settings(evaluation)),
        "",
        f"| {' | '.join(map(_escaped, head))} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(map(_escaped, row))} |" for row in rows),
        "",
        *(f"- {_escaped(remark)}" for remark in remarks(evaluation)),
    ]
    return "\n".join(lines) + "\n"


def plain(evaluation: Evaluation) -> str:
    """Format the table for a terminal."""
    head, rows = table(evaluation)
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = []
    for row in (head, *rows):
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
    return "\n".join(line.rstrip() for line in lines)


def title(evaluation: Evaluation) -> str:
    """Return a one-line title."""
    shots = f"{evaluation.shots} shot{'s' if evaluation.shots > 1 else ''}"
    return f"{evaluation.dataset}, {shots}, {evaluation.manifest.identity.backbone}"


def remarks(evaluation: Evaluation) -> list[str]:
    """Return the remarks that explain the numbers."""
    results = [unit.result for unit in evaluation.units]
    lines = ["Percent; class by class, then the mean over classes."]
    if len(evaluation.seeds) > 1:
        lines[0] += f" ± is the sample standard deviation over {len(evaluation.seeds)} seeds."
    if any(r["reasons"] for r in results):
        lines[0] += " A mean leaves out the classes that lack the figure."
    spec = evaluation.manifest.identity.preprocess
    if spec.crop < spec.resize:
        lost = 1 - (spec.crop / spec.resize) ** 2
        lines.append(f"The center crop leaves the outer {lost:.1%} of an image uninspected and unmeasured.")
    seed = evaluation.seeds[0]
    outside = sum(r["outside_crop"] for r in results if r["seed"] == seed)
    if outside:
        lines.append(
            f"{outside} defects lie entirely outside the crop. They count as defects, although none of their pixels is inspected."
        )
    without = sum(r["without_mask"] for r in results if r["seed"] == seed)
    if without:
        lines.append(f"{without} defects have no mask and count in image metrics only.")
    if evaluation.mode == "multi":
        lines.append(
            "One bank for all classes; each image is routed. An image that is routed to another class is scored against that "
            "class, and one of no known class against the nearest."
        )
        lines.append(_price(evaluation))
    if evaluation.calibrate is not None:
        lines.append(
            f"Thresholds come from good images only, for at most {evaluation.calibrate:.1%} false rejects on average. "
            "False rejects and misses are counted on the test images. An image without a verdict counts as neither."
        )
        lines += _uncalibrated(evaluation)
    lines += _verdicts(results, seed)
    row = published(evaluation.dataset, evaluation.shots)
    if row is not None:
        lines.append(comparison(evaluation, row))
    lines += [
        f"{name}, seed {seed_label(seeds[0])}{f' and {len(seeds) - 1} more' if len(seeds) > 1 else ''}: no {metric}, {reason}."
        for (name, metric, reason), seeds in _undefined(results).items()
    ]
    bounds = [(bound, r["class"], metric) for r in results for metric, bound in r["error_bounds"].items()]
    if bounds:
        bound, name, metric = max(bounds)
        lines.append(
            f"Pixel tables were coarsened to bound memory. No metric is off by more than {bound:.1e} ({name}, {metric})."
        )
    for fault in evaluation.skipped:
        where = f"class {fault['class']}, seed {seed_label(fault['seed'])}, {fault['role']}"
        lines.append(f"Skipped: {fault['image']} ({where}): {fault['reason']}")
    return lines


# --- words and numbers ------------------------------------------------------------------------------------------------

_OWN = {"pixel_segf1": "SegF1", "pixel_spro_005": "sPRO 0.05", "pixel_spro_030": "sPRO 0.3"}
_TITLES = {**dict(zip(METRICS, HEADS, strict=True)), **_OWN}
_EXTRA = (
    *_OWN.items(),
    ("routing_accuracy", "routed right"),
    ("unknown_rate", "unknown"),
    ("separate_image_auroc", "I-AUROC, class given"),
    ("false_reject_rate", "false rejects"),
    ("caught_rate", "caught"),
    ("miss_rate", "misses"),
)


def _share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def percent_cell(spread: dict[str, float | None] | None) -> str:
    """Format a mean and its deviation in percent; a dash for none."""
    if spread is None:
        return "–"
    std = spread.get("std")
    return _share(spread["mean"]) + ("" if std is None else f" ± {100 * std:.1f}")


def _escaped(value: str) -> str:
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def seed_label(seed: int | None) -> str:
    """Name a seed; ``none`` where supports are the first by name."""
    return "none" if seed is None else str(seed)


def settings(evaluation: Evaluation) -> list[tuple[str, str]]:
    """List what the evaluation was run with, name and value."""
    by_name, seeds = evaluation.seeds == (None,), ", ".join(map(seed_label, evaluation.seeds))
    return [
        ("model", evaluation.manifest.identity.describe()),
        ("engine", evaluation.engine),
        ("views", ", ".join(evaluation.scoring.views)),
        ("data set", f"{evaluation.dataset}, {evaluation.root}"),
        ("supports", "the first by name" if by_name else f"seed{'s' if len(evaluation.seeds) > 1 else ''} {seeds}"),
        ("setting", "one bank per class" if evaluation.mode == "separate" else "one bank for all classes, routed"),
    ]


def _whole(evaluation: Evaluation) -> bool:
    """Return whether the classes are those of the published mean. Unknown published classes count as equal."""
    expected = classes_of(evaluation.dataset)
    return not expected or expected == set(evaluation.classes)


def comparison(evaluation: Evaluation, row: Published) -> str:
    """Return the caveats of a comparison with published numbers."""
    caveats = f"The published numbers are of DINOv2-R ViT-L, one bank per class, means of {row.seeds} seeds"
    if not same_model(evaluation.manifest, evaluation.scoring):
        caveats += f"; ours are of another model, {evaluation.manifest.identity.describe()}"
    if not _whole(evaluation):
        caveats += "; our classes are not all of theirs, so the means do not compare"
    return caveats + "."


def _price(evaluation: Evaluation) -> str:
    overall = evaluation.to_dict()["mean"]["all"]
    changes = []
    for name, metric in zip(HEADS, METRICS, strict=True):
        routed, separate = overall[metric]["mean"], overall[f"separate_{metric}"]["mean"]
        if routed is not None and separate is not None:
            changes.append(f"{name} {100 * (routed - separate):+.2f}")
    accuracy = overall["routing_accuracy"]["mean"]
    cost = ", ".join(changes) or "not defined"
    return f"Routed correctly: {_share(accuracy)} %. Compared with the same bank and the class given, misrouting changes: {cost}."


_SOURCES = {
    "calibration": "the calibration",
    "validation": "the validation images",
    "test_halves": "the good test images, each half of them for the other half",
}


def _verdicts(results: Sequence[dict[str, Any]], seed: int | None) -> list[str]:
    """Explain false rejects and caught defects, and list them for each condition."""
    lines = []
    for source, where in _SOURCES.items():
        promised = [
            r["verdicts"]["promised_false_reject"] for r in results if r["verdicts"]["threshold_from"] == source
        ]
        if promised:
            low, high = (f"{100 * rate:.1f} %" for rate in (min(promised), max(promised)))
            bound = low if low == high else f"{low} to {high}"
            lines.append(
                f"False rejects and caught: the threshold comes from {where}; it promises {bound} false rejects."
            )
    for result in results:
        if result["seed"] != seed:
            continue
        if reason := result["verdicts"].get("reason"):
            lines.append(f"{result['class']}: no false rejects and caught, {reason}.")
        for condition, row in result["verdicts"].get("by_condition", {}).items():
            lines.append(
                f"{result['class']}, {condition or 'no condition'}, seed {seed_label(seed)}: false rejects "
                f"{_share(row['false_reject_rate'])} of {row['good']}, caught {_share(row['caught_rate'])} of {row['defects']}."
            )
    return lines


def _uncalibrated(evaluation: Evaluation) -> list[str]:
    reasons: dict[tuple[str, str], None] = {}
    for unit in evaluation.units:
        calibration = unit.result["calibration"]
        if calibration["threshold"] is None:
            reasons[unit.result["class"], calibration["reason"]] = None
    return [f"{name}: no threshold, {reason}." for name, reason in reasons]


def _undefined(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], list[int | None]]:
    seeds: dict[tuple[str, str, str], list[int | None]] = {}
    for result in results:
        by_reason: dict[str, list[str]] = {}
        for metric, reason in result["reasons"].items():
            by_reason.setdefault(reason, []).append(_TITLES[metric])
        for reason, metrics in by_reason.items():
            seeds.setdefault((result["class"], ", ".join(metrics), reason), []).append(result["seed"])
    return seeds
