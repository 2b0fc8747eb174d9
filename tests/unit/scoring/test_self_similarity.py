"""The self-similarity weight against its definition, patch by patch, and against the reference's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime.cli.main import run
from visionad_runtime.errors import VisionADError
from visionad_runtime.inspector import Inspector
from visionad_runtime.scoring import product as products
from visionad_runtime.scoring import self_similarity as module
from visionad_runtime.scoring.self_similarity import MIN_DISTANCE, MIN_GRID, self_similarity_weight
from visionad_runtime.scoring.spec import ScoringSpec
from visionad_runtime.teaching.audit import leave_one_out_scores
from visionad_runtime.teaching.selection import select_support

from tests.data import slow

F32 = NDArray[np.float32]


def tokens(seed: int, side: int, dim: int, apart: float = 1.0) -> F32:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(dim) + apart * rng.standard_normal((side * side, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def literal(patch: F32, side: int) -> NDArray[np.float64]:
    """Patch by patch, in float64."""
    grid, out = patch.astype(np.float64).reshape(side, side, -1), np.empty((side, side))
    for y, x in np.ndindex(side, side):
        far = [grid[v, u] for v, u in np.ndindex(side, side) if max(abs(v - y), abs(u - x)) > 2]
        out[y, x] = max(1 - max(float(grid[y, x] @ f) for f in far), 0.05) ** 0.25
    return out.ravel()


@pytest.mark.parametrize(("side", "dim"), [(6, 1), (6, 3), (7, 16), (17, 40), (20, 384)])
@pytest.mark.parametrize("apart", [0.05, 0.3, 2.0])
def test_the_weight_is_its_definition(side: int, dim: int, apart: float) -> None:
    torch = pytest.importorskip("torch", reason="takes the export extra")
    from visionad_ref import method

    patch = tokens(side, side, dim, apart)
    found, wanted = self_similarity_weight(patch, side), literal(patch, side)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    np.testing.assert_allclose(method.self_similarity_weight(torch.from_numpy(patch), side).numpy(), wanted, rtol=2e-6)
    assert np.float32(MIN_DISTANCE**0.25) <= found.min() * (1 + 1e-6) and found.max() <= 2**0.25


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    patch = tokens(1, 28, 192)
    monkeypatch.setattr(module, "BATCH", 100)
    alone = self_similarity_weight(patch, 28, threads=1)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(self_similarity_weight(patch, 28, threads), alone)


def test_a_neighbour_does_not_make_a_patch_common_and_a_far_twin_does() -> None:
    side = 12
    patch = tokens(2, side, 64, 3.0).reshape(side, side, -1)
    lone = self_similarity_weight(patch.reshape(-1, 64), side).reshape(side, side)
    beside, afar = patch.copy(), patch.copy()
    beside[5:8, 5:8] = patch[5, 5]
    afar[5, 8] = patch[5, 5]  # three patches away: the first that counts
    assert self_similarity_weight(beside.reshape(-1, 64), side).reshape(side, side)[6, 6] > 0.9 * lone[5, 5]
    weight = self_similarity_weight(afar.reshape(-1, 64), side).reshape(side, side)[5, 5]
    assert weight == np.float32(MIN_DISTANCE) ** np.float32(0.25)


def test_a_grid_without_elsewhere_is_refused() -> None:
    with pytest.raises(VisionADError, match="at least 6 patches a side, got 5"):
        self_similarity_weight(tokens(0, 5, 8), 5)


@pytest.mark.parametrize(("grid", "good"), [(MIN_GRID - 1, False), slow("export", MIN_GRID, True)])
def test_the_export_refuses_a_grid_without_elsewhere(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], grid: int, good: bool
) -> None:
    small = f"--backbone deit_tiny_patch16_224 --weights {tiny_weights} --layers 0-1".split()
    size = ["--resize", str(16 * grid), "--crop", str(16 * grid)]
    status = run(["export", *small, *size, "--self-similarity", "--out", str(tmp_path / "model")])
    assert status == (0 if good else 2)
    said = capsys.readouterr()
    assert ("distances weighted by self-similarity" in said.out) is good
    assert (f"expected at least {MIN_GRID} patches a side" in said.err) is not good
    assert (tmp_path / "model").exists() is good


def test_good_parts_among_themselves_score_as_inspection_scores_them(
    tiny_weights: Path, good: list[Path], tmp_path: Path
) -> None:
    from visionad_export.exporter import export_model

    export_model(
        "deit_tiny_patch16_224", tmp_path / "model", weights=tiny_weights, resize=96, crop=96, layers=(0, 1),
        scoring=ScoringSpec(("original", "flip"), self_similarity=True),
    )  # fmt: skip
    inspector = Inspector.open(tmp_path / "model", tmp_path / "bank")
    first = select_support(inspector, "disc", good, 1)
    inspector.enroll_files("disc", good)
    assert inspector.bank is not None
    found = leave_one_out_scores(inspector.bank.classes["disc"], inspector.scoring)
    for k, (path, row) in enumerate(zip(good, found, strict=True)):
        (one,) = inspector.inspect_files([path], class_name="disc", leave_out=k)
        assert one.result is not None
        assert row.score == pytest.approx(one.result.score, abs=2e-6)
    others = {}
    for path in good:
        alone = Inspector.open(tmp_path / "model", tmp_path / f"bank-{path.stem}")
        alone.enroll_files("disc", [path])
        seen = alone.inspect_files([p for p in good if p != path], class_name="disc")
        others[path] = np.mean([one.result.score for one in seen if one.result is not None])
    assert first == [min(good, key=lambda p: others[p])]


def test_the_shipped_product_is_what_export_writes() -> None:
    product = pytest.importorskip("visionad_export.graph.product", reason="exporting takes the export extra")
    assert product.product_model() == products.MODEL_FILE.read_bytes()
    queries, rows = tokens(0, 3, 32), tokens(1, 4, 32)
    out = np.empty((9, 16), np.float32)
    products.scores_float32(queries, rows, out)
    np.testing.assert_allclose(out, queries @ rows.T, atol=1e-6)
