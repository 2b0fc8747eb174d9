"""An evaluation for people: a table for a terminal or a README, and an HTML page with curves, histograms and the worst mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..page import Axis, document, header, image_of, notes, number, text
from .evaluate import Evaluation, Unit, best_threshold
from .metrics import PRO_MAX_FPR
from .published import METRICS, Published, classes_of, published, same_model

HEADS = ("I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO")
BINS = 40

Row = list[str]


def table(evaluation: Evaluation) -> tuple[Row, list[Row]]:
    """Head and rows, percent: a row a class, their mean, and what was published, where it was."""
    facts = evaluation.to_dict()
    by_class, every = facts["mean"]["by_class"], facts["mean"]["all"]
    extra = [(name, title) for name, title in _EXTRA if name in every]
    row = published(evaluation.dataset, evaluation.shots)
    compare = row is not None and any(name in row.by_class for name in by_class)
    head = ["class", "images", *HEADS, *(title for _, title in extra)]
    columns = [*METRICS, *(name for name, _ in extra)]
    rows = []
    for name in evaluation.classes:
        images = max(unit.result["images"] for unit in evaluation.of_class(name))
        cells = [name, str(images), *(_cell(by_class[name].get(column)) for column in columns)]
        rows.append([*cells, *([_share(row.by_class.get(name))] if row is not None and compare else [])])
    count = sum(int(cells[1]) for cells in rows)
    mean = [f"mean of {len(rows)}", str(count), *(_cell(every.get(column)) for column in columns)]
    if compare and row is not None:
        head.append("published I-AUROC (ViT-L)")
        shared = [row.by_class.get(name) for name in evaluation.classes]
        known = [value for value in shared if value is not None]
        mean.append(_share(math.fsum(known) / len(known)) if len(known) == len(shared) else "–")
    rows.append(mean)
    if row is not None and _whole(evaluation):
        spread = {"image_auroc": row.image_auroc_std}
        figures = [_cell({"mean": row.mean.get(m), "std": spread.get(m)}) for m in METRICS]
        rows.append([row.label, "", *figures, *([""] * (len(head) - 2 - len(METRICS)))])
    return head, rows


def markdown(evaluation: Evaluation) -> str:
    """The table and what must be known to read it, as Markdown."""
    head, rows = table(evaluation)
    lines = [
        f"## {_escaped(title(evaluation))}",
        "",
        *(f"- {_escaped(name)}: {_escaped(value)}" for name, value in _settings(evaluation)),
        "",
        f"| {' | '.join(map(_escaped, head))} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(map(_escaped, row))} |" for row in rows),
        "",
        *(f"- {_escaped(remark)}" for remark in remarks(evaluation)),
    ]
    return "\n".join(lines) + "\n"


def plain(evaluation: Evaluation) -> str:
    """The table for a terminal."""
    head, rows = table(evaluation)
    widths = [max(len(row[k]) for row in (head, *rows)) for k in range(len(head))]
    lines = []
    for row in (head, *rows):
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]))
    return "\n".join(line.rstrip() for line in lines)


def title(evaluation: Evaluation) -> str:
    """What was measured, in a line."""
    shots = f"{evaluation.shots} shot{'s' if evaluation.shots > 1 else ''}"
    return f"{evaluation.dataset}, {shots}, {evaluation.manifest.identity.backbone}"


def remarks(evaluation: Evaluation) -> list[str]:
    """What must be known to read the numbers right."""
    results = [unit.result for unit in evaluation.units]
    said = ["Percent; class by class, then the mean over classes."]
    if len(evaluation.seeds) > 1:
        said[0] += f" ± is the sample standard deviation over {len(evaluation.seeds)} seeds."
    if any(r["reasons"] for r in results):
        said[0] += " A mean leaves out the classes that lack the figure."
    spec = evaluation.manifest.identity.preprocess
    if spec.crop < spec.resize:
        lost = 1 - (spec.crop / spec.resize) ** 2
        said.append(f"The centre crop leaves the outer {lost:.1%} of a picture uninspected, and unmeasured.")
    seed = evaluation.seeds[0]
    outside = sum(r["outside_crop"] for r in results if r["seed"] == seed)
    if outside:
        said.append(
            f"{outside} defects lie wholly outside the crop: they count as defects, and no pixel of them is seen."
        )
    without = sum(r["without_mask"] for r in results if r["seed"] == seed)
    if without:
        said.append(f"{without} defects have no mask and count in image metrics only.")
    if evaluation.mode == "multi":
        said.append(
            "One bank for all classes, the class found for every picture by itself. A picture taken for another class is "
            "scored against that class's bank, one like no class against the nearest."
        )
        said.append(_price(evaluation))
    if evaluation.calibrate is not None:
        said.append(
            f"Thresholds are set from good pictures alone, for at most {evaluation.calibrate:.1%} false rejects on average; "
            "false rejects and misses are counted on the test pictures. A picture without a verdict counts as neither."
        )
        said += _uncalibrated(evaluation)
    row = published(evaluation.dataset, evaluation.shots)
    if row is not None:
        said.append(_comparison(evaluation, row))
    said += [
        f"{name}, seed {_seed(seeds[0])}{f' and {len(seeds) - 1} more' if len(seeds) > 1 else ''}: no {metric}, {reason}."
        for (name, metric, reason), seeds in _undefined(results).items()
    ]
    bounds = [(bound, r["class"], metric) for r in results for metric, bound in r["error_bounds"].items()]
    if bounds:
        bound, name, metric = max(bounds)
        said.append(
            f"Pixel tables were coarsened to bound memory: no metric is off by more than {bound:.1e} ({name}, {metric})."
        )
    for fault in evaluation.skipped:
        where = f"class {fault['class']}, seed {_seed(fault['seed'])}, {fault['role']}"
        said.append(f"Skipped: {fault['image']} ({where}): {fault['reason']}")
    return said


def html_page(evaluation: Evaluation) -> str:
    """The whole page; nothing in it points elsewhere."""
    every = evaluation.to_dict()["mean"]["all"]
    heads = [
        (f"{name}, mean over classes", _cell(every[metric]))
        for name, metric in (("image AUROC", "image_auroc"), ("pixel AUROC", "pixel_auroc"), ("AUPRO", "pixel_aupro"))
    ]
    images = sum(unit.result["images"] for unit in evaluation.units if unit.result["seed"] == evaluation.seeds[0])
    heads.append(("test pictures", f"{images}"))
    pitch = "How well it tells good parts from bad, and shows where, on pictures it was not taught with."
    body = [
        header(title(evaluation), pitch, [*heads, *_settings(evaluation)]),
        _table_section(evaluation),
        *(_class_section(evaluation, name) for name in evaluation.classes),
        notes(remarks(evaluation)),
        "<footer>One file, no network: pictures, figures and style are all inside.</footer>",
    ]
    return document(title(evaluation), body, _STYLE)


# --- words and numbers ------------------------------------------------------------------------------------------------

_EXTRA = (
    ("routing_accuracy", "routed right"),
    ("unknown_rate", "unknown"),
    ("separate_image_auroc", "I-AUROC, class given"),
    ("false_reject_rate", "false rejects"),
    ("miss_rate", "misses"),
)


def _share(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def _cell(spread: dict[str, float | None] | None) -> str:
    if spread is None:
        return "–"
    std = spread.get("std")
    return _share(spread["mean"]) + ("" if std is None else f" ± {100 * std:.1f}")


def _escaped(value: str) -> str:
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _seed(seed: int | None) -> str:
    return "none" if seed is None else str(seed)


def _settings(evaluation: Evaluation) -> list[tuple[str, str]]:
    by_name, seeds = evaluation.seeds == (None,), ", ".join(map(_seed, evaluation.seeds))
    return [
        ("model", evaluation.manifest.identity.describe()),
        ("engine", evaluation.engine),
        ("views", ", ".join(evaluation.scoring.views)),
        ("data set", f"{evaluation.dataset}, {evaluation.root}"),
        ("supports", "the first by name" if by_name else f"seed{'s' if len(evaluation.seeds) > 1 else ''} {seeds}"),
        ("setting", "one bank a class" if evaluation.mode == "separate" else "one bank for all classes, routed"),
    ]


def _whole(evaluation: Evaluation) -> bool:
    """Is our mean over the classes of the published one? (Where these are not known here, it is taken to be.)"""
    wanted = classes_of(evaluation.dataset)
    return not wanted or wanted == set(evaluation.classes)


def _comparison(evaluation: Evaluation, row: Published) -> str:
    said = f"The published numbers are of DINOv2-R ViT-L, one bank a class, means of {row.seeds} seeds"
    if not same_model(evaluation.manifest, evaluation.scoring):
        said += f"; ours are of another model, {evaluation.manifest.identity.describe()}"
    if not _whole(evaluation):
        said += "; our classes are not all of theirs, so the means do not compare"
    return said + "."


def _price(evaluation: Evaluation) -> str:
    every = evaluation.to_dict()["mean"]["all"]
    parts = []
    for name, metric in zip(HEADS, METRICS, strict=True):
        ours, given = every[metric]["mean"], every[f"separate_{metric}"]["mean"]
        if ours is not None and given is not None:
            parts.append(f"{name} {100 * (ours - given):+.2f}")
    accuracy = every["routing_accuracy"]["mean"]
    cost = ", ".join(parts) or "not defined"
    return (
        f"Routed right: {_share(accuracy)} %. Against the same bank with the class given, misrouting changes: {cost}."
    )


def _uncalibrated(evaluation: Evaluation) -> list[str]:
    reasons: dict[tuple[str, str], None] = {}
    for unit in evaluation.units:
        held = unit.result["calibration"]
        if held["threshold"] is None:
            reasons[unit.result["class"], held["reason"]] = None
    return [f"{name}: no threshold, {reason}." for name, reason in reasons]


def _undefined(results: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], list[int | None]]:
    found: dict[tuple[str, str, str], list[int | None]] = {}
    for result in results:
        by_reason: dict[str, list[str]] = {}
        for metric, reason in result["reasons"].items():
            by_reason.setdefault(reason, []).append(HEADS[METRICS.index(metric)])
        for reason, metrics in by_reason.items():
            found.setdefault((result["class"], ", ".join(metrics), reason), []).append(result["seed"])
    return found


# --- the page ---------------------------------------------------------------------------------------------------------


def _table_section(evaluation: Evaluation) -> str:
    head, rows = table(evaluation)
    cells = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = []
    for row in rows:
        mean = row[0].startswith("mean of ") and row[0] not in evaluation.classes
        kind = ' class="mean"' if mean else "" if row[0] in evaluation.classes else ' class="published"'
        body.append(f"<tr{kind}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>")
    row_known = published(evaluation.dataset, evaluation.shots)
    said = f'<p class="said">{text(_comparison(evaluation, row_known))}</p>' if row_known is not None else ""
    return (
        '<section><div class="head"><h2>All classes</h2></div><div class="wide"><table class="results">'
        f"<thead><tr>{cells}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{said}</section>"
    )


def _class_section(evaluation: Evaluation, name: str) -> str:
    units = evaluation.of_class(name)
    first = units[0]
    spread = evaluation.to_dict()["mean"]["by_class"][name]
    chips = [
        ("image AUROC", _cell(spread["image_auroc"])),
        ("AUPRO", _cell(spread["pixel_aupro"])),
        ("good", str(first.result["good"])),
        ("defects", str(first.result["defects"])),
    ]
    calibration = first.result.get("calibration")
    if calibration and calibration["threshold"] is not None:
        chips.append(("false rejects", f"{calibration['false_rejects']} of {first.result['good']}"))
        chips.append(("misses", f"{calibration['misses']} of {first.result['defects']}"))
    stats = "".join(f"<div><b>{text(value)}</b><span>{label}</span></div>" for label, value in chips)
    curves = "".join(
        (
            _plot("Image ROC", "good rejected", "defects found", [_image_roc(u) for u in units], 1.0),
            _plot("Pixel ROC", "good pixels marked", "defect pixels marked", [u.arrays["roc"] for u in units], 1.0),
            _plot("PRO", "good pixels marked", "overlap with regions", [u.arrays["pro"] for u in units], PRO_MAX_FPR),
        )
    )
    many = len(evaluation.seeds) > 1
    shown = f", seed {_seed(first.result['seed'])}" if many else ""
    taught = ", ".join(PurePosixPath(path).name for path in first.result["supports"])
    return (
        f'<section><div class="head"><h2>{text(name)}</h2><div class="stats">{stats}</div></div>'
        f'<p class="said">Taught with {text(taught)}{text(shown)}.</p>'
        f'<div class="plots">{curves}</div>'
        f"<h3>Scores{text(shown)}</h3>"
        f'<div class="wide">{_histogram(first)}</div>{_cards(first, shown)}</section>'
    )


def _image_roc(unit: Unit) -> NDArray[np.float64]:
    scores, labels = unit.arrays["scores"], unit.arrays["labels"].astype(bool)
    if not labels.any() or labels.all():
        return np.empty((0, 2))
    order = np.argsort(-scores, kind="stable")
    found, lost = np.cumsum(labels[order]), np.cumsum(~labels[order])
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are one step
    points = np.stack([lost[last] / lost[-1], found[last] / found[-1]], axis=1)
    return np.concatenate([[[0.0, 0.0]], points])


def _plot(name: str, x_label: str, y_label: str, curves: Sequence[NDArray[Any]], x_end: float) -> str:
    """A square plot; the first curve stands out, the other seeds' are thin."""
    left, top, side = 44, 12, 260
    drawn = []
    for place, curve in reversed(list(enumerate(curves))):
        if len(curve) < 2:
            continue
        points = " ".join(
            f"{left + side * min(x / x_end, 1):.1f},{top + side * (1 - y):.1f}" for x, y in curve.tolist()
        )
        drawn.append(f'<polyline class="{"first" if place == 0 else "other"}" points="{points}"/>')
    grid = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = left + side * share, top + side * (1 - share)
        grid.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + side}"/>')
        grid.append(f'<line x1="{left}" x2="{left + side}" y1="{y:.1f}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{x:.1f}" y="{top + side + 16}" text-anchor="middle">{share * x_end:.3g}</text>')
        grid.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{share:.3g}</text>')
    middle = left + side / 2
    nothing = f'<text x="{middle}" y="{top + side / 2}" text-anchor="middle">not defined</text>' if not drawn else ""
    return (
        f'<figure><figcaption>{text(name)}</figcaption><svg class="plot" viewBox="0 0 320 316" role="img" '
        f'aria-label="{text(name)}">{"".join(grid)}{"".join(drawn)}{nothing}'
        f'<text x="{middle}" y="{top + side + 36}" text-anchor="middle">{text(x_label)}</text>'
        f'<text transform="translate(11 {top + side / 2}) rotate(-90)" text-anchor="middle">{text(y_label)}</text></svg></figure>'
    )


