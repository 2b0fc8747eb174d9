"""Time of a replay from kept tokens: `python benchmarks/replay.py [--lines 500 --images 120]`.

DeiT-Tiny with real weights and real bottles, three views. The images are inspected with a bank of four supports, and replayed once,
which keeps their tokens. Then a journal of as many lines as asked for is replayed three times from these tokens: with the version
that the lines name, against a candidate with one more support, and against one with five other supports. These must encode nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from visionad_export.exporter import export_model
from visionad_runtime import Inspector
from visionad_runtime.teaching.replay import Replay, Target

SET = "mvtec_bottle"


def main() -> None:
    """Measure, print, write ``benchmarks/results/replay.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--lines", type=int, default=500)
    options.add_argument("--images", type=int, default=120)
    options.add_argument("--threads", type=int, default=2)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), args.lines, args.images, args.threads)
    path = common.write("replay", result)
    print("\n".join(f"{name}: {value}" for name, value in result.items()))
    print(f"written to {path.relative_to(common.ROOT)}")


def measure(folder: Path, count: int, images: int, threads: int) -> dict[str, Any]:
    """Make a bank and a journal, then replay."""
    weights = common.shared() / "weights" / common.BACKBONE / "model.safetensors"
    export_model(common.BACKBONE, folder / "model", weights=weights)
    data = common.shared() / "data" / SET
    paths = sorted(p for p in data.rglob("*.png") if "ground_truth" not in p.parts)
    good = [p for p in paths if "train" in p.parts]
    parts = [p for p in paths if p not in good[:10]][:images]
    bank, journal = folder / "bank", folder / "journal.jsonl"
    with Inspector.open(folder / "model", bank, threads=threads) as inspector:
        inspector.enroll_files(SET, good[:4])
        first = _records(inspector, parts)
        inspector.enroll_files(SET, good[4:5])
    with Inspector.open(folder / "model", folder / "other", threads=threads) as inspector:
        inspector.enroll_files(SET, good[5:10])
    with Inspector.open(folder / "model", threads=threads) as inspector:
        journal.write_text("".join(f"{json.dumps(line)}\n" for line in first))
        encoding = _replay(inspector, bank, journal, folder / "tokens")
        lines = [first[i % len(first)] for i in range(count)]
        journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        kept = _replay(inspector, bank, journal, folder / "tokens")
        candidate = _replay(inspector, bank, journal, folder / "tokens", Target(bank))
        other = _replay(inspector, bank, journal, folder / "tokens", Target(folder / "other"))
    assert encoding["differ"] == kept["differ"] == kept["encoded"] == candidate["encoded"] == other["encoded"] == 0
    size = sum(p.stat().st_size for p in (folder / "tokens").rglob("*.*"))
    return {
        "backbone": common.BACKBONE,
        "views": 3,
        "threads": threads,
        "images": len(parts),
        "kept tokens an image, MB": round(size / len(parts) / 1e6, 2),
        "first replay, encoding": encoding,
        "replay from kept tokens": kept,
        "against a candidate with one more support": candidate,
        "against a candidate with five other supports": other,
    }


def _records(inspector: Inspector, parts: list[Path]) -> list[dict[str, Any]]:
    return [
        one.result.to_dict(str(one.path))
        for one in inspector.inspect_files(parts, class_name=SET)
        if one.result is not None
    ]


def _replay(
    inspector: Inspector, bank: Path, journal: Path, tokens: Path, target: Target | None = None
) -> dict[str, Any]:
    replay = Replay(inspector, bank, tokens=tokens, target=target)
    start, busy, last, each = time.perf_counter(), time.process_time(), time.perf_counter(), []
    differ = 0
    for item in replay.run(journal):
        differ += item.difference is not None
        now = time.perf_counter()
        each.append(now - last)
        last = now
    facts = {
        "lines": len(each),
        "seconds": round(time.perf_counter() - start, 2),
        "CPU seconds": round(time.process_time() - busy, 2),
        "ms a line, median": round(1e3 * statistics.median(each), 1),
        "differ": differ,
        "encoded": 0 if replay.tokens is None else replay.tokens.computed,
    }
    replay.close()
    return facts


if __name__ == "__main__":
    main()
