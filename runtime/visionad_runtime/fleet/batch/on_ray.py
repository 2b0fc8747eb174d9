"""Blocks of a batch run on Ray Data. The part files are the truth: a block that is finished is never given out again.

Ray's own checkpoint is not used. It keeps all ids in memory and filters only what is read; here a unit of work is a block, and a
finished block is a file. An actor reads, decodes and inspects, because paths are small and pixels are not. With a GPU an actor
gets CPUs for decoding beside it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...engine.registry import backend_spec
from ...errors import VisionADError
from .worker import Settings, Worker

if TYPE_CHECKING:
    from .source import Source

LOCAL = "local"
"""Address of a cluster of its own. Without an address Ray joins whatever cluster it finds."""
GPU_CPUS = 8
"""CPUs for decoding beside a GPU."""
FIELDS = ("number", "first", "images", "classes")


def write_on_ray(
    settings: Settings,
    source: Source,
    blocks: list[int],
    url: str,
    address: str,
    workers: int | None,
    *,
    backend: str,
) -> Iterator[dict[str, int]]:
    """Write blocks by actors of a Ray cluster.

    Args:
        settings: how to inspect; paths of model and bank must be valid on each node.
        source: the images.
        blocks: numbers of the blocks to write.
        url: folder of the run, which each node can write.
        address: of a running cluster; empty for one of this machine alone.
        workers: number of actors; ``None`` for as many as there are CPUs, less one for Ray's own tasks, or GPUs.
        backend: name of the backend that the run uses.

    Yields:
        Counts by verdict of each block.

    Raises:
        VisionADError: Ray is not installed, the cluster cannot be reached or has ended, or a worker failed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # this project sends nothing
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    try:
        import ray
        import ray.data
        import ray.exceptions
    except ModuleNotFoundError as exc:
        raise VisionADError(f"--on ray takes {exc.name}: pip install 'visionad[ray]'") from None
    # Without an address of its own, Ray asks the system for the route to a public server.
    context: dict[str, Any] = {} if address else {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(address=address or LOCAL, log_to_driver=False, logging_level="ERROR", **context)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as exc:
        raise VisionADError(
            f"Ray cluster {address or LOCAL} cannot be used: {' '.join(str(exc).split())[:300]}"
        ) from None
    try:
        on_gpu = backend_spec(backend).device != "cpu"
        resources = ray.cluster_resources()
        free = int(resources.get("GPU" if on_gpu else "CPU", 0)) - (0 if on_gpu else 1)
        actors = max(1, min(workers or free, len(blocks)))
        fixed = replace(settings, backend=backend, threads=GPU_CPUS if on_gpu else 1)
        data = ray.data.DataContext.get_current()
        data.enable_progress_bars = False
        # One row a block: Ray gives each to the next free actor, and to another one if that dies.
        items = [dict(zip(FIELDS, source.read_block(number), strict=True)) for number in blocks]
        frames = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _Actor,
            fn_constructor_args=(fixed, url),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=GPU_CPUS if on_gpu else 1,
            num_gpus=1 if on_gpu else 0,
        )
        try:
            for row in frames.iter_rows():
                yield {name: count for name, count in zip(row["names"], row["counts"], strict=True) if count}
        except (ray.exceptions.RayError, ConnectionError) as exc:
            reason = " ".join(str(exc).split())
            raise VisionADError(f"the Ray run ended: {reason[-300:]}; finished blocks are kept: run again") from None
    finally:
        ray.shutdown()


class _Actor:
    """A worker as Ray Data calls it."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._worker = Worker(settings, url)

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        from .source import Block

        images = tuple(map(str, row["images"]))
        classes = tuple(None if name is None else str(name) for name in row["classes"])
        counts = self._worker.write_block(Block(int(row["number"]), int(row["first"]), images, classes))
        return {"number": int(row["number"]), "names": list(counts), "counts": list(counts.values())}