def _histogram(unit: Unit) -> str:
    scores, labels = unit.arrays["scores"], unit.arrays["labels"]
    if not scores.size:
        return ""
    calibration = unit.result.get("calibration")
    calibrated = calibration is not None and calibration["threshold"] is not None
    limit = float(calibration["threshold"]) if calibrated and calibration else best_threshold(scores, labels)
    axis = Axis.around([*scores.tolist(), limit])
    left, right, top, height, width = 24, 24, 30, 170, 1000
    room, bottom = width - left - right, top + height

    def x_of(value: float) -> float:
        return left + room * axis.at(value)

    parts = [f'<line class="grid" x1="{left}" x2="{width - right}" y1="{bottom}" y2="{bottom}"/>']
    parts += [f'<text class="tick" x="{x_of(t):.1f}" y="{bottom + 18}">{t:.4g}</text>' for t in axis.ticks()]
    shares = []
    for label in (0, 1):
        counts, edges = np.histogram(scores[labels == label], BINS, (axis.low, axis.high))
        shares.append((label, counts / max(counts.sum(), 1), counts, edges))
    highest = max(float(share.max()) for _, share, _, _ in shares) or 1.0
    for label, share, counts, edges in shares:
        for k in range(BINS):
            if counts[k]:
                x, tall = x_of(edges[k]), height * share[k] / highest
                parts.append(
                    f'<rect class="bar {"bad" if label else "good"}" x="{x:.1f}" y="{bottom - tall:.1f}" '
                    f'width="{room / BINS - 1:.1f}" height="{tall:.1f}"><title>{counts[k]} {"defects" if label else "good"}, '
                    f"{edges[k]:.4g} to {edges[k + 1]:.4g}</title></rect>"
                )
    x = x_of(limit)
    what = "threshold" if calibrated else "best F1, known only afterwards:"
    anchor = "start" if x < left + room * 0.6 else "end"
    parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 8}" y2="{bottom}"/>')
    parts.append(f'<text class="limit" x="{x:.1f}" y="{top - 13}" text-anchor="{anchor}">{what} {number(limit)}</text>')
    return (
        f'<svg class="strip" viewBox="0 0 {width} {bottom + 26}" role="img" aria-label="Histogram of scores">{"".join(parts)}</svg>'
        '<p class="legend"><i class="key good"></i>good<i class="key bad"></i>defects, each as a share of its own kind</p>'
    )


