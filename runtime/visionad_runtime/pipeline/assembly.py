"""Put the pipeline around an engine; prove one on the GPU against the host's before it may inspect."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bank.memory_bank import ClassBank
from ..engine.base import Engine
from ..errors import ModelError, VisionADError
from ..formats.manifest import ClassEntry, ModelManifest
from ..preprocess import encoding_names, prepare, support_encodings
from ..scoring.spec import ScoringSpec
from .self_test import GOLDEN_TOLERANCE

if TYPE_CHECKING:
    from ..cuda.interface import DeviceEngine

from .base import Pipeline
from .host import HostPipeline

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
    """The chain for an engine: on the GPU where it has one that the engine shares, else on the host. ``keep_alive``: as
    :meth:`Inspector.open <visionad_runtime.inspector.Inspector.open>` has it.

    The one on the GPU must give what the host's gives for the blemished golden image against a bank of the plain one, within the
    self-test's tolerance, on every camera, as enqueued and as recorded. Where it does not, or there is no memory for it, and ONNX
    Runtime is the engine, the host's is taken, with a warning: it gives the same, slower.

    Raises:
        ModelError: it does not, naming the stage. VisionADError: no memory for it.
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
    blocks = encoding_names(host.scoring.views)
    tokens = engine.encode(support_encodings(prepare(golden["image"], identity.preprocess), blocks), class_token=False)
    bank = ClassBank(
        "golden", ClassEntry(file="", sha256="", images=()), blocks, tokens.patch[:, None], tokens.patch[:, :0]
    )
    chain = CudaPipeline(DeviceThread.of(0), make(), identity, host.scoring, keep_alive=keep_alive)
    try:
        wanted = _stages(host, golden["blemished"], bank)
        chain.load_banks([bank])
        worst = 0.0
        for _ in range(2 * MAX_IN_FLIGHT):
            for stage, found in _stages(chain, golden["blemished"], bank).items():
                allowed = 0.0 if stage == "preprocess" else GOLDEN_TOLERANCE[engine.precision]
                apart = float(np.abs(found - wanted[stage]).max())
                if not apart <= allowed:
                    raise ModelError(
                        f"self-test of the device chain failed at {stage}: differs from the host's by {apart:.3g} on the golden "
                        f"image (allowed {allowed:g}); do not inspect with this box, run `visionad doctor`"
                    )
                worst = max(worst, apart)
        chain.load_banks([])
    except BaseException:
        chain.close()
        raise
    taken = {name: f"{nbytes / 2**20:.0f} MiB" for name, nbytes in chain.memory().items()}
    engine.info["chain"] = f"on the GPU, within {worst:.2g} of the host's"
    engine.info["chain memory"] = f"{taken['chain']}, {taken['page_locked']} page-locked on the host; banks are added"
    return chain


def _stages(chain: Pipeline, rgb: NDArray[np.uint8], bank: ClassBank) -> dict[str, F32]:
    """What a chain makes of an image, in the order of the work."""
    (found,) = chain.run([rgb], lambda _: [bank], class_token=True, trace=True)
    assert found.images is not None and found.patch is not None and found.cls is not None
    return {
        "preprocess": found.images,
        "patch_tokens": found.patch,
        "class_token": found.cls,
        "search": np.stack(list(found.distances.values())),
        "map": found.anomaly_map,
        "score": np.array(found.score, np.float32),
        "cutoff": np.array(found.cutoff, np.float32),
    }
