"""Distances of `benchmarks/patch_changes.py` that the runtime does not compute, patch by patch."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from visionad_runtime.scoring.anomaly_map import upsample
from visionad_runtime.tools.evaluation.metrics import PixelMetrics

from tests.data import ROOT

SIDE, DIM, POSES = 6, 8, 2


@pytest.fixture(scope="module")
def changes() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import patch_changes
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return patch_changes


def unit_rows(seed: int, *shape: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(*shape, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def near(center: int, reach: int) -> range:
    return range(max(0, center - reach), min(SIDE, center + reach + 1))


@pytest.mark.parametrize("reach", [0, 1, 3])
def test_window(changes: Any, reach: int) -> None:
    queries, upright = unit_rows(0, SIDE**2), unit_rows(1, SIDE**2)
    expected = [
        min(1 - queries[i] @ upright[y * SIDE + x] for y in near(i // SIDE, reach) for x in near(i % SIDE, reach))
        for i in range(SIDE**2)
    ]
    np.testing.assert_allclose(changes.windowed(queries, upright, SIDE, reach), expected, atol=1e-6)


def test_neighbors_of_the_nearest(changes: Any) -> None:
    queries, poses = unit_rows(0, SIDE**2), unit_rows(1, POSES, SIDE**2)
    row = np.random.default_rng(2).integers(0, POSES * SIDE**2, SIDE**2)
    expected = []
    for i, found in enumerate(row):
        pose, place = divmod(int(found), SIDE**2)
        distances = []
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                own, their = (i // SIDE + down, i % SIDE + across), (place // SIDE + down, place % SIDE + across)
                if all(0 <= v < SIDE for v in (*own, *their)):
                    mine = queries[own[0] * SIDE + own[1]]
                    distances.append(max(0, 1 - mine @ poses[pose, their[0] * SIDE + their[1]]))
        expected.append(np.mean(distances))
    np.testing.assert_allclose(changes.around(queries, poses, row, SIDE), expected, atol=1e-6)


def test_foreground_is_the_distance_to_the_border(changes: Any) -> None:
    border = changes.border(SIDE)
    assert border.tolist() == [i for i in range(SIDE**2) if {i // SIDE, i % SIDE} & {0, SIDE - 1}]
    rows, queries = unit_rows(3, len(border)), unit_rows(4, SIDE**2)
    queries[0] = rows[0]
    expected = [max(min(1 - query @ row for row in rows), 0.05) ** 0.25 for query in queries]
    np.testing.assert_allclose(changes.foreground(queries, rows), expected, atol=1e-6)
    assert expected[0] == pytest.approx(0.05**0.25) and max(expected) > expected[0]


def test_aupro_is_that_of_the_evaluation(changes: Any) -> None:
    rng = np.random.default_rng(0)
    pixels, maps, masks = PixelMetrics(), [], []
    for image in range(4):
        mask = np.zeros((256, 256), np.bool_)
        for top, left in rng.integers(0, 230, (3 if image else 0, 2)):
            mask[top : top + 20, left : left + 9] = True
        anomaly_map = upsample(rng.gamma(3, 0.1, (28, 28)).astype(np.float32)) + np.float32(0.2) * mask
        pixels.add(anomaly_map, mask)
        maps.append(anomaly_map)
        masks.append(mask)
    expected = pixels.compute().values["pixel_aupro"]
    assert changes.aupro(np.stack(maps), changes.Regions.of(np.stack(masks))) == pytest.approx(expected, abs=2e-3)
    assert 0.3 < expected < 0.95
    flat = np.ones((4, 256, 256), np.float32)
    assert changes.aupro(flat, changes.Regions.of(np.stack(masks))) is None
