"""Interface of what an evaluation measures, and the runtime as such a predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ...bank.names import check_class_name
from ...bank.store import NO_LIMITS, Bank
from ...errors import ImageError
from ...formats.manifest import Calibration, ModelManifest
from ...formats.roi import Roi, make_spec
from ...images import decode
from ...inspector import Inspector
from ...result import Verdict
from ...scoring.areas import assembled_map
from ...scoring.regions import Geometry
from ...scoring.spec import ScoringSpec
from ...teaching.calibrate import calibrate_class

F32 = NDArray[np.float32]
Step = Callable[[], None]


class Prediction(NamedTuple):
    """One inspected image.

    Attributes:
        path: image file.
        score: score of the image.
        anomaly_map: float32 (256, 256).
        class_name: class that it was compared with; ``None`` for an image of no known class. ``score`` and ``anomaly_map`` are
            then those of the nearest class.
        verdict: ``ok`` or ``anomalous``; ``unknown`` without a class, ``review`` without a threshold.
    """

    path: Path
    score: float
    anomaly_map: F32
    class_name: str | None
    verdict: Verdict


class Predictor(Protocol):
    """Enrolls classes and inspects images. The images to enroll are readable and differ from each other.

    Attributes:
        name: name in the results.
        manifest: the model.
        scoring: how it scores.
    """

    name: str
    manifest: ModelManifest
    scoring: ScoringSpec

    def clear(self, folder: Path) -> None:
        """Forget all classes. ``folder`` is free for a new bank."""

    def enroll(self, class_name: str, paths: Sequence[Path], step: Step) -> None:
        """Enroll a class. ``step`` counts an image."""

    def calibrate(self, class_name: str, normals: Sequence[Path], rate: float, step: Step) -> dict[str, Any]:
        """Compute the class's threshold from good images.

        Args:
            class_name: enrolled class.
            normals: good images, no supports.
            rate: target false-reject rate.
            step: counts an image.

        Returns:
            The calibration for :meth:`recall`, JSON types.
        """

    def recall(self, class_name: str, calibration: Mapping[str, Any]) -> None:
        """Set the class's threshold that an earlier :meth:`calibrate` computed."""

    def inspect(self, paths: Iterable[Path], class_name: str | None) -> Iterator[Prediction | ImageError]:
        """Inspect images in order. ``class_name=None`` routes each of them."""


class RuntimePredictor:
    """The runtime: an :class:`~visionad_runtime.inspector.Inspector` with a bank as ``bank add`` writes it."""

    def __init__(
        self, inspector: Inspector, *, batch: int = 1, bit_depth: int | None = None, rois: Sequence[Roi] = ()
    ) -> None:
        """Use an inspector.

        Args:
            inspector: opened with the model.
            batch: images per engine call.
            bit_depth: bits that the camera fills in files with 16 bits per channel.
            rois: what is inspected of each class; none for whole images. Maps are then those of
                :func:`~visionad_runtime.scoring.areas.assembled_map`: one map of the whole image in the protocol's geometry, 0
                outside of ROIs, so that pixel metrics count a missed defect outside of them.
        """
        self._inspector, self._rois = inspector, tuple(rois)
        engine, own = inspector.engine, inspector.manifest.precision
        # The name is part of the key of finished units, so those of another precision are not resumed.
        self.name = engine.name if engine.precision == own else f"{engine.name} in {engine.precision}"
        self.manifest = inspector.manifest
        self.scoring = inspector.scoring
        self._batch, self._bit_depth = batch, bit_depth

    def clear(self, folder: Path) -> None:
        """See :class:`Predictor`. The engine stays open."""
        manifest = self.manifest
        self._inspector.bank = Bank.open_or_new(folder, manifest.identity, manifest.views)

    def enroll(self, class_name: str, paths: Sequence[Path], step: Step) -> None:
        """See :class:`Predictor`."""
        roi = None
        if self._rois:
            height, width = decode.load(paths[0], self._bit_depth).shape[:2]
            roi = make_spec(self._rois, (width, height))
        self._inspector.enroll_files(
            check_class_name(class_name), paths, bit_depth=self._bit_depth, keep_images=False, calibrate=False, roi=roi,
            step=step,
        )  # fmt: skip

    def calibrate(self, class_name: str, normals: Sequence[Path], rate: float, step: Step) -> dict[str, Any]:
        """See :class:`Predictor`."""
        name = check_class_name(class_name)
        result = calibrate_class(self._inspector, name, normals, rate, self._bit_depth, step, review_rate=0.0)
        scale = self._inspector.require_class(name).classes[name].entry.map_scale
        return {
            "threshold": result.threshold.value,
            "map_scale": scale,
            "record": result.record.model_dump(mode="json"),
        }

    def recall(self, class_name: str, calibration: Mapping[str, Any]) -> None:
        """See :class:`Predictor`."""
        name = check_class_name(class_name)
        low, high = calibration["map_scale"]
        record = Calibration.model_validate(calibration["record"])
        limits = {
            **NO_LIMITS, "threshold": calibration["threshold"], "map_scale": (low, high), "calibration": record,
        }  # fmt: skip
        self._inspector.require_class(name).update(
            name, f"calibrate {name}", lambda bank: bank.entry.model_copy(update=limits)
        )

    def inspect(self, paths: Iterable[Path], class_name: str | None) -> Iterator[Prediction | ImageError]:
        """See :class:`Predictor`."""
        name = None if class_name is None else check_class_name(class_name)
        for file in self._inspector.inspect_files(paths, class_name=name, batch=self._batch, bit_depth=self._bit_depth):
            if file.result is None:
                assert file.error is not None
                yield file.error
            else:
                result = file.result
                anomaly_map = result.anomaly_map
                if self._rois and file.rgb is not None:
                    height, width = file.rgb.shape[:2]
                    whole = Geometry.of(width, height, self.manifest.identity.preprocess)
                    anomaly_map = assembled_map(result.areas, whole)
                yield Prediction(file.path, result.score, anomaly_map, result.class_name, result.verdict)
