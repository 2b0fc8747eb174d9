"""The reference as a predictor of ``visionad eval``: the same data and metrics, with PyTorch instead of the runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionad_runtime.bank.names import check_class_name
from visionad_runtime.errors import ImageError
from visionad_runtime.formats.model_folder import read_model
from visionad_runtime.images import decode
from visionad_runtime.result import Verdict
from visionad_runtime.scoring.conformal import conformal_threshold
from visionad_runtime.scoring.preset import scoring_for
from visionad_runtime.tools.evaluation.predictor import Prediction, Step

from visionad_ref import ClassBank
from visionad_ref import ImageError as ReferenceImageError

from ..parity import load_reference


class ReferencePredictor:
    """The method in PyTorch, with the weights that the model was exported from. It is slow and defines the right result."""

    name = "reference (PyTorch)"

    def __init__(
        self,
        model: Path,
        *,
        weights: Path | None = None,
        threads: int | None = None,
        preset: str | None = None,
        views: Sequence[str] | None = None,
    ) -> None:
        self.manifest = read_model(model)
        self.scoring = scoring_for(self.manifest, self.manifest.views, preset, views)
        self._reference = load_reference(self.manifest, self.scoring, weights, threads)
        self._banks: dict[str, ClassBank] = {}
        self._thresholds: dict[str, float] = {}

    def clear(self, folder: Path) -> None:
        """See :class:`~visionad_runtime.tools.evaluation.predictor.Predictor`; ``folder`` is not used."""
        del folder
        self._banks.clear()
        self._thresholds.clear()

    def enroll(self, class_name: str, paths: Sequence[Path], step: Step) -> None:
        """See :class:`~visionad_runtime.tools.evaluation.predictor.Predictor`."""
        self._banks[check_class_name(class_name)] = self._reference.enroll(paths)
        for _ in paths:
            step()

    def calibrate(self, class_name: str, normals: Sequence[Path], rate: float, step: Step) -> dict[str, Any]:
        """See :class:`~visionad_runtime.tools.evaluation.predictor.Predictor`."""
        scores = []
        for prediction in self.inspect(normals, class_name):
            if isinstance(prediction, ImageError):
                raise prediction
            scores.append(prediction.score)
            step()
        threshold = conformal_threshold(scores, rate)
        self.recall(class_name, {"threshold": threshold.value})
        record = {
            "normals": threshold.normals,
            "guaranteed_false_reject": threshold.mean_bound,
            "bound_false_reject": threshold.upper_bound,
        }
        return {"threshold": threshold.value, "record": record}

    def recall(self, class_name: str, calibration: Mapping[str, Any]) -> None:
        """See :class:`~visionad_runtime.tools.evaluation.predictor.Predictor`."""
        self._thresholds[check_class_name(class_name)] = calibration["threshold"]

    def inspect(self, paths: Iterable[Path], class_name: str | None) -> Iterator[Prediction | ImageError]:
        """See :class:`~visionad_runtime.tools.evaluation.predictor.Predictor`."""
        for path in paths:
            try:
                decode.load(path)  # the same message for the same fault as the runtime
                known = True
                if class_name is None:
                    route = self._reference.route(path, self._banks)
                    matched, known = route.nearest, not route.unknown
                else:
                    matched = check_class_name(class_name)
                result = self._reference.inspect(path, self._banks[matched])
            except ImageError as exc:
                yield exc
                continue
            except ReferenceImageError as exc:
                yield ImageError(str(exc))
                continue
            threshold = self._thresholds.get(matched) if known else None
            verdict: Verdict = "unknown" if threshold is None else "anomalous" if result.score > threshold else "ok"
            yield Prediction(path, result.score, result.anomaly_map, matched if known else None, verdict)
