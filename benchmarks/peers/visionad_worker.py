"""VisionAD's runtime as a worker of :mod:`job`; runs in the project's environment. Its options: ``model``, a model folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import job
import numpy as np
from numpy.typing import NDArray
from visionad_runtime import Inspector
from visionad_runtime.bank.store import Bank
from visionad_runtime.images import decode, pixels

CLASS = "part"


class VisionAD:
    """A bank of one class, the class given, all of the model's views."""

    def __init__(self, options: dict[str, Any], threads: int) -> None:
        self._inspector = Inspector.open(options["model"], threads=threads)
        self._banks = tempfile.TemporaryDirectory()
        identity = self._inspector.manifest.identity
        spec = identity.preprocess
        self.facts = {
            "input": [spec.crop, spec.crop],
            "grid": [identity.grid, identity.grid],
            "resize": spec.resize,
            "views": list(self._inspector.views),
            "layers": list(identity.layers),
            "engine": self._inspector.engine.name,
        }

    def learn(self, supports: list[Path]) -> int:
        """See :class:`job.Method`."""
        manifest = self._inspector.manifest
        folder = Path(tempfile.mkdtemp(dir=self._banks.name)) / "bank"
        self._inspector.bank = Bank.open_or_new(folder, manifest.identity, manifest.views)
        self._inspector.enroll_files(CLASS, supports)
        matched = self._inspector.require_class(CLASS).snapshot.classes[CLASS]
        return sum(len(matched.rois[0].rows(view)) for view in self._inspector.views)

    def read(self, path: Path) -> pixels.RGB8:
        """See :class:`job.Method`."""
        return decode.load(path)

    def inspect(self, image: pixels.RGB8) -> tuple[float, NDArray[np.float32]]:
        """See :class:`job.Method`."""
        ((result, _),) = self._inspector.trace_batch([image], CLASS)
        return result.score, result.anomaly_map


if __name__ == "__main__":
    job.work(VisionAD, ("numpy", "onnxruntime", "opencv-python-headless", "pillow"))
