"""The self-test: a backend must pass it on this machine, at every start, before it may inspect.

The model folder holds two golden images and the reference's results for them: the tokens of both, and the score of the second (the
first with a defect) against a bank of the first. The test names the stage of an error: a wrong weight, operator, output order or
row order, a constant output, an overflow in half precision, rows that influence each other, or a wrong search or map.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.base import Engine, Tokens
from ..errors import ModelError
from ..formats.manifest import GOLDEN_FILE, ModelManifest
from ..preprocess import normalise
from ..scoring.score import score_tokens
from ..scoring.spec import ScoringSpec
from ..search import nearest

GOLDEN_TOLERANCE = {"fp32": 2e-4, "tf32": 2e-2, "fp16": 2e-2, "bf16": 4e-2}
"""Precision -> allowed absolute difference of an element of a unit token from the fp32 token stored at export.

Float32 backbones differ by about 1e-6 between machines. In emulation (DeiT-Tiny, EfficientNet-Lite0, real weights), tf32 and fp16
(11 significant bits) differ by up to 1.1e-2. bf16 (8 bits) differs by about 2e-2 to 3e-2 if it just passes export's accuracy gate.
"""

RMS_TOLERANCE = {"fp32": 2e-4, "tf32": 8e-3, "fp16": 8e-3, "bf16": 3e-2}
"""Precision -> allowed root mean square, over the tokens of a stage, of the length of a unit token's error.

Rounding causes a few large differences, and a fault moves every token. So the RMS separates the two; the largest difference does
not:

* DeiT-Tiny in bf16: RMS 1.1e-2, largest 2.7e-2. With one of its eight layers missing: RMS 8.2e-2, largest 2.8e-2.
* A ViT-S like DINOv2's, with random weights. One wrong layer: RMS 4.1e-2 or more, largest as low as 1.1e-2. bf16: RMS 4.6e-3.
* tf32 and fp16: RMS 2.2e-3 at most.
"""

WORST_TOLERANCE = {**GOLDEN_TOLERANCE, "bf16": 0.1}
"""As :data:`GOLDEN_TOLERANCE`, for a whole backbone against the reference.

In bf16 a few tokens with massive activations determine the difference. It varies between CPUs and GPUs and says little about the
scores: DeiT-Tiny in OpenVINO's bf16 has 3.7e-2 on the golden images, but no verdict and no AUROC of real bottles and tiles changes.
So this bound only catches single wrong tokens. :data:`RMS_TOLERANCE` and :data:`SCORE_TOLERANCE` judge what reaches a user.
"""

SCORE_TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 2e-2, "bf16": 3e-2}
"""Precision -> allowed relative difference of the score of the golden image with the defect.

Good parts' scores spread by about 9 % of their mean. A third of that changes no verdict that the next good part would not. In
OpenVINO's bf16, EfficientNet-Lite0 is off by 0.17 % and DeiT-Tiny by 0.35 %.
"""

POSITION_TOLERANCE = 0.1
"""Fraction of :data:`GOLDEN_TOLERANCE` by which an image's tokens may differ between places in a call.

The arithmetic is the same; only the tile differs.
"""

GOLDEN_TENSORS = (
    "image",
    "patch_tokens",
    "class_token",
    "blemished",
    "blemished_patch_tokens",
    "blemished_class_token",
    "blemished_score",
)

Golden = Mapping[str, NDArray[Any]]


def read_golden(folder: Path) -> dict[str, NDArray[Any]]:
    """Read the golden images of a model folder and the reference's results (``docs/reference/formats.md``).

    Raises:
        ModelError: The file is damaged, or an older release stored less in it. A silently weaker test would be worse than one more
            export.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        golden = load_file(folder / GOLDEN_FILE)
    except (OSError, SafetensorError) as exc:
        raise ModelError(f"{folder / GOLDEN_FILE} cannot be read ({exc}); export the model again") from None
    missing = [name for name in GOLDEN_TENSORS if name not in golden]
    if missing:
        raise ModelError(
            f"{folder / GOLDEN_FILE} lacks {', '.join(missing)}: an older visionad exported this model; export it again "
            "(its banks stay valid)"
        )
    return golden


