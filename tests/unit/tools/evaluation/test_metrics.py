"""Image and pixel metrics against scikit-learn, AUPRO against its literal definition, and what has no value."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from visionad_runtime.errors import VisionADError
from visionad_runtime.tools.evaluation import metrics
from visionad_runtime.tools.evaluation.metrics import MetricReport, PixelMetrics, image_metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")

Maps = Sequence[NDArray[np.float32]]
Masks = Sequence[NDArray[np.bool_]]

PIXEL_NAMES = {"pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro"}


def count(maps: Maps, masks: Masks, max_values: int = metrics.MAX_VALUES) -> PixelMetrics:
    counted = PixelMetrics(max_values)
    for anomaly_map, mask in zip(maps, masks, strict=True):
        counted.add(anomaly_map, mask)
    return counted


def by_sklearn(labels: NDArray[np.generic], scores: NDArray[np.generic]) -> tuple[float, float, float]:
    precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    auroc = sklearn_metrics.roc_auc_score(labels, scores)
    return auroc, sklearn_metrics.average_precision_score(labels, scores), float(f1.max())


def literal_aupro(maps: Maps, masks: Masks) -> float | None:
    """Method, section 6, word for word, as slow as it reads. None where it divides by zero or has too few points."""
    every, truth = np.stack(maps), np.stack(masks)
    points = []
    lowest, highest = every.min(), every.max()
    if lowest == highest:
        return None
    for threshold in np.arange(lowest, highest, (highest - lowest) / 200):
        found = every > threshold
        overlaps = []
        for one, mask in zip(found, truth, strict=True):
            regions, n = ndimage.label(mask, structure=np.ones((3, 3)))
            overlaps += [one[regions == r].mean() for r in range(1, n + 1)]
        points.append((found[~truth].mean(), np.mean(overlaps)))
    kept = np.array([p for p in points if p[0] < 0.3])
    if len(kept) < 2 or kept[:, 0].max() == 0:
        return None
    return float(sklearn_metrics.auc(kept[:, 0] / kept[:, 0].max(), kept[:, 1]))


def realistic(seed: int, n: int, size: int = 256) -> tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]]]:
    """Maps as the method makes them, 28 × 28 values upsampled, with one or two defects in every second image."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(n):
        grid = rng.gamma(9, 0.04, (28, 28)) + 0.15
        mask = np.zeros((size, size), np.bool_)
        for _ in range(rng.integers(1, 3) if i % 2 else 0):
            top, left = rng.integers(0, size * 3 // 4, 2)
            height, width = rng.integers(2, size // 4, 2)
            mask[top : top + height, left : left + width] = True
        grid += rng.gamma(3, 0.1) * ndimage.zoom(mask.astype(float), 28 / size, order=1)
        maps.append(ndimage.zoom(grid, size / 28, order=1).astype(np.float32))
        masks.append(mask)
    return maps, masks


def assert_pixels_equal(report: MetricReport, maps: Maps, masks: Masks, tolerance: float = 1e-6) -> None:
    scores, labels = np.stack(maps).ravel(), np.stack(masks).ravel()
    auroc, ap, f1 = by_sklearn(labels, scores)
    assert report.values["pixel_auroc"] == pytest.approx(auroc, abs=tolerance)
    assert report.values["pixel_ap"] == pytest.approx(ap, abs=tolerance)
    assert report.values["pixel_f1max"] == pytest.approx(f1, abs=tolerance)
    expected = literal_aupro(maps, masks)
    if expected is None:
        assert report.values["pixel_aupro"] is None
    else:
        assert report.values["pixel_aupro"] == pytest.approx(expected, abs=tolerance)


# --- image metrics


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1]),
            st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, allow_nan=False)),
        ),
        min_size=2,
        max_size=60,
    ).filter(lambda rows: len({label for label, _ in rows}) == 2)
)
def test_image_metrics_equal_sklearn(rows: list[tuple[int, float]]) -> None:
    labels, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    report = image_metrics(scores, labels)
    assert list(report.values) == ["image_auroc", "image_ap", "image_f1max"]
    assert list(report.values.values()) == pytest.approx(by_sklearn(labels, scores), abs=1e-9)
    assert report.reasons == {}
    assert set(report.error_bounds.values()) == {0.0}


