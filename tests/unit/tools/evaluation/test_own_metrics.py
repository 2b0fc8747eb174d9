"""SegF1, sPRO and the verdict figures against a few literal lines; the layouts that have them, from folder to JSON."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime.formats.manifest import PreprocessSpec
from visionad_runtime.inspector import Inspector
from visionad_runtime.tools.evaluation.datasets.base import DatasetError, Saturation
from visionad_runtime.tools.evaluation.datasets.masks import Region, Truth, image_size, read_truth
from visionad_runtime.tools.evaluation.datasets.registry import layouts, open_dataset
from visionad_runtime.tools.evaluation.own_metrics import OWN, OWN_NAMES, SegF1, Spro, area_up_to, to_image
from visionad_runtime.tools.evaluation.protocol import evaluate
from visionad_runtime.tools.evaluation.report import plain, remarks
from visionad_runtime.tools.evaluation.verdicts import ScoredImage, verdict_rates

from tests.data import part

F32 = NDArray[np.float32]
SIDE = 256
WHOLE = PreprocessSpec(resize=SIDE, crop=SIDE, mean=(0, 0, 0), std=(1, 1, 1))
CROPPED = PreprocessSpec(resize=SIDE, crop=128, mean=(0, 0, 0), std=(1, 1, 1))


def truth(*boxes: tuple[int, int, int, int], values: Sequence[int] = (), size: int = SIDE) -> Truth:
    regions = []
    for number, (left, top, right, bottom) in enumerate(boxes):
        mask = np.zeros((size, size), np.bool_)
        mask[top:bottom, left:right] = True
        regions.append(Region(values[number] if values else 255, mask, Path(f"{number}.png")))
    return Truth(size, size, tuple(regions))


def coarse_map(seed: int, levels: int = 12) -> F32:
    """A map of few values, so that thresholds tie."""
    return np.random.default_rng(seed).integers(0, levels, (SIDE, SIDE)).astype(np.float32)


def saturation_of(region: Region, kinds: Mapping[int, Saturation]) -> float:
    kind, area = kinds[region.value], int(region.mask.sum())
    return max(1, int(kind.threshold * area)) if kind.relative else min(kind.threshold, area)


def literal_spro(maps: Sequence[F32], truths: Sequence[Truth], kinds: Mapping[int, Saturation], limit: float) -> float:
    """The definition, one threshold after another, one region after another."""
    good = [~np.any([np.zeros((SIDE, SIDE), bool), *(r.mask for r in t.regions)], axis=0) for t in truths]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(np.concatenate([m.ravel() for m in maps]).tolist()), reverse=True):
        marked = [m >= threshold for m in maps]
        false = sum((m & g).sum() for m, g in zip(marked, good, strict=True)) / sum(g.sum() for g in good)
        overlaps = [
            min((m & region.mask).sum() / saturation_of(region, kinds), 1)
            for m, t in zip(marked, truths, strict=True)
            for region in t.regions
        ]
        points.append((float(false), float(np.mean(overlaps))))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], (1.0, 1.0)], strict=True):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


# --- sPRO


KINDS = {
    255: Saturation(40, relative=False),
    254: Saturation(1e9, relative=False),  # larger than any region: plain overlap
    253: Saturation(0.3, relative=True),
    252: Saturation(1.0, relative=True),
}


@pytest.mark.parametrize("seed", range(4))
def test_spro_is_the_literal_one(seed: int) -> None:
    """Several masks an image, overlapping ones, good images, saturations of all kinds, ties everywhere."""
    rng = np.random.default_rng(seed)
    maps, truths = [], []
    for number in range(3):
        anomaly_map = coarse_map(10 * seed + number)
        boxes = [(left, top, left + 9, top + 7) for left, top in rng.integers(0, SIDE - 9, (4 if number else 0, 2))]
        if boxes:
            boxes[1] = (boxes[0][0] + 3, *boxes[0][1:])  # overlaps the first
            left, top, right, bottom = boxes[2]
            anomaly_map[top:bottom, left:right] += 9
        maps.append(anomaly_map)
        truths.append(truth(*boxes, values=(255, 254, 253, 252)))
    metric = Spro(WHOLE, KINDS)
    for anomaly_map, one in zip(maps, truths, strict=True):
        metric.check(one)
        metric.add(one, anomaly_map)
    values, reasons = metric.compute()
    expected = {
        name: literal_spro(maps, truths, KINDS, limit)
        for name, limit in (("pixel_spro_005", 0.05), ("pixel_spro_030", 0.3))
    }
    assert values == pytest.approx(expected, abs=1e-9) and reasons == {}
    assert 0 < expected["pixel_spro_005"] < 1 and abs(expected["pixel_spro_005"] - expected["pixel_spro_030"]) > 0.01


def test_spro_by_hand() -> None:
    """Two of a region's 100 pixels lie above every good pixel. With a saturation of 2 that is all; with the area, 2 %."""
    anomaly_map = np.zeros((SIDE, SIDE), np.float32)
    anomaly_map[5, 5:7] = 1
    anomaly_map[100:] = -1  # values of no importance
    one = truth((0, 0, 10, 10))
    for saturation, expected in ((2, 1.0), (4, 0.5), (1000, 0.02)):
        metric = Spro(WHOLE, {255: Saturation(saturation, relative=False)})
        metric.add(one, anomaly_map)
        (low, _), _ = metric.compute()[0].values(), None
        flat = (100 * SIDE - 100) / (SIDE * SIDE - 100)  # where the next threshold lies: 0, on the first 100 rows
        rise = (1 - expected) * 0.05 / flat / 2  # straight to 1 at that point
        assert low == pytest.approx(expected + rise, abs=1e-9)


