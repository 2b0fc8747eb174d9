"""Time and memory against bank size and number of classes: `python benchmarks/scale.py [--quick]`.

Tokens are synthetic and there is no backbone; the rest is the runtime's code. Three sweeps:

* rows: search one image (784 tokens) in a view's bank of 1 k to 4 M rows in memory, plain and indexed;
* images: a class of 1 to 64 images of 784 tokens on disk: enroll one more, open the bank;
* classes: a bank of 1 to 1000 classes: enroll one more, open the bank, route an image, store a threshold. The classes have few
tokens
  (``--grid``), so that the cost per class shows, not the cost per byte.

Each bank is opened or searched in a fresh process, whose peak memory is reported. Result: JSON, a table and plots.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
from visionad_runtime.bank.folder import files_of
from visionad_runtime.bank.memory_bank import SupportTokens
from visionad_runtime.bank.routing import THRESHOLDS, Router
from visionad_runtime.bank.store import Bank
from visionad_runtime.bank.supports import NewSupport
from visionad_runtime.formats.manifest import Calibration, FeatureIdentity, PreprocessSpec, SupportImage
from visionad_runtime.preprocess import encoding_names
from visionad_runtime.search import build_index, nearest

DIM, PATCHES = 384, 784
COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


def main() -> None:
    """Measure, print tables, write ``benchmarks/results/scale.json`` and ``scale.png``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="small sizes, some seconds")
    options.add_argument("--rows", type=int, nargs="+", help="bank rows (default 1 k to 4 M, quick to 64 k)")
    options.add_argument("--images", type=int, nargs="+", help="images of a class (default 1 to 64, quick to 4)")
    options.add_argument("--classes", type=int, nargs="+", help="classes of a bank (default 1 to 1000, quick to 30)")
    options.add_argument("--shots", type=int, default=1, help="images of each class in the sweep over classes")
    options.add_argument("--grid", type=int, default=7, help="tokens per side of an image in the sweep over classes")
    options.add_argument("--threads", type=int, default=None, help="threads of the search (default: all cores)")
    options.add_argument("--folder", type=Path, help="folder of the banks (default: a temporary one)")
    options.add_argument("--name", default="scale", help="name of the result files")
    options.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.worker:
        print(json.dumps(WORKERS[args.worker.pop("job")](**args.worker)))
        return
    rows = args.rows or [4**i * 1000 for i in range(4 if args.quick else 7)]
    images = args.images or [1, 2, 4] + [8, 16, 32, 64] * (not args.quick)
    classes = args.classes or [1, 3, 10, 30] + [100, 300, 1000] * (not args.quick)
    check_memory(max(rows))
    result: dict[str, Any] = {"dim": DIM, "queries": PATCHES, "grid": args.grid, "shots": args.shots}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result["rows"] = [worker("search", rows=n, threads=args.threads) for n in sorted(rows)]
        table(result["rows"])
        result["pictures"] = enroll(Path(folder) / "pictures", images, 28, ("original",), one_class=True)
        table(result["pictures"])
        sizes = [n * args.shots for n in classes]
        views = ("original", "flip", "clamp")
        result["classes"] = enroll(Path(folder) / "classes", sizes, args.grid, views, one_class=False, shots=args.shots)
        table(result["classes"])
    path = common.write(args.name, result)
    image = plot(path.with_suffix(".png"), json.loads(path.read_text()))
    print(f"written to {path.relative_to(common.ROOT)} and {image.relative_to(common.ROOT)}")


def check_memory(rows: int) -> None:
    """Check that the largest bank fits in memory.

    Raises:
        SystemExit: it does not.
    """
    needed = rows * DIM * 5.4 / 1e9 + 0.5  # float32, index beside it, process
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    free = next(int(words[1]) * 1024 / 1e9 for words in lines if words[0] == "MemAvailable:")
    if needed > free:
        raise SystemExit(f"{rows} rows of {DIM} need {needed:.1f} GB, {free:.1f} GB are free; give smaller --rows")


def worker(job: str, **options: Any) -> dict[str, Any]:
    """Run one of :data:`WORKERS` in a fresh process."""
    command = [sys.executable, __file__, "--worker", json.dumps({"job": job, **options})]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def timed(call: Callable[[], Any], seconds: float = 1.0) -> float:
    """Return the best time of several calls in ms."""
    times: list[float] = []
    while len(times) < 2 or (sum(times) < seconds and len(times) < 20):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def search(rows: int, threads: int | None) -> dict[str, Any]:
    """Search one image in one bank in memory."""
    before = common.memory("VmRSS")
    tokens = common.Tokens(DIM)
    queries, bank = tokens.draw(PATCHES), tokens.draw(rows)
    plain = timed(lambda: nearest(queries, bank, threads=threads))
    used = common.memory("VmHWM") - before
    start = time.perf_counter()
    index = build_index(bank, queries, threads)
    built = time.perf_counter() - start
    indexed = timed(lambda: nearest(queries, index, threads=threads))
    same = np.array_equal(nearest(queries, bank).row, nearest(queries, index).row)
    assert same, "the index finds other rows than a search over the bank"
    return {
        "rows": rows, "search, ms": plain, "search with index, ms": indexed, "index built in, ms": built * 1e3,
        "bank, MB": bank.nbytes / 1e6, "index, MB": 0 if index is bank else index.nbytes / 1e6,
        "memory of bank and search, MB": used,
    }  # fmt: skip


