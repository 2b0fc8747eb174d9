"""Choose the pipeline of an engine. A GPU pipeline must match the host's results before it may inspect."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bank.memory_bank import MemoryBank
from ..engine.base import Engine
from ..errors import ModelError, VisionADError
from ..formats.manifest import ModelManifest
from ..formats.roi import WHOLE_IMAGE
from ..preprocess import encoding_names, prepare, support_encodings
from ..scoring.spec import ScoringSpec
from .base import Pipeline
from .host import HostPipeline
from .self_test import GOLDEN_TOLERANCE

if TYPE_CHECKING:
    from ..cuda.interface import DeviceEngine

log = logging.getLogger("visionad")

F32 = NDArray[np.float32]


def open_pipeline(
    engine: Engine,
    manifest: ModelManifest,
    scoring: ScoringSpec,
    golden: Mapping[str, NDArray[Any]],
    threads: int | None = None,
    keep_alive: float | None = None,
) -> Pipeline:
    """Return the pipeline for an engine: on the GPU if the engine can work in place there, else on the host.

    The GPU pipeline runs the golden image with the defect against a bank of the plain one. It must match the host's results within
    the self-test's tolerance, in every slot, as enqueued and as recorded. If it does not, or the GPU is out of memory, and the
    engine does not require it (ONNX Runtime), the host pipeline is returned, with a warning. It gives the same results, slower.

    Args:
        engine: The engine.
        manifest: The model's manifest.
        scoring: Views, and how distances become scores.
        golden: The model's golden tensors.
        threads: CPU threads. Default: all cores.
        keep_alive: Idle seconds after which the engine runs its last batch again, to keep GPU clocks up. ``None``: never.

    Raises:
        ModelError: A required GPU pipeline differs from the host's. The message names the stage.
        VisionADError: The GPU is out of memory for a required GPU pipeline.
    """
    host = HostPipeline(engine, manifest.identity, scoring, threads=threads)
    if engine.device_engine is None:
        return host
    try:
        return _open_on_device(engine, engine.device_engine, manifest, golden, host, keep_alive)
    except VisionADError as exc:
        if engine.requires_device_pipeline:
            raise
        log.warning("backend %s: preprocessing, search and map stay on the CPU: %s", engine.name, exc)
        engine.info["chain"] = f"on the host: {exc}"
        return host


def _open_on_device(
    engine: Engine,
    make: Callable[[], DeviceEngine],
    manifest: ModelManifest,
    golden: Mapping[str, NDArray[Any]],
    host: HostPipeline,
    keep_alive: float | None,
) -> Pipeline:
    from ..cuda.thread import DeviceThread
    from .cuda.pipeline import MAX_IN_FLIGHT, CudaPipeline

    identity = manifest.identity
    encodings = encoding_names(host.scoring.views)
    tokens = engine.encode(
        support_encodings(prepare(golden["image"], identity.preprocess), encodings), class_token=False
    )
    bank = MemoryBank("golden", WHOLE_IMAGE, 1, encodings, tokens.patch[:, None])
    pipeline = CudaPipeline(DeviceThread.of(0), make(), identity, host.scoring, keep_alive=keep_alive)
    try:
        expected = _stages(host, golden["blemished"], bank)
        pipeline.load_banks([bank])
        max_difference = 0.0
        for _ in range(2 * MAX_IN_FLIGHT):  # each slot twice: as enqueued, and as recorded
            for stage, got in _stages(pipeline, golden["blemished"], bank).items():
                allowed = 0.0 if stage == "preprocess" else GOLDEN_TOLERANCE[engine.precision]
                difference = float(np.abs(got - expected[stage]).max())
                if not difference <= allowed:
                    raise ModelError(
                        f"self-test of the GPU pipeline failed at {stage}: expected the host's values on the golden image within "
                        f"{allowed:g}, got a difference of {difference:.3g}; do not inspect with this box, run `visionad doctor`"
                    )
                max_difference = max(max_difference, difference)
        pipeline.load_banks([])
    except BaseException:
        pipeline.close()
        raise
    memory = {name: f"{nbytes / 2**20:.0f} MiB" for name, nbytes in pipeline.memory().items()}
    engine.info["chain"] = f"on the GPU, within {max_difference:.2g} of the host's"
    engine.info["chain memory"] = f"{memory['chain']}, {memory['page_locked']} page-locked on the host; banks are added"
    return pipeline


def _stages(pipeline: Pipeline, rgb: NDArray[np.uint8], bank: MemoryBank) -> dict[str, F32]:
    """Return the intermediate results of a pipeline for an image, in the order of computation."""
    (output,) = pipeline.run([rgb], lambda _: [bank], class_token=True, trace=True)
    assert output.images is not None and output.patch is not None and output.cls is not None
    return {
        "preprocess": output.images,
        "patch_tokens": output.patch,
        "class_token": output.cls,
        "search": np.stack(list(output.distances.values())),
        "map": output.anomaly_map,
        "score": np.array(output.score, np.float32),
        "cutoff": np.array(output.cutoff, np.float32),
    }