def test_a_region_outside_of_the_crop_is_never_marked() -> None:
    metric = Spro(CROPPED, {255: Saturation(1, relative=False)})
    anomaly_map = np.full((SIDE, SIDE), 5, np.float32)
    metric.add(truth((0, 0, 10, 10)), anomaly_map)
    inside = 128**2 / (SIDE**2 - 100)
    assert inside < 0.3  # beyond, all is marked at once, on the way to (1, 1)
    assert metric.compute()[0]["pixel_spro_030"] == pytest.approx((0.3 - inside) ** 2 / (1 - inside) / 2 / 0.3)
    metric.add(truth((100, 100, 110, 110)), anomaly_map)
    assert metric.compute()[0]["pixel_spro_030"] > 0.2


def test_spro_without_what_it_needs() -> None:
    anomaly_map = coarse_map(0)
    good = Spro(WHOLE, KINDS)
    good.add(truth(), anomaly_map)
    assert good.compute() == (
        {"pixel_spro_005": None, "pixel_spro_030": None},
        dict.fromkeys(Spro.names, "no defect, so no region to overlap"),
    )
    bare = Spro(WHOLE, None)
    bare.check(truth((0, 0, 2, 2), values=[7]))
    bare.add(truth((0, 0, 2, 2)), anomaly_map)
    assert set(bare.compute()[1].values()) == {"no defects_config.json, so no saturation"}
    full = Spro(WHOLE, KINDS)
    full.add(truth((0, 0, SIDE, SIDE)), anomaly_map)
    assert set(full.compute()[1].values()) == {"no good pixels, so no false positive rate"}
    with pytest.raises(
        DatasetError, match=r"0\.png: masks with the pixel values \[7\]: expected those of defects_config"
    ):
        good.check(truth((0, 0, 2, 2), values=[7]))


def test_area_stops_at_the_limit() -> None:
    line = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 1.0]])
    assert area_up_to(line, 0.25) == pytest.approx(0.25)  # a triangle of height 0.5
    assert area_up_to(line, 0.5) == pytest.approx(0.5)
    assert area_up_to(line, 1.0) == pytest.approx(0.75)
    assert area_up_to(np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), 0.05) == pytest.approx(1.0)


# --- SegF1


def test_segf1_is_the_literal_one() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    good = [
        rng.normal(1000, 1, (SIDE, SIDE)).astype(np.float32) for _ in range(3)
    ]  # a mean that loses digits of squares
    one = truth((10, 10, 60, 60), (50, 50, 90, 90))
    tests = [rng.normal(1000, 1, (SIDE, SIDE)).astype(np.float32) + 3 * one.union() for _ in range(2)]
    metric = SegF1(WHOLE)
    for anomaly_map in good:
        metric.learn(SIDE, SIDE, anomaly_map)
    pixels = np.stack(good).astype(np.float64)
    assert metric.threshold == pytest.approx(pixels.mean() + 3 * pixels.std(), abs=1e-9)
    for anomaly_map in tests:
        metric.add(one, anomaly_map.astype(np.float32))
    metric.add(truth(), good[0])
    marked = np.stack([*tests, good[0]]).astype(np.float32) > pixels.mean() + 3 * pixels.std()
    defect = np.stack([one.union(), one.union(), truth().union()])
    values, reasons = metric.compute()
    assert values == pytest.approx({"pixel_segf1": metrics.f1_score(defect.ravel(), marked.ravel())}) and reasons == {}
    assert 0.1 < values["pixel_segf1"] < 0.9  # type: ignore[operator]


