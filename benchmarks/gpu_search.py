"""The GPU's exact search side by side with cuBLAS, torch, faiss and cuVS: `python benchmarks/gpu_search.py --out FILE`.

All of them search the same 16-bit rows in the same GPU memory, in turns within one process, by GPU time. The runtime's kernels,
torch's product (cuBLAS) alone, and the product with its maximum run as one CUDA graph each; the others as they are called. Before
each timed search, another kernel reads more memory than the GPU's cache holds, as the backbone does in operation. The results are
compared. Fractions of cuBLAS's rate use medians, and the peaks are measured. The most important sizes come first, until
``--seconds`` are spent; the others are reported as skipped.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
from gpu_opponents import (
    BLOCK,
    CACHE,
    EXPRESSION,
    F32,
    MAXIMUM,
    OURS,
    PEERS,
    PRODUCT,
    Contender,
    Ground,
    Make,
    Rows,
    Search,
    Work,
    has_torch,
    make_peers,
    ours,
)
from gpu_table import figure, told_aim
from numpy.typing import NDArray
from visionad_runtime.cuda.interface import Device
from visionad_runtime.cuda.kernels import Kernels
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.errors import VisionADError
from visionad_runtime.system import environment
from visionad_runtime.tools.benchmark import measure, roofline

ROUNDS, CALLS = 5, 400
HALF_SCORES = 2e-3
"""What a peer's score may be off: 16-bit operands, and a result of 16 bits (steps of 5e-4 below 1)."""
EXACT = 2e-7
"""What the runtime's score, from a float32 distance, may be off its row's."""
CHECKED = 64
"""Queries whose winners are scored again in float64 on the host."""
AIM = (784, 1_000_000, 1024)
"""Queries, rows, dim at which the share of cuBLAS's rate is expected."""
AIM_SHARE = 0.75
CLASSES, SHOTS, POSES, PATCHES = 16, 4, 6, 784