def test_image_metrics_by_hand() -> None:
    """Ranks 1 0 1 0 from the top: 3 of 4 pairs right; precision 1/1 and 2/3; best F1 = 4/5 at the third."""
    report = image_metrics([4.0, 3.0, 2.0, 1.0], [True, False, True, False])
    assert report.values == pytest.approx({"image_auroc": 0.75, "image_ap": (1 + 2 / 3) / 2, "image_f1max": 0.8})


def test_image_metrics_without_defects() -> None:
    report = image_metrics([1.0, 2.0], [0, 0])
    assert set(report.values.values()) == {None}
    assert report.reasons == dict.fromkeys(report.values, "no defect images")
    assert set(image_metrics([], []).values.values()) == {None}


def test_image_metrics_without_good_ones() -> None:
    report = image_metrics([1.0, 2.0], [1, 1])
    assert report.values == {"image_auroc": None, "image_ap": 1.0, "image_f1max": 1.0}  # as scikit-learn has it
    assert report.reasons == {"image_auroc": "no good images"}


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1.0, np.nan, np.inf], [0, 1, 1], "2 of 3 scores are NaN or infinite"),
        ([1.0, 2.0], [0, 1, 1], "a label for each score"),
        ([[1.0], [2.0]], [[0], [1]], "a label for each score"),
        ([1.0, 2.0], [0, 2], "0 .good. or 1 .defect."),
    ],
)
def test_image_metrics_refuse(scores: list[float], labels: list[int], message: str) -> None:
    with pytest.raises(VisionADError, match=message):
        image_metrics(scores, labels)


# --- pixel metrics