def test_segf1_without_what_it_needs() -> None:
    metric = SegF1(WHOLE)
    metric.add(truth((0, 0, 9, 9)), coarse_map(0))
    assert metric.compute() == ({"pixel_segf1": None}, {"pixel_segf1": "no validation images, so no threshold"})
    metric = SegF1(WHOLE)
    metric.learn(SIDE, SIDE, coarse_map(0))
    metric.add(truth(), coarse_map(1))
    assert metric.compute() == ({"pixel_segf1": None}, {"pixel_segf1": "no defect pixels"})
    metric.add(truth((0, 0, 9, 9)), np.zeros((SIDE, SIDE), np.float32))
    assert metric.compute() == ({"pixel_segf1": 0.0}, {})


def test_segf1_counts_what_the_crop_hides() -> None:
    metric = SegF1(CROPPED)
    metric.learn(SIDE, SIDE, coarse_map(0))
    one = truth((0, 0, 10, 10), (100, 100, 110, 110))
    metric.add(one, np.full((SIDE, SIDE), 1e3, np.float32))
    true, false, missed = 100, 128 * 128 - 100, 100
    assert metric.compute()[0]["pixel_segf1"] == pytest.approx(2 * true / (2 * true + false + missed))


@pytest.mark.parametrize(("height", "width", "spec"), [(40, 70, WHOLE), (600, 512, CROPPED), (SIDE, SIDE, WHOLE)])
def test_maps_lie_on_the_image(height: int, width: int, spec: PreprocessSpec) -> None:
    """A map that is linear in the image's coordinates stays linear, pixel by pixel."""
    place = (np.arange(SIDE) + 0.5) / SIDE * spec.crop + (spec.resize - spec.crop) / 2
    anomaly_map = (3 * place[:, None] + place).astype(np.float32)
    values, inside = to_image(anomaly_map, height, width, spec)
    y, x = (np.arange(height) + 0.5) * spec.resize / height, (np.arange(width) + 0.5) * spec.resize / width
    edge = (spec.resize - spec.crop) / 2
    known = (abs(y - spec.resize / 2) < spec.crop / 2)[:, None] & (abs(x - spec.resize / 2) < spec.crop / 2)
    np.testing.assert_array_equal(inside, known)
    step = spec.crop / SIDE / 2  # half a pixel of the map: beyond, there is nothing to mix with
    core = ((y > edge + step) & (y < spec.resize - edge - step))[:, None] & (
        (x > edge + step) & (x < spec.resize - edge - step)
    )
    np.testing.assert_allclose(values[core], (3 * y[:, None] + x)[core], rtol=1e-5)
    if (height, width) == (SIDE, SIDE):
        np.testing.assert_array_equal(values, anomaly_map)


# --- verdict figures


def scored(good: Sequence[float], bad: Sequence[float]) -> list[ScoredImage]:
    return [*(ScoredImage(s, 0) for s in good), *(ScoredImage(s, 1) for s in bad)]


def test_verdicts_by_hand() -> None:
    rates = verdict_rates(scored([1, 5, 2, 3], [4, 6, 2.5, 0]))
    # halves 1 2 (limit 2) and 5 3 (limit 5): 5 and 3 are above 2, neither 1 nor 2 above 5; 4 and 2.5 are above one limit of two
    assert rates == {
        "threshold_from": "test_halves",
        "normals": 2,
        "promised_false_reject": pytest.approx(1 / 3),
        "false_reject_rate": 0.5,
        "caught_rate": pytest.approx((0.5 + 1 + 0.5 + 0) / 4),
    }
    rates = verdict_rates(scored([1, 5, 2, 3], [4, 6]), normals=[3.5, 1.0])
    assert (rates["threshold_from"], rates["false_reject_rate"], rates["caught_rate"]) == ("validation", 0.25, 1.0)
    assert (rates["normals"], rates["promised_false_reject"]) == (2, pytest.approx(1 / 3))
    calibration = {"threshold": 5.0, "record": {"normals": 19, "guaranteed_false_reject": 0.05}}
    rates = verdict_rates(scored([1, 5, 2, 3], [4, 6]), [3.5], calibration)
    assert rates == {
        "threshold_from": "calibration",
        "normals": 19,
        "promised_false_reject": 0.05,
        "false_reject_rate": 0.0,
        "caught_rate": 0.5,
    }
    assert verdict_rates(scored([1, 5], []), [2.0])["caught_rate"] is None
    few = verdict_rates(scored([1], [4]), calibration={"reason": "too few"})
    assert few["false_reject_rate"] is None and "1 good test images" in few["reason"]


