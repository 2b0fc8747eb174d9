"""Exact search side by side with NumPy and faiss: `python benchmarks/search.py`.

The nearest bank row of 784 patch tokens, in turns within one process: NumPy's product with the whole bank, NumPy in tiles, faiss
`IndexFlatIP`, `nearest` on the plain bank, and on its index (`build_index`, which an inspector uses from the third search on).
All use the same number of threads. Banks are random, or with `--sets` the tokens of four real good parts (DeiT-Tiny with real
weights), in which the last image of the set is searched. A ratio is the median over rounds of the quotient of times in a round.
NumPy and faiss each have an OpenBLAS. If variables select its kernel (OPENBLAS_CORETYPE), everything is measured with and without
them, and each result names the kernel.

`--builds` compares the builds of the native code that this CPU can run with each other and with NumPy instead (`benchmarks/results/
search-builds.json`, or another `--name`). Builds are timed one right after the other, in an order that changes every round, by wall
clock and by CPU time of the process, so that other work on the machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np

CHOOSERS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
OURS, PEERS = ("plain", "index"), ("numpy", "numpy_tiled", "faiss")
SETTLE = 0.3
"""Seconds between measurements: the threads of NumPy and faiss keep spinning for a while (OpenBLAS longer than 0.1 s at a low
clock) and would slow the next one."""
TILE = 8192


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/search.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, nargs="+", default=[1000, 5000, 50_000, 500_000])
    options.add_argument("--dims", type=int, nargs="+", default=[192, 384, 1024])
    options.add_argument("--sets", action="store_true", help="tokens of real images too")
    options.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    options.add_argument("--queries", type=int, default=784)
    options.add_argument("--rounds", type=int, default=21, help="most rounds per size")
    options.add_argument("--seconds", type=float, default=10, help="of measuring per size; at least 3 rounds are run")
    options.add_argument(
        "--builds", nargs="*", metavar="NAME", help="compare builds of the native code instead (default: all)"
    )
    options.add_argument("--name", help="of the result file (default: search, or search-builds)")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.worker:
        (measure if args.builds is None else measure_builds)(args, **args.worker)
        return
    if args.builds is not None:
        compare_builds(args)
        return
    rows = []
    print(
        "| kernel of NumPy, faiss | threads | tokens | rows x dim | "
        + " | ".join(f"{p}, ms" for p in (*PEERS, *OURS))
        + " | ",
        end="",
    )
    print(" | ".join(f"{o} / {p}" for o in OURS for p in PEERS) + " |")
    print("|---" * (4 + len(PEERS) + len(OURS) + len(OURS) * len(PEERS)) + "|")
    folder = Path(tempfile.mkdtemp())
    if args.sets:
        save_sets(folder)
    plain = {k: v for k, v in os.environ.items() if k not in CHOOSERS}
    for env in (dict(os.environ), plain) if len(plain) < len(os.environ) else (plain,):
        for threads in args.threads:
            for row in worker_results(env, threads, folder):
                rows.append({"choosers": {k: env[k] for k in CHOOSERS if k in env}, **row})
                times = " | ".join(f"{row['ms'][m]:.4g}" for m in (*PEERS, *OURS))
                ratios = " | ".join(f"{r:.2f}" for r in row["ratios"].values())
                kernels = ", ".join(row["kernels"].values())
                size = f"{row['tokens']} | {row['rows']} x {row['dim']}"
                print(f"| {kernels} | {threads} | {size} | {times} | {ratios} |", flush=True)
    worst = {f"{o} / {p}": max(r["ratios"][f"{o} / {p}"] for r in rows) for o in OURS for p in PEERS}
    print("largest ratios:", ", ".join(f"{k} {v:.2f}" for k, v in worst.items()))
    path = common.write(args.name or "search", {"largest ratios": worst, "rows": rows})
    print(f"written to {path.relative_to(common.ROOT)}")


def worker_results(env: dict[str, str], threads: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Run this script as a worker with ``threads`` threads; give its results as they come."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [sys.executable, *sys.argv, "--worker", json.dumps({"threads": threads, "folder": str(folder)})]
    with subprocess.Popen(command, env={**env, **limits}, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            yield json.loads(line)
    if worker.returncode:
        raise SystemExit(worker.returncode)


def compare_builds(args: argparse.Namespace) -> None:
    """Measure every build that this CPU can run, print a table, write a result file."""
    folder, rows = Path(tempfile.mkdtemp()), []
    if args.sets:
        save_sets(folder)
    plain = {k: v for k, v in os.environ.items() if k not in CHOOSERS}
    for threads in args.threads:
        for row in worker_results(plain, threads, folder):
            rows.append(row)
            for kind, found in row["kinds"].items():
                times = ", ".join(f"{name} {ms:.4g}" for name, ms in found["ms"].items())
                ratios = "; ".join(
                    f"{pair} {found['wall ratios'][pair]:.3f} wall, {found['CPU ratios'][pair]:.3f} CPU"
                    for pair in found["wall ratios"]
                )
                size = f"{row['tokens']} {row['rows']} x {row['dim']}, {threads} threads, {row['rounds']} rounds"
                print(f"{size}, {kind}: ms {times}; {ratios}", flush=True)
    path = common.write(args.name or "search-builds", {"rows": rows})
    print(f"written to {path.relative_to(common.ROOT)}")


def measure_builds(args: argparse.Namespace, threads: int, folder: str) -> None:
    """Time all builds on all sizes in this process; print a line of JSON for each size."""
    from threadpoolctl import threadpool_info
    from visionad_runtime.search import PrunedIndex, build_index, native
    from visionad_runtime.search.numpy_search import error_bound

    libraries = {name: native.Library(name) for name in args.builds or native.supported_builds()}
    kernels = [f"{i['version']} {i['architecture']}" for i in threadpool_info() if i["internal_api"] == "openblas"]
    for tokens, queries, bank in cases(args, Path(folder)):
        index = build_index(bank, queries, threads)
        kinds: dict[str, dict[str, Callable[[], Any]]] = {"plain": {}, "index": {}}
        for name, library in libraries.items():
            search = functools.partial(library.nearest, queries, bank, 1, error_bound(bank.shape[1]), threads)
            kinds["plain"][name] = search
            if isinstance(index, PrunedIndex):
                kinds["index"][name] = functools.partial(projected, library, queries, index, search, threads)
        result: dict[str, Any] = {
            "threads": threads, "tokens": tokens, "queries": len(queries), "rows": len(bank), "dim": bank.shape[1],
            "kernels": kernels, "kinds": {},
        }  # fmt: skip
        start = time.perf_counter()
        for call in (call for calls in kinds.values() for call in calls.values()):  # warm
            call()
        rounds = int(min(args.rounds, max(5, args.seconds / (time.perf_counter() - start))))
        for kind, calls in kinds.items():
            wall: dict[str, list[float]] = {name: [] for name in calls}
            cpu: dict[str, list[float]] = {name: [] for name in calls}
            for i in range(rounds):
                for name in list(calls) if i % 2 else list(calls)[::-1]:
                    start, begun = time.perf_counter(), time.process_time()
                    calls[name]()
                    cpu[name].append((time.process_time() - begun) * 1e3)
                    wall[name].append((time.perf_counter() - start) * 1e3)
            pairs = list(zip(list(calls), list(calls)[1:], strict=False))
            if calls:
                result["kinds"][kind] = {
                    "ms": {name: statistics.median(t) for name, t in wall.items()},
                    "wall ratios": {f"{a} / {b}": ratio(wall[a], wall[b]) for a, b in pairs},
                    "CPU ratios": {f"{a} / {b}": ratio(cpu[a], cpu[b]) for a, b in pairs},
                }
        numpy = []
        for _ in range(min(rounds, 7)):  # last, since its threads go on spinning
            time.sleep(SETTLE)
            start = time.perf_counter()
            (queries @ bank.T).max(axis=1)
            numpy.append((time.perf_counter() - start) * 1e3)
        time.sleep(SETTLE)
        result |= {"rounds": rounds, "numpy, ms": statistics.median(numpy)}
        print(json.dumps(result), flush=True)


def projected(library: Any, queries: np.ndarray, index: Any, search: Callable[[Any], Any], threads: int) -> Any:
    """Search by one build with the projections of an index."""
    return search((library.project(queries, index.components, threads), index.projections))


def save_sets(folder: Path) -> None:
    """Banks and queries of the real sets, a file each."""
    for name, dataset, part, inspector in common.real_sets(folder):
        inspector.enroll_files(part, dataset.train(part)[:4])
        (result,) = inspector.inspect_files([dataset.test(part)[-1].path], class_name=part, trace=True)
        patch = np.asarray(result.trace.tokens.patch)
        queries = patch.reshape(-1, *patch.shape[-2:])[0]
        np.savez(folder / f"{name}.npz", bank=inspector.bank.classes[part].rois[0].rows("original"), queries=queries)


def cases(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Where tokens come from, queries, bank."""
    for path in sorted(folder.glob("*.npz")):
        arrays = np.load(path)
        yield path.stem, arrays["queries"], arrays["bank"]
    for dim in args.dims:
        tokens = common.Tokens(dim)
        queries = tokens.draw(args.queries)
        for count in args.rows:
            yield "drawn", queries, tokens.draw(count)