def opened(folder: str) -> dict[str, Any]:
    """Open a bank, route an image."""
    before = common.memory("VmRSS")
    start = time.perf_counter()
    bank = Bank.open(Path(folder))
    seconds = time.perf_counter() - start
    held = common.memory("VmHWM") - before
    token = next(iter(bank.classes.values())).tokens("original")[0]
    router = Router(bank.classes, np.roll(token, 1), THRESHOLDS["fused"])
    return {
        "open, ms": seconds * 1e3,
        "memory of opening, MB": held,
        "route, ms": timed(lambda: router.route(token), 0.3),
    }


WORKERS: dict[str, Callable[..., dict[str, Any]]] = {"search": search, "opened": opened}


def enroll(
    folder: Path, sizes: list[int], grid: int, views: tuple[str, ...], one_class: bool, shots: int = 1
) -> list[dict[str, Any]]:
    """Enroll image after image, into one class or ``shots`` per class. Measure the last one at each size."""
    spec = PreprocessSpec(resize=14 * grid, crop=14 * grid, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    identity = FeatureIdentity(
        backbone="synthetic", weights_sha256="0" * 64, kind="vit", layers=(2,), patch=14, grid=grid, dim=DIM,
        class_token="fused", class_token_dim=DIM, pos_embed="none", preprocess=spec,
    )  # fmt: skip
    bank, tokens, blocks, found = (
        Bank.open_or_new(folder, identity, views),
        common.Tokens(DIM),
        encoding_names(views),
        [],
    )
    for number in range(max(sizes)):
        name = "part" if one_class else f"part {number // shots:04d}"
        features = tokens.draw(len(blocks) * grid**2).reshape(len(blocks), 1, grid**2, DIM)
        image = SupportImage(sha256=f"{number:064x}", source=f"{number}.png")
        written = disk_bytes()
        start = time.perf_counter()
        bank.add(name, [NewSupport(image, SupportTokens((features,), tokens.draw(len(blocks)).reshape(-1, DIM)))])
        added, written = time.perf_counter() - start, disk_bytes() - written
        if number + 1 not in sizes:
            continue
        start = time.perf_counter()
        limits = {"threshold": 0.5, "map_scale": (0.0, 1.0), "calibration": record()}
        bank.update(name, "calibrate", lambda held, limits=limits: held.entry.model_copy(update=limits))
        calibrated = time.perf_counter() - start
        files = [p for p in folder.rglob("*") if p.is_file()]
        in_force = sum(path.stat().st_size for path in files_of(folder, bank.manifest))
        found.append({
            "pictures": number + 1, "classes": len(bank.classes), "rows a class and view": len(bank.classes[name].rois[0].rows(views[0])),
            "enroll one more, ms": added * 1e3, "written by it, MB": written / 1e6, "calibrate, ms": calibrated * 1e3,
            "bank, MB": in_force / 1e6, "on disk with undo, MB": sum(p.stat().st_size for p in files) / 1e6,
            "manifest, kB": (folder / "manifest.json").stat().st_size / 1e3, **worker("opened", folder=str(folder)),
        })  # fmt: skip
    return found


def record() -> Calibration:
    """Return a calibration of 19 good parts."""
    return Calibration(
        method="held-out", max_false_reject=0.05, confidence=0.95, guaranteed_false_reject=0.05, bound_false_reject=0.15,
        normals=19, scores=(0.5,) * 19, sources=("good.png",) * 19, views=("original",), created="2026-01-01",
    )  # fmt: skip


def disk_bytes() -> int:
    """Return the bytes that this process has written."""
    words = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(words["wchar"])


def table(rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    print(flush=True)


def plot(path: Path, result: dict[str, Any]) -> Path:
    """Draw four log-log panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = (
        ("rows", "rows", f"bank rows (dim {DIM})", "ms an image and view", "Search against bank size",
         ("search, ms", "search with index, ms", "index built in, ms")),
        ("rows", "rows", f"bank rows (dim {DIM})", "MB", "Memory against bank size",
         ("bank, MB", "index, MB", "memory of bank and search, MB")),
        ("classes", "classes", "classes in the bank", "ms", "Time against number of classes",
         ("open, ms", "enroll one more, ms", "calibrate, ms", "route, ms")),
        ("classes", "classes", "classes in the bank", "MB", "Disk and memory against number of classes",
         ("bank, MB", "on disk with undo, MB", "memory of opening, MB", "written by it, MB")),
    )  # fmt: skip
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.2))
    for axis, (sweep, along, x_label, y_label, title, lines) in zip(axes.flat, panels, strict=True):
        for name, color in zip(lines, COLORS, strict=False):
            x, y = ([row[key] for row in result[sweep]] for key in (along, name))
            label = (
                "written by one enrollment"
                if name.startswith("written")
                else name.removesuffix(", ms").removesuffix(", MB")
            )
            axis.loglog(x, [max(v, 1e-3) for v in y], "o-", color=color, label=label, markersize=4)
        axis.set(xlabel=x_label, ylabel=y_label, title=title)
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    env = result["environment"]
    figure.text(
        0.01, 0.008,
        f"{env['cpu']}, {env['cores']} cores, {env['date']}, commit {env['commit']}. {PATCHES} tokens an image; classes of "
        f"{result['shots']} image(s) with {result['grid']}² tokens in 14 encodings. benchmarks/scale.py",
        fontsize=7,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.025, 1, 1))
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    main()