def self_test(engine: Engine, manifest: ModelManifest, golden: Golden) -> dict[str, float]:
    """Encode the golden images and compare the results with the reference. This also warms the engine up.

    An engine that computes each row alone encodes twice; one that batches rows runs two calls.

    Args:
        engine: The engine.
        manifest: The model's manifest.
        golden: The model's golden tensors.

    Returns:
        Largest absolute differences: ``patch_tokens``, ``class_token``, ``score``, and ``rows`` if rows share a call; ``rms``: what
        :data:`RMS_TOLERANCE` bounds, of the worse stage.

    Raises:
        ModelError: A stage differs too much. The message names it.
    """
    allowed, allowed_rms = WORST_TOLERANCE[engine.precision], RMS_TOLERANCE[engine.precision]
    allowed_rows = POSITION_TOLERANCE * GOLDEN_TOLERANCE[engine.precision]
    spec = manifest.identity.preprocess
    plain, defect = (normalise(golden[name], spec) for name in ("image", "blemished"))

    def failure(stage: str, problem: str) -> ModelError:
        return ModelError(
            f"self-test of {engine.name} failed at {stage}: {problem}; do not inspect with this box, run `visionad doctor`"
        )

    reference = Tokens(*(np.stack([golden[n], golden[f"blemished_{n}"]]) for n in ("patch_tokens", "class_token")))
    tokens = engine.encode(np.stack([plain, defect]))
    differences: dict[str, float] = {}
    for stage, got, expected in zip(("patch_tokens", "class_token"), tokens, reference, strict=True):
        assert got is not None and expected is not None
        if got.shape != expected.shape:
            raise failure(stage, f"expected shape {expected.shape}, got {got.shape}")
        if not np.isfinite(got).all():
            raise failure(stage, f"NaN or Inf; numbers beyond the range of {engine.precision}, or a broken kernel")
        worst = differences[stage] = _max_difference(got, expected)
        rms = float(np.sqrt(np.square(got.astype(np.float64) - expected).sum(axis=-1).mean()))
        differences["rms"] = max(differences.get("rms", 0.0), rms)
        if worst <= allowed and rms <= allowed_rms:
            continue
        if _max_difference(got[0], got[1]) <= 0.01 * _max_difference(expected[0], expected[1]):
            raise failure(stage, "the same output for two different images")
        if _max_difference(got[::-1], expected) <= allowed:
            raise failure(stage, "the rows of a call come back in another order")
        raise failure(
            stage,
            f"differs from the reference by {worst:.3g} on the golden images (allowed {allowed:g}), tokens by {rms:.3g} in the "
            f"root mean square (allowed {allowed_rms:g})",
        )
    if engine.batch_size > 1:
        moved = engine.encode(np.stack([defect, plain, plain]))
        differences["rows"] = max(
            _max_difference(a[[1, 2, 0]], b[[0, 0, 1]])
            for a, b in zip(moved, tokens, strict=True)
            if a is not None and b is not None
        )
        if not differences["rows"] <= allowed_rows:
            raise failure(
                "rows",
                f"one image's tokens differ by {differences['rows']:.3g} between places in a call or with other images beside it "
                f"(allowed {allowed_rows:g})",
            )
    golden_scoring = ScoringSpec(views=("original",))  # whatever the model's: the stored score was computed with it
    scored = score_tokens(
        {"original": tokens.patch[1]}, lambda _, patch: nearest(patch, tokens.patch[0]).distance, golden_scoring
    )
    score, expected_score = scored.score, float(golden["blemished_score"][0])
    differences["score"] = abs(score - expected_score)
    allowed_score = SCORE_TOLERANCE[engine.precision] * expected_score
    if not differences["score"] <= allowed_score:
        raise failure(
            "score", f"expected {expected_score:.6f}, got {score:.6f} (allowed difference {allowed_score:.2g})"
        )
    return differences


def _max_difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a - b).max())
