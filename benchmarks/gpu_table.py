"""Summary of a run of `benchmarks/gpu.sh` in at most 40 lines: `python benchmarks/gpu_table.py OUT`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionad_runtime.engine.base import NVIDIA_GPU
from visionad_runtime.engine.registry import backend_spec

MAX_LINES = 40
BAD = ("FAILED", "TIMED OUT")
HEADER = (
    "model", "prec", "backend", "file ms", "p99", "pixels", "p99", ":engine", "img/s", "at", "J/img", "GPU MB", "roof",
)  # fmt: skip
WIDTHS = (-25, -5, -17, 8, 8, 8, 8, 8, 8, 3, 7, 7, 5)
"""Column widths; negative ones align left. The columns are the latency of the first batch size from the file and from pixels, the
latter's ratio to the bare engine, and the best throughput with its batch size."""
LARGE = "dinov2_vitl14"
PEAK_SHARE, WHOLE_TO_ENGINE, COSINE, AUROC = 0.55, 1.15, 0.999, 0.1
"""Aims: fraction of the measured bf16 peak that the large backbone's engine reaches in 16 bits at three views a call; time of the
whole inspection relative to the bare engine; cosine of the features to those in fp32; difference of the AUROC to fp32 in
points."""


def main() -> int:
    """Print the table and write ``OUT/table.txt``; exit status 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of results that benchmarks/gpu.sh wrote")
    out = parser.parse_args().out
    steps = [line.split("\t") for line in (out / "steps.tsv").read_text().splitlines()]
    text = "\n".join(
        table(
            steps,
            _reports(out, "bench-*"),
            _reports(out, "parity-*"),
            _reports(out, "search"),
            _reports(out, "chain-*"),
            _reports(out, "ways-*"),
        )
    )
    (out / "table.txt").write_text(text + "\n")
    print(text)
    return int(any(state in BAD for _, state, _, _ in steps))


def _reports(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in sorted(out.glob(f"{name}.json"))]


def table(
    steps: list[list[str]],
    benches: list[dict[str, Any]],
    parities: Sequence[dict[str, Any]] = (),
    searches: Sequence[dict[str, Any]] = (),
    chains: Sequence[dict[str, Any]] = (),
    ways: Sequence[dict[str, Any]] = (),
) -> list[str]:
    """Format the summary: failures first, then numbers, aims, and skipped steps. A step is name, state, seconds and note."""
    counts = {state: sum(s == state for _, s, _, _ in steps) for state in dict.fromkeys(s for _, s, _, _ in steps)}
    spent = sum(int(seconds) for _, _, seconds, _ in steps)
    lines = [f"{', '.join(f'{n} {state}' for state, n in counts.items())}; {spent} s in steps"]
    lines += [f"{state:<9} {name}: {note}" for name, state, _, note in steps if state in BAD]
    if benches:
        lines.append(_columns(HEADER))
    for bench in benches:
        for backend, entry in bench["backends"].items():
            lines.append(_row(bench["model"], backend, entry))
    lines += [_raced(report) for report in ways] + _searched(searches) + _under_load(chains)
    lines += [told_aim(aim) for aim in every_aim(benches, parities, searches, chains)]
    skipped: dict[str, list[str]] = {}
    for name, state, _, note in steps:
        if state not in ("ok", *BAD):
            skipped.setdefault(f"{state}: {note}", []).append(name)
    lines += [f"{why} ({len(names)}: {', '.join(names)})" for why, names in skipped.items()]
    lines = [line if len(line) <= 160 else line[:157] + "..." for line in lines]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"... {len(lines) - MAX_LINES + 1} lines more in steps.tsv"]
    return lines


def _row(model: dict[str, Any], backend: str, entry: dict[str, Any]) -> str:
    first = next(iter(entry["batches"].values()))
    size, best = max(entry["batches"].items(), key=lambda item: item[1]["pictures_per_s"])
    energy, cold = entry["energy"]["joules_per_picture"], entry["cold_start"] or {}
    roof = entry["roofline"]["engine, a view"].get("share_of_roof")
    figures = (
        _number(first["whole"]["p50"], 2),
        _number(first["whole"]["p99"], 2),
        _number(first["pixels"]["p50"], 2),
        _number(first["pixels"]["p99"], 2),
        _number(first["pixels_to_bare_engine"]["median"], 3),
        _number(best["pictures_per_s"], 1),
        size,
        _number(energy, 3),
        _number(cold.get("gpu_memory_mb"), 0),
        "-" if roof is None else format(roof, ".0%"),
    )
    return _columns((model["name"].split()[0], model["precision"], backend, *figures))


def _raced(report: Mapping[str, Any]) -> str:
    """ONNX Runtime's ways to run a model, the runtime's first choice first."""
    model = report["model"]
    ways = report["ways"][::-1]
    times = " / ".join(_number(way.get("gpu_ms", {}).get("p50"), 3) for way in ways)
    return f"ways {model['backbone']} {model['precision']}: {times} ms ({' / '.join(way['way'] for way in ways)})"


def _searched(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    """One image's search at a few sizes."""
    cells = [c for r in reports for c in r["cells"] if c["queries"] == 784 and c["dim"] in (384, 1024)]
    lines = []
    for cell in sorted(cells, key=lambda c: (-c["dim"], c["rows"])):
        to_peer = cell["to_gemm_and_max"]
        lines.append(
            f"search {cell['rows']:>8} rows of {cell['dim']:<5} {_number(cell['ms']['visionad']['p50'], 3):>8} ms "
            f"{cell['tflop_per_s']:>7.1f} TFLOP/s {_share(cell['share_of_peak'])} of peak "
            f"{_share(cell['share_of_cublas'])} of cuBLAS"
            + ("" if to_peer is None else f", {to_peer:.2f} of GEMM + max")
        )
    return lines


