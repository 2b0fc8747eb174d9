"""Exact search side by side with NumPy and faiss: `python benchmarks/search.py`.

Nearest bank row of 784 patch tokens, in turn within one process: NumPy's product with the whole bank, NumPy in tiles, faiss
`IndexFlatIP`, `nearest` on the float32 bank, and on the bank as `prepared` for those queries (as an inspector searches it from the
second time on). All with the same number of threads. Banks are drawn at random, or with `--sets` hold the
tokens of four real good parts (DeiT-Tiny with its real weights), searched for those of another picture, the last of the set's.
A ratio is the median over rounds of time over the time of the other in that round. NumPy and faiss each bring an OpenBLAS;
where variables choose its kernel (OPENBLAS_CORETYPE), everything is measured with them and without, and each result says which
kernel ran.
"""

from __future__ import annotations

import argparse
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
OURS, PEERS = ("float32", "prepared"), ("numpy", "numpy_tiled", "faiss")
SETTLE = 0.3
"""Seconds between measurements: a peer's threads go on spinning for a while (OpenBLAS longer than 0.1 s on a slow clock) and would
slow whatever comes next."""
TILE = 8192


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/search.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rows", type=int, nargs="+", default=[1000, 5000, 50_000, 500_000])
    options.add_argument("--dims", type=int, nargs="+", default=[192, 384, 1024])
    options.add_argument("--sets", action="store_true", help="tokens of real pictures too")
    options.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    options.add_argument("--queries", type=int, default=784)
    options.add_argument("--rounds", type=int, default=21, help="most rounds per size")
    options.add_argument("--seconds", type=float, default=10, help="of measuring per size; at least 3 rounds are run")
    options.add_argument("--name", default="search", help="of the result file")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.worker:
        measure(args, **args.worker)
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
            limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
            command = [sys.executable, *sys.argv, "--worker", json.dumps({"threads": threads, "folder": str(folder)})]
            with subprocess.Popen(command, env={**env, **limits}, stdout=subprocess.PIPE, text=True) as worker:
                assert worker.stdout is not None
                for line in worker.stdout:
                    row = json.loads(line)
                    rows.append({"choosers": {k: env[k] for k in CHOOSERS if k in env}, **row})
                    times = " | ".join(f"{row['ms'][m]:.4g}" for m in (*PEERS, *OURS))
                    ratios = " | ".join(f"{r:.2f}" for r in row["ratios"].values())
                    kernels = ", ".join(row["kernels"].values())
                    size = f"{row['tokens']} | {row['rows']} x {row['dim']}"
                    print(f"| {kernels} | {threads} | {size} | {times} | {ratios} |", flush=True)
            if worker.returncode:
                raise SystemExit(worker.returncode)
    worst = {f"{o} / {p}": max(r["ratios"][f"{o} / {p}"] for r in rows) for o in OURS for p in PEERS}
    print("largest ratios:", ", ".join(f"{k} {v:.2f}" for k, v in worst.items()))
    path = common.write(args.name, {"largest ratios": worst, "rows": rows})
    print(f"written to {path.relative_to(common.ROOT)}")


def save_sets(folder: Path) -> None:
    """Banks and queries of the real sets, a file each."""
    for name, dataset, part, inspector in common.real_sets(folder):
        inspector.enroll_files(part, dataset.train(part)[:4])
        (result,) = inspector.inspect_files([dataset.test(part)[-1].path], class_name=part, trace=True)
        patch = np.asarray(result.trace.tokens.patch)
        queries = patch.reshape(-1, *patch.shape[-2:])[0]
        np.savez(folder / f"{name}.npz", bank=inspector.bank.classes[part].rows("original"), queries=queries)


def cases(args: argparse.Namespace, folder: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Where tokens come from, queries, bank."""
    for path in sorted(folder.glob("*.npz")):
        held = np.load(path)
        yield path.stem, held["queries"], held["bank"]
    for dim in args.dims:
        tokens = common.Tokens(dim)
        queries = tokens.draw(args.queries)
        for count in args.rows:
            yield "drawn", queries, tokens.draw(count)


def measure(args: argparse.Namespace, threads: int, folder: str) -> None:
    """All sizes in this process; a line of JSON each."""
    import faiss
    from threadpoolctl import threadpool_info
    from visionad_runtime.search import prepared

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
        held = {"float32": bank, "prepared": prepared(bank, queries)}
        made_in = {"prepared": (time.perf_counter() - start) * 1e3}
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
        kind = "plain" if held["prepared"] is bank else type(held["prepared"]).__name__
        result = {
            "threads": threads, "tokens": tokens, "queries": len(queries), "rows": count, "dim": dim, "rounds": rounds,
            "kernels": kernels, "ms": {name: statistics.median(t) for name, t in times.items()},
            "ratios": {f"{o} / {p}": ratio(times[o], times[p]) for o in OURS for p in PEERS},
            "prepared as": kind,
            "MB": {"bank": bank.nbytes / 1e6, **{f"{n}, besides": 0 if held[n] is bank else held[n].nbytes / 1e6 for n in made_in}},
            "made in, ms": made_in,
        }  # fmt: skip
        print(json.dumps(result), flush=True)


def contenders(
    queries: np.ndarray, bank: np.ndarray, index: Any, held: dict[str, Any], threads: int
) -> dict[str, Callable[[], Any]]:
    """Each gives the best score (Q,)."""
    from visionad_runtime.search import nearest

    return {
        "numpy": lambda: (queries @ bank.T).max(axis=1),
        "numpy_tiled": lambda: tiled(queries, bank),
        "faiss": lambda: index.search(queries, 1)[0][:, 0],
        **{name: lambda one=one: 1 - nearest(queries, one, threads=threads).distance for name, one in held.items()},
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