def draw(dim: int, rows: int, seed: int = 0) -> Iterator[F32]:
    """``rows`` tokens (``common.Tokens``) in blocks of at most ``BLOCK``, each of a seed of its own, so that all cores draw."""

    def block(number: int) -> F32:
        tokens = common.Tokens(dim)
        tokens.rng = np.random.default_rng((seed, number))
        return tokens.draw(min(BLOCK, rows - number * BLOCK))

    workers = min(16, os.cpu_count() or 1)
    numbers = range(-(-rows // BLOCK))
    with ThreadPoolExecutor(workers) as pool:  # a few at a time: all of them would not fit the host
        for start in range(0, len(numbers), workers):
            yield from pool.map(block, numbers[start : start + workers])


# -- measuring ---------------------------------------------------------------------------------------------------------


def _give_back() -> None:
    """torch keeps what it has freed; the next size needs it."""
    if has_torch():
        gc.collect()
        sys.modules["torch"].cuda.empty_cache()


class GpuClock:
    """Time that passes on the GPU alone, which ``measure.time_interleaved`` takes as its clock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def candidate(self, contender: Contender) -> measure.Candidate:
        def call(_: int) -> None:
            self.seconds += contender.run() / 1e3

        return measure.Candidate(contender.name, call)


def race(contenders: Sequence[Contender], seconds: float) -> dict[str, dict[str, Any]]:
    """Milliseconds of each, timed in turns for about ``seconds`` of the GPU each, or :data:`CALLS` of the fastest."""
    clock = GpuClock()
    seconds = min(seconds, CALLS * min(c.run() for c in contenders) / 1e3)
    candidates = [clock.candidate(c) for c in contenders]
    measure.time_interleaved(candidates, seconds, ROUNDS, clock=clock)
    return {c.name: {**measure.summarize(e.times), "how": c.how} for c, e in zip(contenders, candidates, strict=True)}


@dataclass(frozen=True)
class Size:
    """Of a search: ``queries`` against ``rows`` of ``dim``."""

    queries: int
    rows: int
    dim: int

    def __str__(self) -> str:
        return f"{self.queries} x {self.rows} x {self.dim}"


def cell(
    ground: Ground, size: Size, queries: Rows, bank: Rows, seconds: float, peers: Mapping[str, Make], compiled: bool
) -> dict[str, Any]:
    """One size: everybody's times, whether they agree, what was reached."""
    with ours(ground, queries, [(bank.view(0, size.rows), np.arange(size.queries, dtype=np.int32))]) as (own, search):
        others, missing = make_peers(peers, ground, queries.half(size.queries), bank.half(size.rows), compiled)
        times = race([own, *others], seconds)
        assert own.found is not None
        score, row = own.found()
        exact = _exact(ground, queries, bank, row)
        off = float(np.abs(exact - score[_some(len(score))]).max())
        faults = [] if off <= EXACT else [f"{size}: the score found is off the row's own by {off:.2g}"]
        for other in others:
            if other.found is not None:
                theirs, where = other.found()
                nearer = _exact(ground, queries, bank, where) - exact
                faults += disagreements(f"{size}: {other.name}", score, theirs, nearer)
        return {
            "queries": size.queries, "rows": size.rows, "dim": size.dim, "ms": times, "missing": missing, "faults": faults,
            "kernels_ms": {k: round(v, 4) for k, v in _stages(ground, search).items()},
        }  # fmt: skip


def disagreements(who: str, ours: F32, theirs: F32, nearer: NDArray[np.float64]) -> list[str]:
    """A peer's scores are ours but for its rounding, and no row it found is nearer than ours: what is otherwise."""
    apart = float(np.abs(theirs - ours).max())
    faults = [] if apart <= HALF_SCORES else [f"{who} and the runtime differ by {apart:.2g} in score"]
    if nearer.max() > 1e-9:
        faults.append(f"{who} found a row nearer by {nearer.max():.2g} than the runtime's")
    return faults


def _stages(ground: Ground, search: Search) -> dict[str, float]:
    ground.flush()
    return search.stages()


def _exact(ground: Ground, queries: Rows, bank: Rows, row: NDArray[Any]) -> NDArray[np.float64]:
    """Float64 scores of some queries with these rows, fetched from the device."""
    device, stream = ground.device, ground.stream
    some = _some(len(row))
    left, right = (device.pinned((len(some), bank.dim), np.float32) for _ in range(2))
    for i, query in enumerate(some.tolist()):
        device.download(left[i], queries.rows32, stream, 4 * bank.dim * query)
        device.download(right[i], bank.rows32, stream, 4 * bank.dim * int(row[query]))
    stream.synchronize()
    return np.einsum("pd,pd->p", left.astype(np.float64), right.astype(np.float64))


def _some(count: int) -> NDArray[np.int64]:
    """At most :data:`CHECKED` queries of ``count``, spread over all of them."""
    return np.unique(np.linspace(0, count - 1, min(CHECKED, count)).astype(np.int64))


def mixed(
    ground: Ground, dim: int, rows: int, patches: int, bank: Rows, queries: Rows, seconds: float
) -> dict[str, Any]:
    """An image of each of :data:`CLASSES` classes of ``rows`` rows in one launch; as many images of one class as large as all
    of them; and of one class of ``rows``: as many products, a 16th of the memory."""
    every = np.split(np.arange(CLASSES * patches, dtype=np.int32), CLASSES)
    works: dict[str, Work] = {
        "mixed": [(bank.view(i * rows, (i + 1) * rows), part) for i, part in enumerate(every)],
        "one class, all rows": [(bank.view(0, CLASSES * rows), part) for part in every],
        "one class, same work": [(bank.view(0, rows), part) for part in every],
    }
    with ExitStack() as stack:
        contenders = [stack.enter_context(ours(ground, queries, w, name))[0] for name, w in works.items()]
        times = race(contenders, seconds)
    p50 = {name: t["p50"] for name, t in times.items()}
    return {
        "classes": CLASSES, "rows_a_class": rows, "queries": CLASSES * patches, "dim": dim, "ms": times,
        "ratio": {name: round(p50["mixed"] / p50[name], 4) for name in works if name != "mixed"},
    }  # fmt: skip


def judged(row: dict[str, Any], peaks: roofline.Peaks | None) -> dict[str, Any]:
    """Rates and shares of a cell by medians."""
    p50 = {name: t["p50"] for name, t in row["ms"].items()}
    own = p50[OURS]
    work = roofline.Work(
        2.0 * row["queries"] * row["rows"] * row["dim"],
        2.0 * (row["queries"] + row["rows"]) * row["dim"] + 8.0 * row["queries"],
    )
    return {
        **row,
        "tflop_per_s": round(work.flops / own / 1e9, 2),
        "gb_per_s": round(work.bytes / own / 1e6, 1),
        "share_of_peak": round(work.flops / (own / 1e3) / peaks.flops, 4) if peaks else None,
        "share_of_bandwidth": round(work.bytes / (own / 1e3) / peaks.bytes, 4) if peaks else None,
        "share_of_roof": roofline.assess(work, own / 1e3, peaks)["share_of_roof"],
        "share_of_cublas": round(p50[PRODUCT] / own, 4) if PRODUCT in p50 else None,
        "to_gemm_and_max": round(own / p50[MAXIMUM], 4) if MAXIMUM in p50 else None,
    }


def aims(cells: Sequence[Mapping[str, Any]], mixtures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the aims: ``aim``, ``found``, and ``pass`` (true, false, or ``None`` if not measured)."""
    at_aim = [c for c in cells if (c["queries"], c["rows"], c["dim"]) == AIM and c["share_of_cublas"] is not None]
    share = at_aim[0]["share_of_cublas"] if at_aim else None
    compared = [c for c in cells if c["to_gemm_and_max"] is not None]
    slowest = max(compared, key=lambda c: c["to_gemm_and_max"], default=None)
    worst = max((m["ratio"]["one class, all rows"] for m in mixtures), default=None)
    same = max((m["ratio"]["one class, same work"] for m in mixtures), default=None)
    return [
        {
            "aim": f"search at {' x '.join(map(str, AIM))}: at least {AIM_SHARE:.0%} of cuBLAS's rate",
            "found": None if share is None else f"{share:.1%}",
            "pass": None if share is None else share >= AIM_SHARE,
        },
        {
            "aim": "search never slower than GEMM + max",
            "found": slowest
            and f"at most {slowest['to_gemm_and_max']:.3f} of its time, at {slowest['queries']} x {slowest['rows']} x "
            f"{slowest['dim']}, of {len(compared)} sizes",
            "pass": slowest and slowest["to_gemm_and_max"] <= 1,
        },
        {
            "aim": f"{CLASSES} classes x {SHOTS} shots mixed no slower than one class of that size",
            "found": None if worst is None else f"{worst:.3f} of its time; {same:.3f} of one class with the same work",
            "pass": None if worst is None else worst <= 1,
        },
    ]


def passes(rows: Sequence[int], dims: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Banks in the order they are made, as (dim, row counts that are searched in it): those of up to a million rows first, as a
    larger one takes long to make."""
    few, many = [n for n in rows if n <= AIM[1]], [n for n in rows if n > AIM[1]]
    return [(dim, sorted(part, reverse=True)) for part in (few, many) if part for dim in dims]


@dataclass
class TimeLimits:
    """Limits of a run.

    Attributes:
        until: monotonic time after which no new size is begun.
        seconds: GPU time of each contender at each size.
    """

    until: float
    seconds: float

    def left(self) -> bool:
        return time.monotonic() < self.until


class Run:
    """All sizes, on the owner's thread. ``report`` holds at any time what was measured so far."""

    def __init__(self, args: argparse.Namespace, peers: Mapping[str, Make]) -> None:
        self.args, self.peers = args, peers
        self.report: dict[str, Any] = {
            "environment": environment(),
            "cells": [],
            "mixed": [],
            "skipped": {},
            "faults": [],
        }
        self.peaks: roofline.Peaks | None = None

    def measure(self, device: Device) -> None:
        """Fill the report.

        Raises:
            VisionADError: the GPU failed.
        """
        limits = TimeLimits(time.monotonic() + self.args.seconds, self.args.each)
        ground = Ground(device, Kernels(device), device.stream(), self.args.cache)
        peaks = {kind: roofline.gpu_peaks(kind) for kind in ("fp16", "bf16")}
        self.peaks = p if isinstance(p := peaks["fp16"], roofline.Peaks) else None
        self.report |= {
            "gpu": device.name,
            "capability": ".".join(map(str, device.capability)),
            "target": ground.kernels.target,
            "peaks": {
                kind: {"tflop_per_s": round(p.flops / 1e12, 1), "gb_per_s": round(p.bytes / 1e9, 1), "how": p.method}
                if isinstance(p, roofline.Peaks)
                else {"tflop_per_s": None, "gb_per_s": None, "why_null": p}
                for kind, p in peaks.items()
            },
        }
        print(HEADER, flush=True)
        for dim, rows in passes(self.args.rows, self.args.dims):
            sizes = sorted(
                (Size(q, n, dim) for n in rows for q in self.args.queries), key=lambda s: (s.queries, s.rows) != AIM[:2]
            )
            with self._unless_full(sizes):
                self._bank(ground, dim, rows[0], sizes, limits)
        ground.close()

    def _bank(self, ground: Ground, dim: int, rows: int, sizes: Sequence[Size], limits: TimeLimits) -> None:
        """Every size in one bank."""
        if not limits.left():
            self._skip(sizes, f"no time left of {self.args.seconds:g} s")
            return
        with ExitStack() as stack:
            made, queries = (
                Rows(ground.device, ground.kernels, ground.stream, count, dim, draw(dim, count, seed))
                for seed, count in enumerate((rows, max(*self.args.queries, CLASSES * self.args.patches)))
            )
            stack.callback(made.close)
            stack.callback(queries.close)
            for size in sizes:
                if not limits.left():
                    self._skip([size], f"no time left of {self.args.seconds:g} s")
                    continue
                with self._unless_full([size]):
                    compiled = self.args.compiled and (size.queries, size.rows, size.dim) == AIM
                    row = cell(ground, size, queries, made, limits.seconds, self.peers, compiled)
                    self.report["faults"] += row.pop("faults")
                    self.report["cells"].append(judged(row, self.peaks))
                    print(line(self.report["cells"][-1]), flush=True)
                _give_back()
                if size is sizes[0] and CLASSES * self.args.class_rows <= rows <= AIM[1]:
                    self._mixed(ground, dim, made, queries, limits)  # an aim's, so before the other sizes

    def _mixed(self, ground: Ground, dim: int, made: Rows, queries: Rows, limits: TimeLimits) -> None:
        """The mixture of classes in one bank."""
        each, patches = self.args.class_rows, self.args.patches
        if not limits.left():
            return
        with self._unless_full([Size(CLASSES * patches, CLASSES * each, dim)]):
            self.report["mixed"].append(mixed(ground, dim, each, patches, made, queries, limits.seconds))
        _give_back()

    def _skip(self, sizes: Iterable[Size], why: str) -> None:
        self.report["skipped"] |= {str(size): why for size in sizes}

    @contextmanager
    def _unless_full(self, sizes: Iterable[Size]) -> Iterator[None]:
        """What does not fit the GPU is skipped."""
        try:
            yield
        except VisionADError as exc:
            if "out of GPU memory" not in str(exc):
                raise
            self._skip(sizes, str(exc))


# -- telling -----------------------------------------------------------------------------------------------------------

COLUMNS = (OURS, PRODUCT, MAXIMUM, EXPRESSION, "faiss", "cuvs")
HEADER = (
    f"{'queries x rows x dim':<24}"
    + "".join(f"{name:>11}" for name in COLUMNS)
    + f"{'p99':>9}{'TFLOP/s':>9}{'GB/s':>8}{'peak':>6}{'cuBLAS':>7}   p50 ms; p99 and rates: visionad's"
)


def line(row: Mapping[str, Any]) -> str:
    """A row of the table."""
    p50 = "".join(f"{figure(row['ms'].get(name, {}).get('p50')):>11}" for name in COLUMNS)
    shares = (f"{'-' if s is None else format(s, '.0%')}" for s in (row["share_of_peak"], row["share_of_cublas"]))
    return (
        f"{Size(row['queries'], row['rows'], row['dim'])!s:<24}{p50}{figure(row['ms'][OURS]['p99']):>9}"
        f"{row['tflop_per_s']:>9.1f}{row['gb_per_s']:>8.0f}{next(shares):>6}{next(shares):>7}"
    )


def summary(report: Mapping[str, Any]) -> list[str]:
    """What comes below the rows."""
    lines = [
        f"{m['classes']} classes of {m['rows_a_class']} rows mixed, {m['queries']} queries, dim {m['dim']}: "
        + ", ".join(f"{name} {figure(t['p50'])} ms" for name, t in m["ms"].items())
        for m in report["mixed"]
    ]
    for kind, peak in report["peaks"].items():
        rates = peak.get("why_null") or f"{peak['tflop_per_s']} TFLOP/s, {peak['gb_per_s']} GB/s ({peak['how']})"
        lines.append(f"peak {kind}: {rates}")
    missing = {name: why for c in report["cells"] for name, why in c["missing"].items()}
    lines += [f"not beside: {name}: {why}" for name, why in missing.items()]
    reasons: dict[str, list[str]] = {}
    for size, why in report["skipped"].items():
        reasons.setdefault(why, []).append(size)
    lines += [f"skipped: {why} ({', '.join(sizes)})" for why, sizes in reasons.items()]
    return lines + [told_aim(aim) for aim in report["aims"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write ``--out``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, nargs="+", default=[1000, 5000, 50_000, 500_000, 1_000_000, 4_000_000])
    options.add_argument("--dims", type=int, nargs="+", default=[1024, 384, 768, 192])
    options.add_argument("--queries", type=int, nargs="+", default=[PATCHES, 3 * PATCHES, 8 * PATCHES, 32 * PATCHES])
    options.add_argument("--patches", type=int, default=PATCHES, help="queries an image, in the mixture of classes")
    options.add_argument("--class-rows", type=int, default=SHOTS * POSES * PATCHES, help="rows a class, there")
    options.add_argument("--seconds", type=float, default=240, help="after which no new size is begun")
    options.add_argument("--each", type=float, default=0.3, help="seconds of GPU time of each contender at each size")
    options.add_argument("--cache", type=int, default=CACHE, help="bytes gone through before every search")
    options.add_argument("--compiled", action="store_true", help="torch.compile too, at the size of the first aim")
    options.add_argument("--out", type=Path, help="JSON file")
    args = options.parse_args(argv)
    run = Run(args, PEERS)
    try:
        DeviceThread.of(0).run(run.measure)
    except VisionADError as exc:
        run.report["faults"].append(str(exc))
    if "gpu" in run.report:
        run.report["aims"] = aims(run.report["cells"], run.report["mixed"])
        print("\n".join(summary(run.report)))
        if args.out is not None:
            args.out.write_text(json.dumps(run.report, indent=1) + "\n")
    for fault in run.report["faults"]:
        print(f"gpu_search: {fault}", file=sys.stderr)
    return 1 if run.report["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