@st.composite
def pixel_sets(draw: st.DrawFn) -> tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]]]:
    """A few small maps: few values (many ties), or many, negative ones and both zeros among them; blobs or specks."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, side = draw(st.integers(1, 4)), draw(st.integers(2, 12))
    maps: NDArray[np.float64] = rng.normal(draw(st.sampled_from([0.0, 3.0])), 1, (n, side, side))
    if draw(st.booleans()):
        maps = np.round(maps)  # -0.0 and 0.0 must tie
    masks = rng.random((n, side, side)) < draw(st.sampled_from([0.05, 0.3, 0.7]))
    masks[0, 0, :2] = True, False
    maps += masks * draw(st.sampled_from([0.0, 1.0, 10.0]))
    return list(maps.astype(np.float32)), list(masks)


@settings(deadline=None, max_examples=60)
@given(pixel_sets())
def test_pixel_metrics_equal_definition(pixels: tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]]]) -> None:
    report = count(*pixels).compute()
    assert set(report.values) == PIXEL_NAMES
    assert_pixels_equal(report, *pixels)
    assert set(report.reasons) == {name for name, value in report.values.items() if value is None}
    assert all(bound == 0 for bound in report.error_bounds.values())


def test_pixel_metrics_equal_definition_on_realistic_maps() -> None:
    maps, masks = realistic(0, 6)
    report = count(maps, masks).compute()
    assert_pixels_equal(report, maps, masks, 1e-9)
    assert 0.5 < report.values["pixel_aupro"] < 1  # type: ignore[operator]


def test_aupro_weighs_regions_not_pixels() -> None:
    """A found speck and a missed field, touching nowhere: overlap 1/2. Diagonal neighbours are one region."""
    anomaly_map = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    mask = np.zeros((16, 16), np.bool_)
    mask[1:8, 1:15] = True  # low values: above no threshold with a false positive rate below 0.3
    mask[14, 3] = mask[15, 4] = True
    expected = literal_aupro([anomaly_map], [mask])
    value = count([anomaly_map], [mask]).compute().values["pixel_aupro"]
    assert value == pytest.approx(expected, abs=1e-9)
    assert value is not None
    assert value < 0.5


def shuffled(maps: Maps, masks: Masks, order: Iterable[int]) -> tuple[Maps, Masks]:
    order = list(order)
    return [maps[i] for i in order], [masks[i] for i in order]


@pytest.mark.parametrize("max_values", [metrics.MAX_VALUES, 3000])
def test_order_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, max_values: int) -> None:
    maps, masks = realistic(1, 12, 64)
    at_once = count(maps, masks, max_values).compute()
    monkeypatch.setattr(metrics, "PENDING", 7000)  # many flushes instead of one
    parts = [count(*shuffled(maps, masks, order), max_values) for order in (range(3), range(11, 4, -1), (4, 3))]
    merged = PixelMetrics(max_values)
    for part in (parts[1], parts[2], parts[0]):
        part.compute()  # must not disturb
        merged.merge(part)
    for other in (merged, count(*shuffled(maps, masks, range(11, -1, -1)), max_values)):
        assert other.compute().values == pytest.approx(at_once.values, abs=1e-12)
        assert other.compute().error_bounds == pytest.approx(at_once.error_bounds, abs=1e-12)
    assert parts[0].compute().values != pytest.approx(at_once.values, abs=1e-6)  # and merging left them alone


@settings(deadline=None)
@given(pixel_sets(), st.sampled_from([1, 2, 5, 20]))
def test_coarse_tables_stay_within_their_bounds(
    pixels: tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]]], max_values: int
) -> None:
    """Even with a handful of bins left."""
    exact = count(*pixels).compute()
    coarse = count(*pixels, max_values).compute()
    for name, bound in coarse.error_bounds.items():
        assert abs(coarse.values[name] - exact.values[name]) <= bound + 1e-12, name  # type: ignore[operator]


def test_coarse_tables_on_realistic_maps() -> None:
    """A table a sixteenth of the default drops 3 bits here, and no metric moves by 1e-6."""
    maps, masks = realistic(2, 60)
    exact, coarse = count(maps, masks), count(maps, masks, metrics.MAX_VALUES // 16)
    expected, found = exact.compute(), coarse.compute()
    assert exact._good.shift == 0
    assert coarse._good.shift == 3
    assert coarse._good.keys.size <= metrics.MAX_VALUES // 16
    assert set(found.error_bounds) == {"pixel_auroc", "pixel_ap", "pixel_f1max"}
    for name in PIXEL_NAMES:
        error = abs(found.values[name] - expected.values[name])  # type: ignore[operator]
        assert error <= 1e-6, name
        assert error <= found.error_bounds.get(name, 1e-6) <= 2e-6, name


@pytest.mark.serial
def test_pixel_metrics_are_fast() -> None:
    """A minute for 1000 maps is the limit, hence 3.6 s for 60 (of the processor's time; measured were 0.5 s)."""
    maps, masks = realistic(3, 60)
    start = time.process_time()
    count(maps, masks).compute()
    assert time.process_time() - start < 3.6


def test_nothing_added() -> None:
    report = PixelMetrics().compute()
    assert set(report.values) == PIXEL_NAMES == set(report.reasons)
    assert set(report.values.values()) == {None}
    assert [c.shape for c in vars(PixelMetrics().curves()).values()] == [(0, 2)] * 3


def test_empty_masks() -> None:
    report = count([np.random.default_rng(0).random((8, 8), np.float32)], [np.zeros((8, 8), np.bool_)]).compute()
    assert set(report.values.values()) == {None}
    assert report.reasons["pixel_auroc"] == "no defect pixels"
    assert "no defect pixels" in report.reasons["pixel_aupro"]


def test_all_defect() -> None:
    report = count([np.random.default_rng(0).random((8, 8), np.float32)], [np.ones((8, 8), np.bool_)]).compute()
    assert report.values == {"pixel_auroc": None, "pixel_ap": 1.0, "pixel_f1max": 1.0, "pixel_aupro": None}
    assert set(report.reasons) == {"pixel_auroc", "pixel_aupro"}


def test_one_value_everywhere() -> None:
    mask = np.eye(8, dtype=np.bool_)
    report = count([np.full((8, 8), 2, np.float32)], [mask]).compute()
    assert report.values["pixel_auroc"] == 0.5
    assert report.values["pixel_ap"] == pytest.approx(1 / 8)
    assert report.values["pixel_aupro"] is None
    assert "have the same value" in report.reasons["pixel_aupro"]


def test_perfect_maps_have_no_aupro() -> None:
    """The definition divides by the largest false positive rate kept, here 0; that is said, not called 1 or NaN."""
    mask = np.eye(8, dtype=np.bool_)
    report = count([mask.astype(np.float32)], [mask]).compute()
    assert report.values["pixel_auroc"] == report.values["pixel_f1max"] == 1
    assert report.values["pixel_aupro"] is None
    assert "false positive rate above 0" in report.reasons["pixel_aupro"]


def test_smallest_possible_span() -> None:
    """A step of 0 in float32 must not hang or divide by zero."""
    anomaly_map = np.zeros((4, 4), np.float32)
    anomaly_map[0, 0] = np.nextafter(np.float32(0), np.float32(1))
    report = count([anomaly_map], [np.eye(4, dtype=np.bool_)]).compute()
    assert report.values["pixel_aupro"] is None


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "message"),
    [
        (np.array([[np.nan, 1]], np.float32), np.zeros((1, 2), np.bool_), "1 of 2 pixels of the map are NaN"),
        (np.array([[np.inf, 1]], np.float32), np.zeros((1, 2), np.bool_), "NaN or infinite"),
        (np.zeros((2, 2), np.float64), np.zeros((2, 2), np.bool_), "float32 map and a bool mask, got float64"),
        (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8), "got float32 and uint8"),
        (np.zeros((2, 2), np.float32), np.zeros((2, 3), np.bool_), r"map \(2, 2\) and mask \(2, 3\)"),
        (np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.bool_), "one .H, W. for both"),
        (np.zeros((0, 2), np.float32), np.zeros((0, 2), np.bool_), "one .H, W. for both"),
    ],
)
def test_pixel_metrics_refuse(anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_], message: str) -> None:
    maps, masks = realistic(4, 2, 32)
    counted = count(maps, masks)
    before = counted.compute()
    with pytest.raises(VisionADError, match=message):
        counted.add(anomaly_map, mask)
    assert counted.compute() == before