@pytest.mark.parametrize("count", [3, 5])
def test_an_odd_number_of_good_images_keeps_its_promise(count: int) -> None:
    """Over all orders of the images, which are equally likely, the promise is the mean rate. Halves differ by one image."""
    runs = [verdict_rates(scored(order, [])) for order in itertools.permutations(range(count))]
    realized = sum(run["false_reject_rate"] for run in runs) / len(runs)
    assert runs[0]["promised_false_reject"] == pytest.approx(realized)
    assert realized >= 1 / (runs[0]["normals"] + 1)


def test_verdicts_of_each_condition() -> None:
    """Another light moves the scores of all parts: AUROC within it stays 1, and every good part is rejected."""
    tests = [ScoredImage(s, 0, "day") for s in (1, 2)] + [ScoredImage(s, 0, "night") for s in (11, 12)]
    tests += [ScoredImage(9, 1, "day"), ScoredImage(19, 1, "night"), ScoredImage(2.5, 1, "day")]
    rates = verdict_rates(tests, normals=[1.5, 3.0])
    assert rates["false_reject_rate"] == 0.5
    assert rates["by_condition"] == {
        "day": {"good": 2, "defects": 2, "false_reject_rate": 0.0, "caught_rate": 0.5},
        "night": {"good": 2, "defects": 1, "false_reject_rate": 1.0, "caught_rate": 1.0},
    }
    assert "by_condition" not in verdict_rates([test._replace(condition="day") for test in tests], [1.0])


# --- layouts, from folder to JSON


