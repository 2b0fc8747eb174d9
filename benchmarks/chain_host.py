"""What the chain on a GPU costs on the host: `python benchmarks/chain_host.py` (no GPU needed).

pycuda and the runtime's own code run on the tests' pretended driver, whose kernels take no time, with an engine that does
nothing. What is left is what the host adds to every image: handing over to the GPU's thread, page-locked copies (and the
driver's, which a GPU does by itself), enqueueing, waking up, results. ``known``: the class is given; ``again``: routed, of the
same class as the images before; ``other``: routed, each of another class than the one before.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray
from visionad_runtime import preprocess
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.formats.manifest import FeatureIdentity, PreprocessSpec, ViewName
from visionad_runtime.pipeline.cuda.pipeline import MAX_IN_FLIGHT, CudaPipeline
from visionad_runtime.scoring.spec import PAPER
from visionad_runtime.tools.benchmark.measure import summarise

VIEWS: tuple[ViewName, ...] = ("original", "flip", "clamp")
MANY = 4 * MAX_IN_FLIGHT
"""Threads that inspect, more than are served at once: they wait for their turn."""
SIZES = ((64, 64), (480, 640), (1024, 1024), (1080, 1920), (2048, 2448))
IDENTITY = FeatureIdentity(
    backbone="none", weights_sha256="0" * 64, kind="vit", layers=(0,), patch=14, grid=28, dim=1024, class_token="fused",
    class_token_dim=1024, pos_embed="none",
    preprocess=PreprocessSpec(resize=448, crop=392, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
)  # fmt: skip


class NoEngine:
    """Takes no time."""

    max_rows, capturable = len(VIEWS), True

    def enqueue(self, *_: object) -> None:
        """Nothing."""


@dataclass(frozen=True, eq=False)
class Class:
    """As much of a class's bank as the chain reads."""

    name: str
    features: NDArray[np.float32]
    blocks: tuple[str, ...] = preprocess.encoding_names(VIEWS)


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/chain_host.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--calls", type=int, default=2000, help="per figure")
    options.add_argument("--name", default="chain_host", help="of the result file")
    args = options.parse_args()
    sys.path.insert(0, str(common.ROOT))
    from tests.fakes import pretend_driver

    if why := pretend_driver.install():
        raise SystemExit(f"{why}; this needs pycuda on the pretended driver")
    driver = pretend_driver.set_up().driver
    driver.pretend_idle(1)
    owner = DeviceThread.of(0)
    rng, shape = np.random.default_rng(0), (len(Class("", np.empty(0)).blocks), 1, IDENTITY.grid**2, IDENTITY.dim)
    banks: list[Any] = [Class(name, rng.standard_normal(shape, np.float32)) for name in ("one", "two")]
    chain = CudaPipeline(owner, NoEngine(), IDENTITY, PAPER)
    chain.load_banks(banks)
    rows = []
    print(f"{'image':>12} {'class':>7} {'cameras':>7} {'p50, ms':>8} {'p99, ms':>8} {'images/s':>10}")
    for (height, width), (how, known, order) in itertools.product(
        SIZES, (("known", True, banks[:1]), ("again", False, banks[:1]), ("other", False, banks))
    ):
        for cameras in (1, MAX_IN_FLIGHT, MANY) if how == "known" else (1,):
            row = measure(chain, np.zeros((height, width, 3), np.uint8), known, order, cameras, args.calls)
            rows.append({"height": height, "width": width, "class": how, "cameras": cameras, **row})
            size = f"{width} x {height}"
            print(
                f"{size:>12} {how:>7} {cameras:>7} {row['p50']:>8.3f} {row['p99']:>8.3f} {row['pictures_per_s']:>10.0f}"
            )
    chain.close()
    owner.close()
    path = common.write(args.name, {"views": len(VIEWS), "rows": rows})
    print(f"written to {path.relative_to(common.ROOT)}")


def measure(
    chain: CudaPipeline, rgb: NDArray[np.uint8], known: bool, order: Sequence[Any], cameras: int, calls: int
) -> dict[str, Any]:
    """Milliseconds an image, of cameras that each inspect ``calls`` images."""
    spans: list[list[float]] = [[] for _ in range(cameras)]
    classes = itertools.cycle(order)

    def choose(_: object) -> list[Any]:
        return [next(classes)]

    def camera(times: list[float]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(calls):
                start = time.perf_counter()
                chain.run([rgb], choose, class_token=not known)
                times.append((time.perf_counter() - start) * 1e3)

        return work

    for _ in range(20):
        chain.run([rgb], choose, class_token=not known)
    threads = [threading.Thread(target=camera(times)) for times in spans]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begin
    every = [ms for times in spans for ms in times]
    return {**summarise(every), "pictures_per_s": len(every) / took}


if __name__ == "__main__":
    main()