def test_curves() -> None:
    maps, masks = realistic(5, 6)
    counted = count(maps, masks)
    curves, report = counted.curves(), counted.compute()
    for points in (curves.roc, curves.pr, curves.pro):
        assert 50 < len(points) <= metrics.CURVE_POINTS
        assert (np.diff(points[:, 0]) >= 0).all()
        assert (points >= 0).all()
        assert (points <= 1).all()
    assert curves.roc[0].tolist() == [0, 0]
    assert curves.roc[-1].tolist() == [1, 1]
    assert curves.pr[-1, 0] == 1
    # Only a sample of the points, but the area must be all but the metric's.
    assert sklearn_metrics.auc(*curves.roc.T) == pytest.approx(report.values["pixel_auroc"], abs=1e-3)
    assert sklearn_metrics.auc(*curves.pr.T) == pytest.approx(report.values["pixel_ap"], abs=1e-2)
    assert sklearn_metrics.auc(curves.pro[:, 0] / curves.pro[-1, 0], curves.pro[:, 1]) == report.values["pixel_aupro"]


@settings(deadline=None)
@given(pixel_sets())
def test_curves_of_few_values(pixels: tuple[list[NDArray[np.float32]], list[NDArray[np.bool_]]]) -> None:
    """One small map has fewer values than a curve has points: every value is a point, and the area is exact."""
    counted = count(pixels[0][:1], pixels[1][:1])
    assert sklearn_metrics.auc(*counted.curves().roc.T) == pytest.approx(counted.compute().values["pixel_auroc"])
