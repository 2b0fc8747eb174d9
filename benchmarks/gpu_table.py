"""The last thing `benchmarks/gpu.sh` prints: `python benchmarks/gpu_table.py OUT`, from what it left there, in at most 40 lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

MOST_LINES = 40
BAD = ("FAILED", "TIMED OUT")
HEADER = ("model", "prec", "backend", "p50 ms", "p99", ":engine", "img/s", "at", "J/img", "GPU MB", "roof")
WIDTHS = (-25, -5, -17, 8, 8, 8, 8, 3, 7, 7, 5)
"""Latency of the first batch size, its ratio to the bare engine, the best throughput and at which batch. Below 0: to the left."""


def main() -> int:
    """Print the table and write ``OUT/table.txt``; exit status 1 if a check failed."""
    out = Path(sys.argv[1])
    steps = [line.split("\t") for line in (out / "steps.tsv").read_text().splitlines()]
    text = "\n".join(table(steps, [json.loads(p.read_text()) for p in sorted(out.glob("bench-*.json"))]))
    (out / "table.txt").write_text(text + "\n")
    print(text)
    return int(any(state in BAD for _, state, _, _ in steps))


def table(steps: list[list[str]], benches: list[dict[str, Any]]) -> list[str]:
    """``steps`` are name, state, seconds and note. What failed comes first, then the figures, then what was skipped."""
    counts = {state: sum(s == state for _, s, _, _ in steps) for state in dict.fromkeys(s for _, s, _, _ in steps)}
    spent = sum(int(seconds) for _, _, seconds, _ in steps)
    lines = [f"{', '.join(f'{n} {state}' for state, n in counts.items())}; {spent} s in steps"]
    lines += [f"{state:<9} {name}: {note}" for name, state, _, note in steps if state in BAD]
    if benches:
        lines.append(_columns(HEADER))
    for bench in benches:
        for backend, entry in bench["backends"].items():
            lines.append(_row(bench["model"], backend, entry))
    skipped: dict[str, list[str]] = {}
    for name, state, _, note in steps:
        if state not in ("ok", *BAD):
            skipped.setdefault(f"{state}: {note}", []).append(name)
    lines += [f"{why} ({len(names)}: {', '.join(names)})" for why, names in skipped.items()]
    lines = [line if len(line) <= 160 else line[:157] + "..." for line in lines]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"... {len(lines) - MOST_LINES + 1} lines more in steps.tsv"]
    return lines


def _row(model: dict[str, Any], backend: str, entry: dict[str, Any]) -> str:
    first = next(iter(entry["batches"].values()))
    size, best = max(entry["batches"].items(), key=lambda item: item[1]["pictures_per_s"])
    energy, cold = entry["energy"]["joules_per_picture"], entry["cold_start"] or {}
    roof = entry["roofline"]["engine, a view"].get("share_of_roof")
    figures = (
        _number(first["whole"]["p50"], 2),
        _number(first["whole"]["p99"], 2),
        _number(first["whole_to_bare_engine"]["median"], 3),
        _number(best["pictures_per_s"], 1),
        size,
        _number(energy, 3),
        _number(cold.get("gpu_memory_mb"), 0),
        "-" if roof is None else format(roof, ".0%"),
    )
    return _columns((model["name"].split()[0], model["precision"], backend, *figures))


def _columns(cells: tuple[str, ...]) -> str:
    return " ".join(f"{c:<{-w}}" if w < 0 else f"{c:>{w}}" for c, w in zip(cells, WIDTHS, strict=True))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else format(value, f".{digits}f")


if __name__ == "__main__":
    sys.exit(main())
