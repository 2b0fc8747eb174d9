"""ScoringSpec: what it accepts, how it lies on disk, what a threshold holds for; and the one function that scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import Calibration, ModelManifest, ViewName, read_manifest
from visionad_runtime.inspector import Inspector
from visionad_runtime.scoring.anomaly_map import fuse, top_k_mean, upsample
from visionad_runtime.scoring.score import score_tokens
from visionad_runtime.scoring.self_similarity import self_similarity_weight
from visionad_runtime.scoring.spec import ALL_VIEWS, PAPER, ScoringSpec, choose_views
from visionad_runtime.search import nearest

from tests.data import unit

VIEW_SETS = st.permutations(ALL_VIEWS).flatmap(lambda views: st.integers(1, 3).map(lambda n: tuple(views[:n])))
SPECS = st.builds(ScoringSpec, VIEW_SETS, st.floats(0, 1, exclude_min=True), st.booleans())


def record(spec: ScoringSpec, **more: Any) -> Calibration:
    return Calibration(
        method="held-out", max_false_reject=0.1, confidence=0.95, guaranteed_false_reject=0.1, bound_false_reject=0.2, normals=9,
        scores=(1.0,), sources=("x",), created="2026-01-01", **spec.fields(), **more,
    )  # fmt: skip


def test_the_default_is_the_papers() -> None:
    method = pytest.importorskip("visionad_ref.method", reason="the reference takes the export extra")
    assert ScoringSpec() == PAPER == ScoringSpec(tuple(method.VIEWS), method.TOP_FRACTION, False)


@given(SPECS)
def test_it_comes_back_from_disk(spec: ScoringSpec) -> None:
    assert ScoringSpec.of(Calibration.model_validate_json(record(spec).model_dump_json())) == spec


def test_older_records_are_the_papers() -> None:
    """Records and manifests from before the fraction and the weight could be chosen lack these fields."""
    old = record(PAPER).model_dump(exclude={"top_share", "rarity"})
    assert ScoringSpec.of(Calibration.model_validate(old)) == PAPER


@given(SPECS, SPECS)
def test_a_threshold_holds_for_its_own_scoring_alone(spec: ScoringSpec, other: ScoringSpec) -> None:
    assert spec.holds_for(record(spec, precision="fp16"), "fp32")
    assert not spec.holds_for(record(spec, precision="bf16"), "fp32")
    assert other.holds_for(record(spec), "fp32") is (other == spec)


def test_descriptions() -> None:
    assert PAPER.describe() == "views original,flip,clamp over 0.01 of the map"
    assert (
        ScoringSpec(("original",), 0.002, True).describe()
        == "views original over 0.002 of the map of weighted distances"
    )


@pytest.mark.parametrize("views", [(), ("original", "original"), ("blur",), ("original", "blur")])
def test_views_that_cannot_be(views: tuple[Any, ...]) -> None:
    with pytest.raises(VisionADError, match="expected some of original,flip,clamp, each once"):
        ScoringSpec(views)
    with pytest.raises(VisionADError, match="expected some of"):
        choose_views(views, ALL_VIEWS)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_fractions_that_cannot_be(fraction: float) -> None:
    with pytest.raises(VisionADError, match="expected a top fraction above 0 and up to 1"):
        ScoringSpec(top_fraction=fraction)


def test_views_are_taken_in_the_banks_order() -> None:
    assert choose_views(None, ("clamp", "flip")) == ("clamp", "flip")
    assert choose_views("flip, original", ALL_VIEWS) == ("original", "flip")


@pytest.mark.parametrize("self_similarity", [False, True])
def test_score_tokens_is_the_chain_of_its_parts(self_similarity: bool) -> None:
    side, views = 8, ("original", "flip")
    spec = ScoringSpec(views, 0.002, self_similarity)  # type: ignore[arg-type]
    tokens: dict[ViewName, Any] = {view: unit(i, side * side, 16) for i, view in enumerate(spec.views)}
    rows = {view: unit(9 + i, 50, 16) for i, view in enumerate(spec.views)}
    stages: list[str] = []
    scored = score_tokens(tokens, lambda v, q: nearest(q, rows[v]).distance, spec, threads=2, mark=stages.append)
    grids = {}
    for view, patch in tokens.items():
        distance = nearest(patch, rows[view]).distance
        if self_similarity:
            distance = distance * self_similarity_weight(patch, side)
        grids[view] = distance.reshape(side, side)
    anomaly_map = upsample(fuse(grids))
    assert list(scored.distances) == list(views) and stages == ["search", "map"]
    for view, grid in grids.items():
        np.testing.assert_array_equal(scored.distances[view], grid)
    np.testing.assert_array_equal(scored.anomaly_map, anomaly_map)
    assert (scored.score, scored.cutoff) == top_k_mean(anomaly_map, 0.002)


def test_an_inspector_scores_as_its_model_says(tiny_model: Path) -> None:
    manifest = read_manifest(tiny_model, ModelManifest)
    with Inspector.open(tiny_model, threads=1) as inspector:
        assert inspector.scoring == ScoringSpec.of(manifest) == PAPER == inspector.pipeline.scoring
    with Inspector.open(tiny_model, threads=1, views="flip") as inspector:
        assert inspector.scoring == replace(PAPER, views=("flip",)) and inspector.views == ("flip",)