def image(path: Path, pixels: NDArray[np.uint8]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    return path


def defect_mask(seed: int) -> NDArray[np.uint8]:
    good, bad = (part(seed, defect=d) for d in (False, True))
    return np.where((good != bad).any(axis=2), 255, 0).astype(np.uint8)


@pytest.fixture
def ad2(tmp_path: Path) -> Path:
    can = tmp_path / "data/can"
    for seed in range(3):
        image(can / f"train/good/{seed:03d}_regular.png", part(seed))
        image(can / f"validation/good/{seed:03d}_regular.png", part(10 + seed))
    for number, (seed, light) in enumerate([(20, "regular"), (21, "regular"), (22, "overexposed"), (23, "shift_1")]):
        darker = 0.7 if light != "regular" else 1.0
        for kind, defect in (("good", False), ("bad", True)):
            pixels = (part(seed, defect=defect) * darker).astype(np.uint8)
            image(can / f"test_public/{kind}/{number:03d}_{light}.png", pixels)
        image(can / f"test_public/ground_truth/bad/{number:03d}_{light}_mask.png", defect_mask(seed))
    image(can / "test_private_mixed/000_mixed.png", part(30))  # has no ground truth; is not read
    return tmp_path / "data"


@pytest.fixture
def loco(tmp_path: Path) -> Path:
    box = tmp_path / "data/box"
    for seed in range(2):
        image(box / f"train/good/{seed:03d}.png", part(seed))
        image(box / f"validation/good/{seed:03d}.png", part(10 + seed))
        image(box / f"test/good/{seed:03d}.png", part(20 + seed))
        image(box / f"test/logical_anomalies/{seed:03d}.png", part(40 + seed, defect=True))
        drawn = defect_mask(40 + seed)
        elsewhere = np.zeros_like(drawn)
        elsewhere[:20, :30] = 250
        image(box / f"ground_truth/logical_anomalies/{seed:03d}/000.png", np.where(drawn, 255, 0).astype(np.uint8))
        image(box / f"ground_truth/logical_anomalies/{seed:03d}/001.png", elsewhere)
    kinds = [
        {"defect_name": "scratch", "pixel_value": 255, "saturation_threshold": 12, "relative_saturation": False},
        {"defect_name": "missing", "pixel_value": 250, "saturation_threshold": 0.5, "relative_saturation": True},
    ]
    (box / "defects_config.json").write_text(json.dumps(kinds))
    return tmp_path / "data"


def one_result(model: Path, root: Path, name: str, **more: Any) -> dict[str, Any]:
    data = open_dataset(name, root)
    result: dict[str, Any] = evaluate(model, data, 1, threads=1, **more).to_dict()
    (only,) = result["results"]
    assert result["mean"]["all"]["false_reject_rate"]["mean"] == only["verdicts"]["false_reject_rate"]
    for metric in (m for m in OWN_NAMES if m in only):
        assert result["mean"]["all"][metric]["mean"] == only[metric]
    return dict(only)


def maps_of(model: Path, root: Path, name: str, tmp_path: Path) -> tuple[Any, Any]:
    data = open_dataset(name, root)
    (class_name,) = data.classes
    inspector = Inspector.open(model, tmp_path / "bank", threads=1)
    inspector.enroll("part", [cv2.imread(str(data.train(class_name)[0]))])

    def found(path: Path) -> Any:
        return inspector.inspect(cv2.imread(str(path)), class_name="part")

    return data, found


def test_mvtec_ad2_from_folder_to_json(tiny_model: Path, ad2: Path, tmp_path: Path) -> None:
    result = one_result(tiny_model, ad2, "mvtec-ad2")
    data, found = maps_of(tiny_model, ad2, "mvtec-ad2", tmp_path)
    spec = found(data.train("can")[0])  # opened once
    del spec
    preprocess = Inspector.open(tiny_model, threads=1).manifest.identity.preprocess
    pixels, scores = [], []
    for path in data.validation("can"):
        one = found(path)
        width, height = image_size(path)
        values, inside = to_image(one.anomaly_map, height, width, preprocess)
        pixels.append(values[inside].astype(np.float64))
        scores.append(one.score)
    limit = np.mean(np.concatenate(pixels)) + 3 * np.std(np.concatenate(pixels))
    true = false = missed = 0
    rejected: dict[str, list[bool]] = {}
    for sample in data.test("can"):
        one, mask = found(sample.path), read_truth(sample).union()
        values, inside = to_image(one.anomaly_map, *mask.shape, preprocess)
        marked = inside & (values > limit)
        true, false, missed = (
            true + (marked & mask).sum(),
            false + (marked & ~mask).sum(),
            missed + (mask & ~marked).sum(),
        )
        if not sample.label:
            rejected.setdefault(sample.condition, []).append(one.score > max(scores))
    assert result["pixel_segf1"] == pytest.approx(2 * true / (2 * true + false + missed))
    verdicts = result["verdicts"]
    assert (verdicts["threshold_from"], verdicts["normals"]) == ("validation", 3)
    assert {light: row["false_reject_rate"] for light, row in verdicts["by_condition"].items()} == {
        light: np.mean(hits) for light, hits in rejected.items()
    }
    assert set(rejected) == {"regular", "overexposed", "shift_1"}
    assert "pixel_spro_005" not in result


def test_loco_from_folder_to_json(tiny_model: Path, loco: Path, tmp_path: Path) -> None:
    result = one_result(tiny_model, loco, "loco")
    data, found = maps_of(tiny_model, loco, "loco", tmp_path)
    preprocess = Inspector.open(tiny_model, threads=1).manifest.identity.preprocess
    thresholds, good, regions = set[float](), [], []
    for sample in data.test("box"):
        one = read_truth(sample)
        values, inside = to_image(found(sample.path).anomaly_map, one.height, one.width, preprocess)
        values = np.where(inside, values, -np.inf)
        good.append(values[~one.union()])
        for region in one.regions:
            area = region.mask.sum()
            regions.append((values[region.mask], min(12, area) if region.value == 255 else int(0.5 * area)))
        thresholds |= set(np.unique(values).tolist())
    assert len(regions) == 4
    every = np.concatenate(good)
    points = [
        ((every >= t).mean(), np.mean([min((own >= t).sum() / saturation, 1) for own, saturation in regions]))
        for t in sorted(thresholds, reverse=True)[:: max(1, len(thresholds) // 3000)]
    ]
    curve = np.array([(0.0, 0.0), *points, (1.0, 1.0)])
    for name, limit in (("pixel_spro_005", 0.05), ("pixel_spro_030", 0.3)):
        grid = np.linspace(0, limit, 20001)
        area = np.trapezoid(np.interp(grid, curve[:, 0], curve[:, 1]), grid) / limit
        assert result[name] == pytest.approx(area, abs=2e-3)
    assert "pixel_segf1" not in result and "by_condition" not in result["verdicts"]


def test_only_these_data_sets_have_own_metrics(tiny_model: Path, loco: Path) -> None:
    assert {name: OWN.keys() & set(open_metrics(name)) for name in layouts()} == {
        **{key: set() for key in layouts()},
        "mvtec-ad2": {"segf1"},
        "loco": {"spro"},
    }
    found = evaluate(tiny_model, open_dataset("folder", loco), 1, threads=1)
    (result,) = found.to_dict()["results"]
    assert not set(OWN_NAMES) & set(result)
    assert {"false_reject_rate", "caught_rate"} <= set(result["verdicts"])
    assert "sPRO" not in plain(found) and "false rejects" in plain(found) and "caught" in plain(found)
    assert any(line.startswith("False rejects and caught: the threshold comes from") for line in remarks(found))


def open_metrics(name: str) -> tuple[str, ...]:
    from visionad_runtime.tools.evaluation.datasets import registry

    layouts()
    return registry._metrics.get(name, ())


def test_tables_name_them(tiny_model: Path, ad2: Path) -> None:
    found = evaluate(tiny_model, open_dataset("mvtec-ad2", ad2), 1, threads=1)
    assert "SegF1" in plain(found) and "sPRO" not in plain(found)
    lines = remarks(found)
    assert any("the threshold comes from the validation images; it promises 25.0 % false rejects" in s for s in lines)
    assert sum(s.startswith("can, ") and "false rejects" in s for s in lines) == 3


def test_unreadable_validation_and_masks_are_named(tiny_model: Path, ad2: Path, loco: Path) -> None:
    broken = ad2 / "can/validation/good/001_regular.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"1 images or masks cannot be used: .*001_regular.png"):
        evaluate(tiny_model, open_dataset("mvtec-ad2", ad2 / "can"), 1, threads=1)
    result = evaluate(tiny_model, open_dataset("mvtec-ad2", ad2 / "can"), 1, threads=1, skip_unreadable=True)
    assert [s["role"] for s in result.skipped] == ["validation"]
    assert result.units[0].result["verdicts"]["normals"] == 2
    odd = loco / "box/ground_truth/logical_anomalies/000/001.png"
    image(odd, np.full_like(cv2.imread(str(odd)), 7))
    with pytest.raises(DatasetError, match=r"logical_anomalies/000/001\.png: masks with the pixel values \[7\]"):
        evaluate(tiny_model, open_dataset("loco", loco / "box"), 1, threads=1)
    for mask in odd.parent.iterdir():
        image(mask, np.zeros_like(cv2.imread(str(mask))))
    with pytest.raises(DatasetError, match=r"mask .*000/000\.png marks nothing"):
        evaluate(tiny_model, open_dataset("loco", loco / "box"), 1, threads=1)


@pytest.mark.parametrize(
    "entry",
    [
        {"pixel_value": 255, "saturation_threshold": 12},
        {"pixel_value": 0, "saturation_threshold": 12, "relative_saturation": False},
        {"pixel_value": 255, "saturation_threshold": -1, "relative_saturation": False},
        {"pixel_value": 255, "saturation_threshold": 1.5, "relative_saturation": True},
        {"pixel_value": 255, "saturation_threshold": "many", "relative_saturation": False},
        "scratch",
    ],
)
def test_a_damaged_config_is_named(loco: Path, entry: object) -> None:
    (loco / "box/defects_config.json").write_text(json.dumps([entry]))
    with pytest.raises(DatasetError, match=r"defects_config.json: expected a list of objects with pixel_value"):
        open_dataset("loco", loco)


def test_loco_without_config_has_a_reason(tiny_model: Path, loco: Path) -> None:
    (loco / "box/defects_config.json").unlink()
    result = one_result(tiny_model, loco, "loco")
    assert result["pixel_spro_005"] is None
    assert result["reasons"]["pixel_spro_005"] == "no defects_config.json, so no saturation"


def test_a_changed_saturation_is_measured_again(tiny_model: Path, loco: Path, tmp_path: Path) -> None:
    before = one_result(tiny_model, loco, "loco", work=tmp_path / "work")
    config = loco / "box/defects_config.json"
    config.write_text(config.read_text().replace("12", "1000000"))
    after = one_result(tiny_model, loco, "loco", work=tmp_path / "work")
    assert after["pixel_spro_005"] < before["pixel_spro_005"]
    assert after["image_auroc"] == before["image_auroc"]