def _under_load(reports: Iterable[Mapping[str, Any]]) -> list[str]:
    return [
        f"cameras {report['backend']} {report['model'].split()[0]} {report['precision']}: "
        + "; ".join(
            f"{c['cameras']}: p50 {_number(c['p50'], 2)} p99 {_number(c['p99'], 2)} ms, {c['pictures_per_s']:g}/s"
            for c in report["cameras"]
        )
        + "; "
        + ", ".join(
            f"after {row['pause_s']:g} s {_number(row['p50'], 2)} ms {how.replace('_', ' ')}"
            for how, rows in report["pauses"].items()
            for row in rows[-1:]
        )
        for report in reports
    ]


def every_aim(
    benches: Sequence[Mapping[str, Any]],
    parities: Sequence[Mapping[str, Any]],
    searches: Sequence[Mapping[str, Any]],
    chains: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """One aim: ``aim``, ``found`` (or ``None``), and ``pass`` true, false, or ``None`` where it was not measured."""
    return [
        _engine_aim(benches, searches),
        _whole_aim(benches),
        *_accuracy_aims(parities),
        *([aim for report in searches for aim in report["aims"]] or [_not_run("search beside cuBLAS")]),
        *([] if chains else [_not_run("an inspector under load")]),
        *(
            {**aim, "aim": f"{report['model'].split()[0]} {report['backend']}: {aim['aim']}"}
            for report in chains
            for aim in report["aims"]
        ),
    ]


def _not_run(what: str) -> dict[str, Any]:
    return {"aim": what, "found": None, "pass": None}


def _engine_aim(benches: Iterable[Mapping[str, Any]], searches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The large backbone's engine at its best: by the GPU's clock where the whole chain is, else by the host's, with copies."""
    benches = list(benches)
    measured = [r["peaks"]["bf16"]["tflop_per_s"] for r in searches]
    measured += [
        b["peaks"]["gpu"]["gflop_per_s"] / 1e3
        for b in benches
        if b["model"]["precision"] == "bf16" and b["peaks"]["gpu"]["gflop_per_s"] is not None
    ]
    peak = next((p for p in measured if p is not None), None)
    rates: list[tuple[float, str]] = []
    for bench, backend, entry in _large(benches):
        gflop = entry["roofline"]["engine, a view"].get("gflop")
        if bench["model"]["precision"] not in ("fp16", "bf16") or len(bench["views"]) != 3 or gflop is None:
            continue
        ms = _engine_ms(entry)
        rates.append((3 * gflop / ms, f"{backend}, {bench['model']['precision']}"))
    best = max(rates, default=None)
    share = best[0] / peak if best and peak else None
    return {
        "aim": f"ViT-L engine in 16 bits, three views a call: at least {PEAK_SHARE:.0%} of the bf16 peak here",
        "found": f"{share:.1%} ({best[1]}: {best[0]:.0f} of {peak:.0f} TFLOP/s)" if best and share else None,
        "pass": None if share is None else share >= PEAK_SHARE,
    }


def _whole_aim(benches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """From pixels to verdict, as a camera's image comes decoded, beside the engine's own time on the GPU's clock in the same
    calls. Told too: beside the engine with copies of its input and output, as one would call it alone, and from the file, which
    the host decodes."""
    ratios: list[tuple[float, str]] = []
    for bench, backend, entry in _large(benches):
        at = entry["batches"]["1"]
        pixels, alone = at["pixels"]["p50"], _engine_ms(entry)
        note = f"{pixels:.2f} ms, the engine {alone:.2f}; with its copies {at['pixels_to_bare_engine']['median']:.3f}"
        note += f", from the file {at['whole_to_bare_engine']['median']:.3f}"
        ratios.append((pixels / alone, f"{note} ({backend}, {bench['model']['precision']})"))
    best = min(ratios, default=None)
    return {
        "aim": f"ViT-L, three views, 1 shot: pixels to verdict at most {WHOLE_TO_ENGINE} of the bare engine's time",
        "found": f"{best[0]:.3f}: {best[1]}" if best else None,
        "pass": best[0] <= WHOLE_TO_ENGINE if best else None,
    }


def _engine_ms(entry: Mapping[str, Any]) -> float:
    """Of three views: on the GPU's clock, from pixels, where the chain is there, else with copies."""
    stages = entry["stages"]["pixels"]
    milliseconds: float = (stages["engine"] if "wait" in stages else entry["batches"]["1"]["bare_engine"])["p50"]
    return milliseconds


def _on_gpu(backend: str) -> bool:
    return backend_spec(backend).device == NVIDIA_GPU


def _large(benches: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], str, Mapping[str, Any]]]:
    """Benches of the large backbone on a GPU, one image a call."""
    for bench in benches:
        for backend, entry in bench["backends"].items():
            if bench["model"]["name"].startswith(LARGE) and _on_gpu(backend) and "1" in entry["batches"]:
                yield bench, backend, entry


def _accuracy_aims(parities: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of GPU backends against the fp32 reference, over what was compared."""
    on_gpu = [p for p in parities if _on_gpu(p["backend"])]
    cosine = min(((p["patch_min_cosine"], _told(p)) for p in on_gpu), default=None)
    ordered = [(100 * p["auroc"]["difference"], _told(p)) for p in on_gpu if p["auroc"] is not None]
    auroc = max(ordered, default=None)
    return [
        {
            "aim": f"features' cosine to fp32's at least {COSINE}",
            "found": f"{cosine[0]:.6f} ({cosine[1]}), the lowest of {len(on_gpu)} comparisons" if cosine else None,
            "pass": cosine[0] >= COSINE if cosine else None,
        },
        {
            "aim": f"AUROC within {AUROC} point of fp32's",
            "found": f"{auroc[0]:.2f} points ({auroc[1]}), the most of {len(ordered)}" if auroc else None,
            "pass": auroc[0] <= AUROC if auroc else None,
        },
    ]


def _told(parity: Mapping[str, Any]) -> str:
    return f"{parity['model'].split()[0]} {parity['backend']} {parity['precision']}"


def told_aim(aim: Mapping[str, Any]) -> str:
    """``pass``, ``FAIL`` or ``not measured``, then the aim and what was found."""
    state = {True: "pass", False: "FAIL", None: "not measured"}[aim["pass"]]
    return f"{state:<12}  {aim['aim']}" + (f": {aim['found']}" if aim["found"] else "")


def figure(value: float | None) -> str:
    """Four digits of it, or ``-``."""
    return "-" if value is None else format(value, ".4g")


def _share(value: float | None) -> str:
    return "   -" if value is None else f"{value:>4.0%}"


def _columns(cells: tuple[str, ...]) -> str:
    return " ".join(f"{c:<{-w}}" if w < 0 else f"{c:>{w}}" for c, w in zip(cells, WIDTHS, strict=True))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else format(value, f".{digits}f")


if __name__ == "__main__":
    sys.exit(main())
