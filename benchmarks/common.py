"""Shared by the benchmarks: models with random weights, real images, the environment, and result files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from visionad_runtime import Inspector
    from visionad_runtime.tools.evaluation.datasets.base import Dataset

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BACKBONE, SETS = "deit_tiny_patch16_224", ("mvtec_bottle", "adfi_hazelnut", "magnetic_tile")
SHORT = {"deit_tiny_patch16_224": "deit-tiny", "efficientnet_lite0": "efficientnet-lite0"}
PEERS = ("scikit-learn", "faiss-cpu")


def shared() -> Path:
    """Return the folder of real images and weights: beside the project, or at VISIONAD_SHARED."""
    folder = Path(os.environ.get("VISIONAD_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        raise SystemExit(f"no data at {folder}: set VISIONAD_SHARED to the folder that holds data/ and weights/")
    return folder


def real_sets(folder: Path) -> Iterator[tuple[str, Dataset, str, Inspector]]:
    """Yield each set of real images: name, data set, its one class, and DeiT-Tiny with real weights and nothing enrolled."""
    from visionad_export.exporter import export_model
    from visionad_runtime import Inspector
    from visionad_runtime.tools.evaluation.datasets.registry import open_dataset

    real = shared()
    export_model(BACKBONE, folder / "model", weights=real / "weights" / BACKBONE / "model.safetensors")
    for name in SETS:
        dataset = open_dataset("folder", real / "data" / name)
        (part,) = dataset.classes
        with Inspector.open(folder / "model", folder / name) as inspector:
            yield name, dataset, part, inspector


def random_weights(backbone: str, path: Path) -> Path:
    """Write random weights of a backbone: as fast as the trained ones, which may not be available.

    Two tensors are scaled as training leaves them. LayerScale is 1: at its initial 1e-5 no block would add anything, and fp16 would
    round nothing. Position embeddings are ten times their initial size: otherwise all patches of a plain background have the same
    token but for rounding, and an exact search must compare hundreds of rows. A rendered gear in 4704 rows of a ViT-S then needs
    27 groups per query instead of 1.6; DeiT-Tiny's real weights need 1.0.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    from visionad_ref import REGISTRY

    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = timm.create_model(REGISTRY[backbone].timm_name, pretrained=False, num_classes=0).state_dict()
    trained = {k: torch.ones_like(v) if k.endswith(".gamma") else v for k, v in state.items()}
    save_file(trained | {k: 10 * v for k, v in state.items() if k == "pos_embed"}, path)
    return path


def export_random(backbone: str, out: Path) -> Path:
    """Export a backbone with :func:`random_weights` to a model folder."""
    from visionad_export.exporter import export_model

    export_model(backbone, out, weights=random_weights(backbone, out.with_suffix(".safetensors")))
    return out


class Tokens:
    """Random patch tokens with the structure that matters to a search.

    They have a large common part with outlying dimensions, few directions of variation, quiet background and lively texture. As
    many rows lie near the nearest one as with tokens of DeiT-Tiny on real bottles, hazelnuts and tiles.
    """

    def __init__(self, dim: int, seed: int = 0) -> None:
        self.rng, self.dim = np.random.default_rng(seed), dim
        outlying = np.where(self.rng.random(dim) < 0.02, 4, 1) / dim**0.5
        self.common = (outlying * self.rng.standard_normal(dim)).astype(np.float32)
        self.directions = (outlying * self.rng.standard_normal((6, dim)) * 1.5 / 6**0.5).astype(np.float32)

    def draw(self, rows: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Draw unit rows, float32 (rows, dim)."""
        out = np.empty((rows, self.dim), np.float32) if out is None else out
        for start in range(0, rows, 65536):
            part = out[start : start + 65536]
            lively = self.rng.random((len(part), 1), np.float32)
            self.rng.standard_normal(dtype=np.float32, out=part)
            part *= (0.05 + 0.75 * lively) / np.float32(self.dim**0.5)
            part += (self.rng.standard_normal((len(part), 6), np.float32) * (0.1 + 0.9 * lively)) @ self.directions
            part += self.common
            part /= np.linalg.norm(part, axis=1, keepdims=True)
        return out


def environment() -> dict[str, Any]:
    """Return hardware, versions and commit as in ``visionad bench``, with the versions of the compared libraries."""
    from visionad_runtime import system

    facts = system.environment()
    return {**facts, "versions": facts["versions"] | {p: v for p in PEERS if (v := system.package_version(p))}}


def memory(line: str) -> float:
    """Return ``VmRSS`` (now) or ``VmHWM`` (peak) of this process in MB. ``getrusage`` would include the parent's peak."""
    words = dict(part.split(":\t") for part in Path("/proc/self/status").read_text().splitlines())
    return int(words[line].split()[0]) * 1024 / 1e6


def write(name: str, result: dict[str, Any]) -> Path:
    """Write the result file ``benchmarks/results/NAME.json``."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **result}, indent=1) + "\n")
    return path
