"""The test a backend must pass on the very box, at every start, before it may inspect.

The model folder carries two images and what the PyTorch reference makes of them: tokens of both, and the score of the second
(the first with a blemish) against a bank of the first alone. A wrong weight, operator, output order or row order, a constant
output, an overflow in half precision, rows that disturb each other, a wrong search or map: each is named by its stage.
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
"""Largest absolute difference of an element of a unit token from the fp32 one stored at export. Float32 backbones differ by about
1e-6 from one machine to the next. Emulated on DeiT-Tiny and EfficientNet-Lite0 with real weights, tf32 and fp16 (11 significant
bits) differ by up to 1.1e-2; bf16 (8 bits) by about 2e-2 to 3e-2 where it just passes export's accuracy gate."""

RMS_TOLERANCE = {"fp32": 2e-4, "tf32": 8e-3, "fp16": 8e-3, "bf16": 3e-2}
"""Root mean square, over the tokens of a stage, of the length of what a unit token is off by. Rounding makes a few large
differences, so the largest one tells little: DeiT-Tiny has 2.7e-2 in bf16, and 2.8e-2 where one of its eight layers is missing. A
fault moves every token: here the same two have 1.1e-2 and 8.2e-2. One wrong layer of a ViT-S like DINOv2's (random weights) makes
4.1e-2 or more, where the largest difference may be 1.1e-2, and bf16 makes 4.6e-3. tf32 and fp16 make 2.2e-3 at most."""

WORST_TOLERANCE = {**GOLDEN_TOLERANCE, "bf16": 0.1}
"""As :data:`GOLDEN_TOLERANCE`, for what a whole backbone may differ by from the reference. In bf16 a few tokens of massive
activations decide it, differently from one CPU or GPU to the next, and it says little of the scores: DeiT-Tiny in OpenVINO's bf16
has 3.7e-2 on the golden images, where no verdict and no AUROC of real bottles and tiles changes. It is a floor against single
tokens that are wrong; :data:`RMS_TOLERANCE` and :data:`SCORE_TOLERANCE` judge what reaches a user."""

SCORE_TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "fp16": 2e-2, "bf16": 3e-2}
"""By how much the score of the blemished golden image may differ, as a share of it. Good parts' scores spread by about 9 % of
their mean; a third of that decides no verdict that the next part would not. In OpenVINO's bf16 EfficientNet-Lite0 is off by 0.17 %,
DeiT-Tiny by 0.35 %."""

POSITION_TOLERANCE = 0.1
"""Share of :data:`GOLDEN_TOLERANCE` by which one image's tokens may differ between places in a call: the same arithmetic,
another tile."""

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
    """The golden images of a model folder and what the reference makes of them (``docs/formats.md``).

    Raises:
        ModelError: damaged; or exported by a release that stored less: a weaker test that nobody notices would be worse than one
            more export.
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
    """Encode the golden images and compare with the reference; also warms the engine up. Two encodings where each row is computed
    alone, two calls where rows share one.

    Returns:
        Largest absolute differences: ``patch_tokens``, ``class_token``, ``score``, and ``rows`` where rows share a call; ``rms``:
        what :data:`RMS_TOLERANCE` bounds, of the worse stage.

    Raises:
        ModelError: naming the stage that is off.
    """
    allowed, allowed_rms = WORST_TOLERANCE[engine.precision], RMS_TOLERANCE[engine.precision]
    allowed_rows = POSITION_TOLERANCE * GOLDEN_TOLERANCE[engine.precision]
    spec = manifest.identity.preprocess
    plain, blemished = (normalise(golden[name], spec) for name in ("image", "blemished"))

    def fail(stage: str, found: str) -> ModelError:
        return ModelError(
            f"self-test of {engine.name} failed at {stage}: {found}; do not inspect with this box, run `visionad doctor`"
        )

    wanted = Tokens(*(np.stack([golden[n], golden[f"blemished_{n}"]]) for n in ("patch_tokens", "class_token")))
    tokens = engine.encode(np.stack([plain, blemished]))
    found: dict[str, float] = {}
    for stage, got, right in zip(("patch_tokens", "class_token"), tokens, wanted, strict=True):
        assert got is not None and right is not None
        if got.shape != right.shape:
            raise fail(stage, f"expected shape {right.shape}, got {got.shape}")
        if not np.isfinite(got).all():
            raise fail(stage, f"NaN or Inf; numbers beyond the range of {engine.precision}, or a broken kernel")
        worst = found[stage] = _apart(got, right)
        off = float(np.sqrt(np.square(got.astype(np.float64) - right).sum(axis=-1).mean()))
        found["rms"] = max(found.get("rms", 0.0), off)
        if worst <= allowed and off <= allowed_rms:
            continue
        if _apart(got[0], got[1]) <= 0.01 * _apart(right[0], right[1]):
            raise fail(stage, "the same output for two different images")
        if _apart(got[::-1], right) <= allowed:
            raise fail(stage, "the rows of a call come back in another order")
        raise fail(
            stage,
            f"differs from the reference by {worst:.3g} on the golden images (allowed {allowed:g}), tokens by {off:.3g} in the "
            f"root mean square (allowed {allowed_rms:g})",
        )
    if engine.batch_size > 1:
        again = engine.encode(np.stack([blemished, plain, plain]))
        found["rows"] = max(
            _apart(a[[1, 2, 0]], b[[0, 0, 1]])
            for a, b in zip(again, tokens, strict=True)
            if a is not None and b is not None
        )
        if not found["rows"] <= allowed_rows:
            raise fail(
                "rows",
                f"one image's tokens differ by {found['rows']:.3g} between places in a call or with other images beside it "
                f"(allowed {allowed_rows:g})",
            )
    golden_scoring = ScoringSpec(views=("original",))  # whatever the model's: the stored score was made so
    scored = score_tokens(
        {"original": tokens.patch[1]}, lambda _, patch: nearest(patch, tokens.patch[0]).distance, golden_scoring
    )
    score, right_score = scored.score, float(golden["blemished_score"][0])
    found["score"] = abs(score - right_score)
    allowed_score = SCORE_TOLERANCE[engine.precision] * right_score
    if not found["score"] <= allowed_score:
        raise fail("score", f"expected {right_score:.6f}, got {score:.6f} (allowed difference {allowed_score:.2g})")
    return found


def _apart(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a - b).max())
