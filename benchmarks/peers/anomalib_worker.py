"""anomalib's AnomalyDINO and PatchCore as workers of :mod:`job`; runs in the peers' own environment.

Its options: ``method`` (``anomalydino`` or ``patchcore``), ``arguments`` of anomalib's class (all else stays at its
defaults), ``image_size`` (None: its default) and, unless its own weights are wanted, ``backbone`` (a timm name), ``weights`` (a
timm-keyed safetensors file), ``mean`` and ``std`` of these weights.

anomalib's code runs as it is: pre-processing as its engine applies it, its training step, its coreset, its model. What is read is
what the model gives before anomalib's post-processor normalises it. The one thing put in its place is the backbone: PatchCore
takes any timm model without weights, which are loaded after; AnomalyDINO always builds the DINOv2 model it is named after, so the
call that builds its feature extractor is given the other name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import job
import numpy as np
import torch
from anomalib.data.utils import read_image
from anomalib.models import AnomalyDINO, Patchcore
from anomalib.models.image.anomaly_dino import torch_model
from numpy.typing import NDArray
from safetensors.torch import load_file
from torchvision.transforms.v2 import Normalize

BARE: dict[str, Any] = {"post_processor": False, "evaluator": False, "visualizer": False}


class Peer:
    """A module of anomalib with a memory bank."""

    def __init__(self, options: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        kind = {"anomalydino": AnomalyDINO, "patchcore": Patchcore}[options["method"]]
        size = options["image_size"]
        before = kind.configure_pre_processor(None if size is None else (size, size))
        backbone = options.get("backbone")
        arguments = {**options["arguments"], **BARE, "pre_processor": before}
        if backbone is None:
            self._module = kind(**arguments)
        else:
            before.transform.transforms[-1] = Normalize(options["mean"], options["std"])
            self._module = _with_backbone(kind, backbone, arguments)
            extractor = self._module.model
            extractor = getattr(extractor, "feature_encoder", None) or extractor.feature_extractor
            _load(extractor.feature_extractor, Path(options["weights"]))
        self._module.eval()
        self._transform = before.transform
        self.facts: dict[str, Any] = {"transform": str(self._transform).split("\n")}

    def learn(self, supports: list[Path]) -> int:
        """See :class:`job.Method`. The draw of the coreset's first row and of its projection is the same each time."""
        torch.manual_seed(0)
        np.random.seed(0)  # scikit-learn, inside anomalib, draws from this one
        model = self._module.model.train()
        with torch.inference_mode():
            for path in supports:
                model(self._transform(self.read(path)))
            self._module.fit()
        model.eval()
        return len(model.memory_bank)

    def read(self, path: Path) -> torch.Tensor:
        """See :class:`job.Method`."""
        return read_image(path, as_tensor=True)[None]

    def inspect(self, image: torch.Tensor) -> tuple[float, NDArray[np.float32]]:
        """See :class:`job.Method`."""
        with torch.inference_mode():
            images = self._transform(image)
            output = self._module.model(images)
        self.facts["input"] = list(images.shape[-2:])
        return output.pred_score.item(), output.anomaly_map[0, 0].numpy()


def _with_backbone(kind: Any, backbone: str, arguments: dict[str, Any]) -> Any:
    """The module around another timm model, weights still random."""
    if kind is Patchcore:
        return kind(backbone=backbone, pre_trained=False, **arguments)
    stock = torch_model.TimmFeatureExtractor

    def other(*, layers: list[str], **settings: Any) -> Any:
        built = stock(**{**settings, "layers": layers, "backbone": backbone, "pre_trained": False})
        last = f"blocks.{len(built.feature_extractor.blocks) - 1}"
        if layers != [last]:  # it takes the depth from the name of its own model
            raise SystemExit(f"AnomalyDINO reads {layers} of its own encoder; the last block of {backbone} is {last}")
        return built

    with mock.patch.object(torch_model, "TimmFeatureExtractor", other):
        return kind(**arguments)


def _load(net: torch.nn.Module, weights: Path) -> None:
    """All of the network's weights must be in the file; the file may hold more (stages that are not run)."""
    if missing := net.load_state_dict(load_file(weights), strict=False).missing_keys:
        raise SystemExit(f"{weights} lacks {len(missing)} tensors of the backbone, first {missing[0]}")


if __name__ == "__main__":
    job.work(Peer, ("anomalib", "torch", "timm", "torchvision", "lightning", "numpy", "pillow", "scikit-learn"))
