"""Who inspects during an evaluation: the runtime or the reference, behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import picture
from ..artefacts import Calibration, ModelManifest
from ..bank import Bank, check_class_name
from ..calibrate import calibrate_class, conformal_threshold
from ..errors import PictureError, VisionADError
from ..inspector import Inspector, Verdict, choose_views, read_model

F32 = NDArray[np.float32]
Step = Callable[[], None]


class Seen(NamedTuple):
    """One inspected picture. ``class_name``: that it was matched against, None if it was like no class (then ``score`` and
    ``anomaly_map`` are the nearest one's)."""

    path: Path
    score: float
    anomaly_map: F32
    class_name: str | None
    verdict: Verdict


class Judge(Protocol):
    """Learns classes and inspects pictures. All pictures it is given to learn from can be read, and no two are the same."""

    name: str
    manifest: ModelManifest
    views: tuple[str, ...]

    def clear(self, folder: Path) -> None:
        """Forget everything; ``folder`` is free for a new bank."""

    def enrol(self, class_name: str, paths: Sequence[Path], step: Step) -> None:
        """Learn a class."""

    def calibrate(self, class_name: str, normals: Sequence[Path], rate: float, step: Step) -> dict[str, Any]:
        """Set the class's threshold from good pictures; returns what :meth:`recall` takes, JSON types."""

    def recall(self, class_name: str, calibration: Mapping[str, Any]) -> None:
        """Set the class's threshold as :meth:`calibrate` once did."""

    def inspect(self, paths: Iterable[Path], class_name: str | None) -> Iterator[Seen | PictureError]:
        """Inspect pictures in order; ``class_name=None`` finds each one's class."""


class RuntimeJudge:
    """The product itself: an :class:`~visionad_runtime.inspector.Inspector` on a bank made as ``bank add`` makes it."""

    def __init__(self, inspector: Inspector, *, batch: int = 1, bit_depth: int | None = None) -> None:
        self._inspector = inspector
        engine = inspector.engine
        own = engine.precision == inspector.manifest.precision
        self.name = (
            engine.name if own else f"{engine.name} in {engine.precision}"
        )  # finished units of another are not resumed
        self.manifest = inspector.manifest
        self.views: tuple[str, ...] = inspector.views
        self._batch, self._bit_depth = batch, bit_depth

    def clear(self, folder: Path) -> None:
        """See :class:`Judge`. The engine stays as it is."""
        manifest = self.manifest
        self._inspector.bank = Bank.open_or_new(folder, manifest.identity, manifest.views)

    def enrol(self, class_name: str, paths: Sequence[Path], step: Step) -> None:
        """See :class:`Judge`."""
        self._inspector.enroll_files(check_class_name(class_name), paths, bit_depth=self._bit_depth, step=step)

    def calibrate(self, class_name: str, normals: Sequence[Path], rate: float, step: Step) -> dict[str, Any]:
        """See :class:`Judge`."""
        name = check_class_name(class_name)
        done = calibrate_class(self._inspector, name, normals, rate, self._bit_depth, step)
        scale = self._inspector.enrolled(name).classes[name].entry.map_scale
        return {"threshold": done.threshold.value, "map_scale": scale, "record": done.record.model_dump(mode="json")}

    def recall(self, class_name: str, calibration: Mapping[str, Any]) -> None:
        """See :class:`Judge`."""
        name = check_class_name(class_name)
        low, high = calibration["map_scale"]
        record = Calibration.model_validate(calibration["record"])
        self._inspector.enrolled(name).calibrate(name, calibration["threshold"], (low, high), record)

    def inspect(self, paths: Iterable[Path], class_name: str | None) -> Iterator[Seen | PictureError]:
        """See :class:`Judge`."""
        name = None if class_name is None else check_class_name(class_name)
        for one in self._inspector.inspect_files(paths, class_name=name, batch=self._batch, bit_depth=self._bit_depth):
            if one.result is None:
                assert one.error is not None
                yield one.error
            else:
                result = one.result
                yield Seen(one.path, result.score, result.anomaly_map, result.class_name, result.verdict)


class ReferenceJudge:
    """The method in PyTorch, with the weights the model was exported from. Slow; it says what the runtime should say."""

    name = "reference (PyTorch)"

    def __init__(
        self,
        model: Path,
        *,
        weights: Path | None = None,
        threads: int | None = None,
        views: Sequence[str] | None = None,
    ) -> None:
        try:
            from visionad_export.parity import load_reference

            import visionad_ref
        except ModuleNotFoundError as exc:
            raise VisionADError(
                f"--engine reference needs the 'export' extra ({exc.name} is not installed): pip install 'visionad[export]'"
            ) from None
        self._ref: Any = visionad_ref  # torch's types stay out of the runtime's type check
        self.manifest = read_model(model)
        self.views: tuple[str, ...] = choose_views(views, self.manifest.views)
        self._reference: Any = load_reference(self.manifest, self.views, weights, threads)
        self._banks: dict[str, Any] = {}
        self._thresholds: dict[str, float] = {}

    def clear(self, folder: Path) -> None:
        """See :class:`Judge`; ``folder`` is not used."""
        del folder
        self._banks.clear()
        self._thresholds.clear()

    def enrol(self, class_name: str, paths: Sequence[Path], step: Step) -> None:
        """See :class:`Judge`."""
        self._banks[check_class_name(class_name)] = self._reference.enroll(paths)
        for _ in paths:
            step()

    def calibrate(self, class_name: str, normals: Sequence[Path], rate: float, step: Step) -> dict[str, Any]:
        """See :class:`Judge`."""
        scores = []
        for one in self.inspect(normals, class_name):
            if isinstance(one, PictureError):
                raise one
            scores.append(one.score)
            step()
        found = conformal_threshold(scores, rate)
        self.recall(class_name, {"threshold": found.value})
        record = {
            "normals": found.normals,
            "guaranteed_false_reject": found.guaranteed,
            "bound_false_reject": found.bound,
        }
        return {"threshold": found.value, "record": record}

    def recall(self, class_name: str, calibration: Mapping[str, Any]) -> None:
        """See :class:`Judge`."""
        self._thresholds[check_class_name(class_name)] = calibration["threshold"]

    def inspect(self, paths: Iterable[Path], class_name: str | None) -> Iterator[Seen | PictureError]:
        """See :class:`Judge`."""
        for path in paths:
            try:
                picture.load(path)  # the same words for the same fault, whoever inspects
                known = True
                if class_name is None:
                    route = self._reference.route(path, self._banks)
                    matched, known = route.nearest, not route.unknown
                else:
                    matched = check_class_name(class_name)
                result = self._reference.inspect(path, self._banks[matched])
            except PictureError as exc:
                yield exc
                continue
            except self._ref.PictureError as exc:
                yield PictureError(str(exc))
                continue
            threshold = self._thresholds.get(matched) if known else None
            verdict: Verdict = "unknown" if threshold is None else "anomalous" if result.score > threshold else "ok"
            yield Seen(path, result.score, result.anomaly_map, matched if known else None, verdict)
