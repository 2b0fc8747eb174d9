"""A batch run: the blocks of a shard that are not finished yet, over worker processes or Ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import active_children, get_context
from typing import Any

import pyarrow as pa

from ..._release import __version__
from ..._threads import available_cpus
from ...bank.names import normalize_class_name
from ...engine.registry import backend_spec
from ...errors import VisionADError
from ...shards import WHOLE, Shard
from ...system import package_version
from ..storage import FileMissingError, Storage, open_storage
from .record import FORMAT, SCHEMA_VERSION, write_record
from .rows import errors_of
from .source import Source, default_block
from .worker import Settings, Worker, part_name, start_process, total, write_in_process

Step = Callable[[], None]
Progress = Callable[[str, int], AbstractContextManager[Step]]


@dataclass(frozen=True)
class Summary:
    """Outcome of a run, or of one of its shards.

    Attributes:
        url: folder of the run.
        digest: of model, bank, settings and source.
        images: number of images of the shard.
        blocks: number of blocks of the shard.
        kept: blocks that were finished before.
        counts: images by verdict of the other blocks; ``error`` for those that could not be read.
    """

    url: str
    digest: str
    images: int
    blocks: int
    kept: int
    counts: dict[str, int]


def run_batch(
    settings: Settings,
    source: Source,
    out: str,
    *,
    shard: Shard = WHOLE,
    workers: int | None = None,
    ray: str | None = None,
    progress: Progress,
) -> Summary:
    """Inspect a source and write its results as Parquet below ``out``.

    A part file holds one block. Finished parts are kept, so a run that was stopped or killed goes on where it was, and shards, or
    two runs at once, never write a row twice. A block is finished if its part file is whole and no row has an error. Of another
    one, the images without a verdict are inspected again.

    Args:
        settings: how to inspect.
        source: what to inspect.
        out: URL of a folder. The run gets a folder ``run=DIGEST`` in it.
        shard: blocks to do.
        workers: processes; ``None`` for one a CPU, or on Ray one a free CPU or GPU of the cluster.
        ray: ``""`` for a Ray cluster of this machine alone, the address of a running one, or ``None`` for no Ray.
        progress: called with a title and a number of blocks; yields the function that counts one.

    Returns:
        What was done.

    Raises:
        VisionADError: As for ``Inspector.open``, a class is unknown, the folder cannot be written or its record is damaged, or a
            worker died.
    """
    first = Worker(settings, out)
    with closing(first):
        if not source.block:
            engine = first.inspector.engine
            slow = backend_spec(engine.name).device == "cpu" and first.inspector.manifest.identity.kind == "vit"
            source = replace(source, block=default_block(len(source), slow=slow))
        record = _record(settings, source, first)
        if settings.digests is None:
            settings = replace(settings, digests=(record["model"], record["bank"]))
        digest = _digest(record)
        url = f"{out.rstrip('/')}/run={digest[:16]}"
        first.storage = storage = open_storage(url)
        write_record(storage, {"run": digest, **record})
        done = set(storage.list(""))
        mine = [number for number in range(source.blocks) if shard.holds(number)]
        left = [number for number in mine if part_name(number) not in done or not _is_finished(storage, source, number)]
        count = min(workers or available_cpus(), max(1, len(left)))
        counts: list[dict[str, int]] = []
        with progress("inspecting", len(left)) as step:
            alone = ray is None and count == 1
            if not alone:
                first.close()  # its memory is needed by the workers
            if alone:
                outcomes: Iterable[dict[str, int]] = (first.write_block(source.read_block(n)) for n in left)
            elif ray is None:
                outcomes = _in_processes(settings, source, left, url, count)
            else:
                from .on_ray import write_on_ray

                outcomes = write_on_ray(settings, source, left, url, ray, workers, backend=record["backend"])
            for one in outcomes if left else ():
                counts.append(one)
                step()
    images = sum(map(source.size_of, mine))
    return Summary(url, digest, images, len(mine), len(mine) - len(left), total(counts))


def _record(settings: Settings, source: Source, worker: Worker) -> dict[str, Any]:
    """Return what a run is: everything that decides its rows, and its number of blocks."""
    inspector = worker.inspector
    assert inspector.bank is not None
    inspector.require_class(settings.class_name)
    unknown = sorted({normalize_class_name(n) for n in source.class_names()} - set(inspector.bank.classes))
    if unknown and settings.class_name is None:
        raise VisionADError(
            f"{source.text}: class {unknown[0]!r} is not enrolled; the bank has {', '.join(inspector.bank.classes)}"
        )
    return {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "model": inspector.digest,
        "bank": inspector.bank.snapshot.digest,
        "bank_version": inspector.bank.manifest.version,
        "settings": {
            **inspector.scoring.fields(),
            "class": settings.class_name,
            "bit_depth": settings.bit_depth,
        },
        "backend": inspector.engine.name,
        "precision": inspector.engine.precision,
        "source": source.text,
        "source_digest": source.digest(),
        "images": len(source),
        "block": source.block,
        "blocks": source.blocks,
        "versions": {"visionad": __version__, "pyarrow": pa.__version__, "onnxruntime": package_version("onnxruntime")},
    }


def _digest(record: dict[str, Any]) -> str:
    """Return the sha256 of what decides the rows of a run. Where the source lay, and versions of libraries, do not."""
    parts = {k: v for k, v in record.items() if k not in ("source", "versions", "bank_version")}
    parts["version"] = record["versions"]["visionad"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _is_finished(storage: Storage, source: Source, number: int) -> bool:
    try:
        return errors_of(storage.read(part_name(number)), source.size_of(number)) == 0
    except FileMissingError:
        return False


def _in_processes(
    settings: Settings, source: Source, left: list[int], url: str, count: int
) -> Iterator[dict[str, int]]:
    """Write blocks in worker processes, a few ahead of the workers, and yield their counts as they end."""
    numbers = iter(left)
    pool = ProcessPoolExecutor(count, get_context("spawn"), start_process, (settings, url))
    try:
        waiting: set[Future[dict[str, int]]] = set()
        while True:
            for number in islice(numbers, 2 * count - len(waiting)):
                waiting.add(pool.submit(write_in_process, source.read_block(number)))
            if not waiting:
                return
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for one in ended:
                yield one.result()
    except BrokenProcessPool:
        raise VisionADError(
            "a worker process died, or could not open model and bank (its messages are above; out of memory?); finished blocks are "
            "kept: run again, with fewer --workers if memory ran out"
        ) from None
    except BaseException:  # such as Ctrl-C: a block that is not finished is done again by the next run
        for child in active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
