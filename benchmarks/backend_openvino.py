"""OpenVINO and ONNX Runtime on this CPU, side by side: `python benchmarks/backend_openvino.py [--every N] [--seconds S]`.

Time: ratios of medians. The candidates take turns, so that a busy machine slows all of them alike; a quiet machine gives steadier
    ratios.
An inspection goes from pixels to verdict: three views, one shot, known class.

Quality: a precision is judged by its results: scores against the spread of the good parts' scores, order of the scores, image
    AUROC,
and verdicts at a threshold that was calibrated in the same precision. The result file also has tokens. ``bf16, all of it`` has no
convolution in fp32 and shows their effect. The reference is ``onnxruntime-cpu`` in fp32.

The file is not named ``openvino.py``, because Python would then import it instead of OpenVINO.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from visionad_export.exporter import export_model
from visionad_runtime import Inspector
from visionad_runtime._threads import drain_background
from visionad_runtime.engine import openvino
from visionad_runtime.errors import VisionADError
from visionad_runtime.images import decode
from visionad_runtime.images.pixels import RGB8
from visionad_runtime.scoring.conformal import conformal_threshold
from visionad_runtime.tools.benchmark import measure

REAL, RANDOM = ("deit_tiny_patch16_224", "efficientnet_lite0"), "dinov2_vits14_reg"
SETS = ("mvtec_bottle", "magnetic_tile")
FALSE_REJECT, PART = 0.05, "part"
BASE = "onnxruntime-cpu, fp32"
WAYS: dict[str, dict[str, Any]] = {
    BASE: {"backend": "onnxruntime-cpu"},
    "openvino, fp32": {"backend": "openvino", "precision": "fp32"},
    "openvino, bf16": {"backend": "openvino", "precision": "bf16"},
}
ALL_OF_IT = "openvino, bf16, all of it"


def main() -> None:
    """Measure, print, write ``benchmarks/results/openvino.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1, help="take every Nth test image (for a quick look)")
    parser.add_argument("--seconds", type=float, default=20, help="each timing takes about this long")
    settings = parser.parse_args()
    shared = common.shared()
    result: dict[str, Any] = {"shots": 1, "every": settings.every, "reference": BASE, "time": [], "quality": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = {RANDOM: common.export_random(RANDOM, folder / RANDOM)}
        for backbone in REAL:
            weights = shared / "weights" / backbone / "model.safetensors"
            models[backbone] = folder / backbone
            export_model(backbone, models[backbone], weights=weights if weights.exists() else None)
        bottle = sorted((shared / "data" / SETS[0] / "train" / "good").iterdir())
        for backbone, model in models.items():
            for threads in (1, 2):
                result["time"].append(time_model(backbone, model, bottle, threads, settings.seconds, folder))
                print(result["time"][-1], flush=True)
        for backbone in REAL:
            for name in SETS:
                result["quality"] += judge(backbone, models[backbone], shared / "data" / name, settings.every, folder)
    print(f"written to {common.write('openvino', result).relative_to(common.ROOT)}")


def opened(stack: ExitStack, model: Path, bank: Path, way: dict[str, Any], **settings: Any) -> Inspector | None:
    """Return an inspector that ``stack`` closes; ``None`` if it does not run on this CPU or fails its self-test."""
    try:
        return stack.enter_context(Inspector.open(model, bank, **way, **settings))
    except VisionADError as exc:
        print(f"not here: {exc}", flush=True)
        return None


def time_model(
    backbone: str, model: Path, images: Sequence[Path], threads: int, seconds: float, folder: Path
) -> dict[str, Any]:
    """Return milliseconds of the base, and the other ways as ratios to it: of the engine alone and of a whole inspection."""
    pixels = decode.load(images[1])
    candidates: dict[str, dict[str, measure.Candidate]] = {"engine": {}, "pixels to verdict": {}}
    details: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:
        for name, way in WAYS.items():
            bank = folder / f"{backbone} {threads} {name}"
            inspector = opened(stack, model, bank, way, threads=threads)
            if inspector is None:
                continue
            inspector.enroll_files(PART, images[:1])
            (one, _) = inspector.trace_batch([pixels, pixels], PART)
            assert one[1] is not None
            details[name] = {
                k: v for k, v in inspector.engine.info.items() if k in ("precision", "threads", "self-test")
            }
            candidates["engine"][name] = measure.Candidate(name, _engine(inspector, one[1].views))
            candidates["pixels to verdict"][name] = measure.Candidate(name, _whole(inspector, pixels))
        drain_background()  # banks are prepared beside the first calls
        for timed in candidates.values():
            measure.time_interleaved(list(timed.values()), seconds, rounds=9)
    return {
        "backbone": backbone + (", random weights" if backbone == RANDOM else ""),
        "threads": threads,
        "views": 3,
        "details": details,
        **{
            what: {
                "base_ms": measure.summarize(timed[BASE].times)["p50"],
                **{name: measure.ratio(timed[name], timed[BASE]) for name in timed if name != BASE},
            }
            for what, timed in candidates.items()
        },
    }


def _engine(inspector: Inspector, views: NDArray[np.float32]) -> Callable[[int], object]:
    return lambda _: inspector.engine.encode(views, class_token=False)


def _whole(inspector: Inspector, pixels: RGB8) -> Callable[[int], object]:
    return lambda _: inspector.inspect(pixels, class_name=PART, colour="rgb")


def judge(backbone: str, model: Path, data: Path, every: int, folder: Path) -> list[dict[str, Any]]:
    """Return one row for each way: what a user sees of it, and its tokens, against the base."""
    good = sorted((data / "train" / "good").iterdir())
    tests = sorted((data / "test").glob("*/*"))[::every]
    labels = np.array([path.parent.name != "good" for path in tests])
    rows = []
    base: Outcome | None = None
    for name, way in {**WAYS, ALL_OF_IT: WAYS["openvino, bf16"]}.items():
        default = openvino.FP32_CONVOLUTIONS
        openvino.FP32_CONVOLUTIONS = 0 if name == ALL_OF_IT else default
        try:
            with ExitStack() as stack:
                bank = folder / f"{backbone} {data.name} {name}"
                inspector = opened(stack, model, bank, way, views=("original",))
                if inspector is None:
                    rows.append({"backbone": backbone, "set": data.name, "way": name, "runs": False})
                    continue
                inspector.enroll_files(PART, good[:1])
                outcome = Outcome(inspector, good[1:], tests)
        finally:
            openvino.FP32_CONVOLUTIONS = default
        base = base or outcome
        rows.append(
            {"backbone": backbone, "set": data.name, "way": name, "runs": True, **outcome.against(base, labels)}
        )
        print(rows[-1], flush=True)
    return rows


class Outcome:
    """Scores, threshold and tokens of one way on one set."""

    def __init__(self, inspector: Inspector, normals: Sequence[Path], tests: Sequence[Path]) -> None:
        """Inspect all images. ``normals`` are good parts that are not in the bank, for the threshold."""
        self.precision = inspector.engine.info.get("precision", inspector.engine.precision)
        self.self_test = inspector.engine.info["self-test"]
        files = [file for file in inspector.inspect_files(normals, class_name=PART) if file.result is not None]
        self.threshold = conformal_threshold([file.result.score for file in files if file.result], FALSE_REJECT).value
        self.scores, self.tokens = np.empty(len(tests)), []
        for i, file in enumerate(inspector.inspect_files(tests, class_name=PART, trace=True)):
            assert file.result is not None and file.trace is not None
            self.scores[i] = file.result.score
            self.tokens.append(file.trace.tokens.patch[0])

    def against(self, base: Outcome, labels: NDArray[np.bool_]) -> dict[str, Any]:
        """Compare with the base."""
        cosines = [(a.astype(np.float64) * b).sum(-1) for a, b in zip(self.tokens, base.tokens, strict=True)]
        off = [np.square(a - b).sum(-1).mean() for a, b in zip(self.tokens, base.tokens, strict=True)]
        move = np.abs(self.scores / base.scores - 1)
        good = base.scores[~labels]
        gaps = base.scores[None, :] - base.scores[:, None]
        swapped = (gaps > 0) & (self.scores[None, :] < self.scores[:, None])
        return {
            "precision": self.precision,
            "self-test": self.self_test,
            "auroc": float(roc_auc_score(labels, self.scores)),
            "score_moves_at_most": float(move.max()),
            "score_moves_mean": float(move.mean()),
            "spread_of_good": float(good.std() / good.mean()),
            "pairs_swapped": int(swapped.sum()),
            "pairs": int((gaps > 0).sum()),
            "verdicts_changed": int(((self.scores > self.threshold) != (base.scores > base.threshold)).sum()),
            "images": len(labels),
            "token_cosine_min": float(min(c.min() for c in cosines)),
            "token_cosine_mean": float(np.mean(cosines)),
            "token_rms": float(np.mean(off) ** 0.5),
        }


if __name__ == "__main__":
    main()