def measure(args: argparse.Namespace, threads: int, folder: str) -> None:
    """All sizes in this process; a line of JSON each."""
    import faiss
    from threadpoolctl import threadpool_info
    from visionad_runtime.search import build_index

    faiss.omp_set_num_threads(threads)
    blas = [lib for lib in threadpool_info() if lib["internal_api"] == "openblas"]
    kernels = {
        name: f"{lib['version']} {lib['architecture']}"
        for name in ("numpy", "faiss")
        for lib in blas
        if name in lib["filepath"]
    }
    for tokens, queries, bank in cases(args, Path(folder)):
        count, dim = bank.shape
        index = faiss.IndexFlatIP(dim)
        index.add(bank)
        start = time.perf_counter()
        held = {"plain": bank, "index": build_index(bank, queries)}
        built_in = {"index": (time.perf_counter() - start) * 1e3}
        methods = contenders(queries, bank, index, held, threads)
        start = time.perf_counter()
        scores = [call() for call in methods.values()]  # warm
        for score in scores:
            np.testing.assert_allclose(score, scores[0], rtol=0, atol=1e-5)
        rounds = int(min(args.rounds, max(3, args.seconds / (time.perf_counter() - start))))
        times: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(rounds):
            for name, call in methods.items():
                time.sleep(SETTLE)
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
        kind = "plain" if held["index"] is bank else type(held["index"]).__name__
        result = {
            "threads": threads, "tokens": tokens, "queries": len(queries), "rows": count, "dim": dim, "rounds": rounds,
            "kernels": kernels, "ms": {name: statistics.median(t) for name, t in times.items()},
            "ratios": {f"{o} / {p}": ratio(times[o], times[p]) for o in OURS for p in PEERS},
            "index": kind,
            "MB": {"bank": bank.nbytes / 1e6, "index": 0 if held["index"] is bank else held["index"].nbytes / 1e6},
            "built in, ms": built_in,
        }  # fmt: skip
        print(json.dumps(result), flush=True)


def contenders(
    queries: np.ndarray, bank: np.ndarray, index: Any, indexes: dict[str, Any], threads: int
) -> dict[str, Callable[[], Any]]:
    """Each gives the best score (Q,)."""
    from visionad_runtime.search import nearest

    return {
        "numpy": lambda: (queries @ bank.T).max(axis=1),
        "numpy_tiled": lambda: tiled(queries, bank),
        "faiss": lambda: index.search(queries, 1)[0][:, 0],
        **{
            name: lambda rows=rows: 1 - nearest(queries, rows, threads=threads).distance
            for name, rows in indexes.items()
        },
    }


def tiled(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """NumPy without the whole score matrix."""
    best = np.full(len(queries), -np.inf, np.float32)
    for start in range(0, len(bank), TILE):
        np.maximum(best, (queries @ bank[start : start + TILE].T).max(axis=1), out=best)
    return best


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the pairs of a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
