"""PyTorch baselines of ``visionad bench``: the reference's backbone, eager or compiled, and the whole reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from visionad_runtime.bank.memory_bank import ClassBank as StoredClass
from visionad_runtime.formats.manifest import ModelManifest
from visionad_runtime.scoring.spec import ScoringSpec
from visionad_runtime.tools.benchmark.measure import TorchBaseline

from ..parity import load_reference, stored_bank


def torch_baselines(
    manifest: ModelManifest,
    stored: StoredClass,
    scoring: ScoringSpec,
    weights: Path | None,
    threads: int | None,
    kinds: Sequence[str],
) -> dict[str, TorchBaseline]:
    """Return the baselines by kind.

    ``eager`` and ``compiled`` encode all views of a call at once, the whole network in the model's precision, on the GPU if there
    is one, from arrays to arrays as an engine does. ``method`` is the reference from file to score, on the CPU in fp32.

    Args:
        manifest: The model that the backends run.
        stored: The class that ``method`` compares with.
        scoring: Views, and how distances become scores.
        weights: Weights file. Default: the path recorded at export.
        threads: CPU threads. Default: all cores.
        kinds: Some of ``eager``, ``compiled``, ``method``.

    Raises:
        VisionADError: The weights are missing, or not the model's.
    """
    reference = load_reference(manifest, scoring, weights, threads)
    baselines: dict[str, TorchBaseline] = {}
    if "method" in kinds:
        rows = stored_bank(reference, stored)
        baselines["method"] = TorchBaseline("cpu", None, lambda path: reference.inspect(path, rows))
    if {"eager", "compiled"} & set(kinds):
        where = "cuda" if torch.cuda.is_available() else "cpu"
        kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(manifest.precision, torch.float32)
        # a copy: the whole method stays on the CPU
        net: Any = load_reference(manifest, scoring, weights, threads).backbone.to(where, kind)
        tf32 = manifest.precision == "tf32"
        if "eager" in kinds:
            baselines["eager"] = TorchBaseline(where, _encode(net, where, kind, tf32), None)
        if "compiled" in kinds:
            baselines["compiled"] = TorchBaseline(where, _encode(torch.compile(net), where, kind, tf32), None)
    return baselines


def _encode(net: Any, where: str, kind: torch.dtype, tf32: bool) -> Callable[[NDArray[np.float32]], object]:
    def encode(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        with torch.inference_mode():
            return [out.float().cpu().numpy() for out in net(torch.from_numpy(images).to(where).to(kind))]

    return encode