def _cards(unit: Unit, shown: str) -> str:
    groups = []
    for label, name in ((1, "Defects that look most like good parts"), (0, "Good parts that look most like defects")):
        cards = []
        for place, entry in enumerate(unit.result["worst"]):
            if entry["label"] != label or f"picture_{place}" not in unit.arrays:
                continue
            path = entry["image"]
            pictures = "".join(
                image_of(unit.arrays[f"{kind}_{place}"].tobytes(), f"{path}, {alt}")
                for kind, alt in (("picture", "as taken"), ("overlay", "heat map"))
            )
            foreign = entry["class"] != unit.result["class"]
            taken = f"<span>taken for {text(entry['class'] or 'no class')}</span>" if foreign else ""
            cards.append(
                f'<article class="case"><div class="pair">{pictures}</div><div class="line1"><b>{text(entry["defect"])}</b>'
                f'<span class="score">{number(entry["score"])}</span></div>'
                f'<div class="line2"><span title="{text(path)}">{text(path)}</span>{taken}</div></article>'
            )
        if cards:
            groups.append(f'<h3>{name}{text(shown)}</h3><div class="cards">{"".join(cards)}</div>')
    return "".join(groups)


_STYLE = """
.said{color:var(--soft);margin:12px 0 0;max-width:90ch}
.results{border-collapse:collapse;width:100%;margin-top:16px;font-size:13.5px}
.results th{font-weight:600;color:var(--soft);font-size:12.5px;vertical-align:bottom}
.results th,.results td{padding:7px 6px;text-align:right;border-bottom:1px solid var(--edge);white-space:nowrap}
.results th:first-child,.results td:first-child{text-align:left}
.results th{white-space:normal}
.results .mean td{font-weight:650;border-top:2px solid var(--ink)}
.results .published td{color:var(--soft)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(260px,100%),1fr));gap:18px;margin-top:18px}
figure{margin:0}figcaption{font-size:13px;font-weight:600;margin-bottom:4px}
.plot{display:block;width:100%;height:auto;max-width:420px}.plot line{stroke:var(--edge)}
.plot text{fill:var(--soft);font-size:11px}
.plot polyline{fill:none;stroke:var(--accent);stroke-linejoin:round}
.plot .first{stroke-width:2.4}.plot .other{stroke-width:1;opacity:.4}
.bar{opacity:.62}.bar.good{fill:var(--good)}.bar.bad{fill:var(--bad)}
.legend .key{width:12px;height:12px}.legend .key:first-child{margin-left:0}
.key.good{background:var(--good)}.key.bad{background:var(--bad)}
.line1{margin-bottom:6px}.case{padding-bottom:0}
"""
