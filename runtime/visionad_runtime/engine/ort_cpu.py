"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..artefacts import ONNX_FILE, ModelManifest
from ..errors import ModelError
from . import Tokens

PROVIDER = "CPUExecutionProvider"


class OrtCpuEngine:
    """Runs each row of a call alone: measured as fast as or faster than batches on CPUs (smaller working set), and it makes
    every result independent of batch size and order by construction."""

    name = "onnxruntime-cpu"

    def __init__(self, folder: Path, manifest: ModelManifest, threads: int | None) -> None:
        if manifest.precision == "bf16":  # its products are not implemented there
            raise ModelError(
                f"{folder} is in bf16, which ONNX Runtime {ort.__version__} cannot run on a CPU; open it on a GPU, or export "
                "the model with --precision fp32 for this box (its banks fit both)"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        # Threads that go on spinning after a run take the cores from the search that follows.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(str(folder / ONNX_FILE), options, providers=[PROVIDER])
        except Exception as exc:  # ONNX Runtime's own exception types share no base
            raise ModelError(
                f"{folder / ONNX_FILE} cannot be loaded by ONNX Runtime {ort.__version__}: {exc}"
            ) from None
        if self._session.get_providers() != [PROVIDER]:
            raise ModelError(f"wanted {PROVIDER}, ONNX Runtime chose {self._session.get_providers()}")
        identity = manifest.identity
        side = identity.preprocess.crop
        wanted_in = {"images": [3, side, side]}
        wanted_out = {"patch_tokens": [identity.grid**2, identity.dim], "class_token": [identity.class_token_dim]}
        found_in = {i.name: i.shape[1:] for i in self._session.get_inputs()}
        found_out = {o.name: o.shape[1:] for o in self._session.get_outputs()}
        if found_in != wanted_in or found_out != wanted_out:
            raise ModelError(
                f"{folder / ONNX_FILE}: wanted inputs {wanted_in} and outputs {wanted_out}, found {found_in} and {found_out}; "
                "export the model again"
            )
        self._patch_only = ort.RunOptions()
        self._patch_only.only_execute_path_to_fetches = (
            True  # a known class skips the blocks behind a final class token
        )
        self.details = {"onnxruntime": ort.__version__, "provider": PROVIDER, "threads": str(threads or "all cores")}

    def encode(self, images: NDArray[np.float32], class_token: bool = True) -> Tokens:
        """See :class:`~visionad_runtime.engine.Engine`."""
        names = ["patch_tokens", "class_token"] if class_token else ["patch_tokens"]
        options = None if class_token else self._patch_only
        rows = [
            self._session.run(names, {"images": np.ascontiguousarray(images[i : i + 1])}, options)
            for i in range(len(images))
        ]
        patch = np.concatenate([r[0] for r in rows])
        return Tokens(patch, np.concatenate([r[1] for r in rows]) if class_token else None)
