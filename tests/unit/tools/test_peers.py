"""The protocol of the benchmark against peers; neither the peers nor their environment is needed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from visionad_runtime.tools.evaluation.datasets.base import Sample
from visionad_runtime.tools.evaluation.datasets.masks import load_mask

from tests.data import ROOT

FOLDER = ROOT / "benchmarks" / "peers"


def imported(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"peers_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


protocol = imported("protocol")


def test_a_map_of_the_whole_image_stays_as_it_is() -> None:
    anomaly_map = np.random.default_rng(0).random((256, 256), np.float32)
    np.testing.assert_allclose(protocol.full_frame(anomaly_map, 448, 448), anomaly_map, atol=1e-6)


@pytest.mark.parametrize("shape", [(448, 448), (252, 252), (24, 24), (100, 31)])
def test_a_whole_map_is_resized_as_torch_resizes(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    anomaly_map = np.random.default_rng(1).random(shape, np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(anomaly_map)[None, None], size=(256, 256), mode="bilinear"
    )
    np.testing.assert_allclose(protocol.full_frame(anomaly_map, 448, 448), wanted[0, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize(("resize", "crop"), [(448, 384), (448, 392), (256, 224), (255, 128)])
def test_a_cropped_map_lies_where_its_pixels_lie_in_the_image(resize: int, crop: int) -> None:
    offset = round((resize - crop) / 2)
    across = (np.arange(256) + 0.5) / 256 * crop + offset  # where a map pixel lies in the resized image
    shown = protocol.full_frame(np.broadcast_to(across.astype(np.float32), (256, 256)), resize, crop)
    centre = (np.arange(256) + 0.5) / 256 * resize
    inside = (centre >= offset) & (centre <= offset + crop)
    assert 0 < (~inside).sum() < 256
    assert not shown[~inside].any() and not shown[:, ~inside].any()
    got = shown[np.ix_(inside, inside)]
    half_a_pixel = 0.5 * crop / 256  # at the crop's edge there is no further pixel to interpolate with
    np.testing.assert_allclose(got, np.broadcast_to(centre[inside], got.shape), atol=half_a_pixel + 1e-3)
    np.testing.assert_allclose(got[:, 1:-1], np.broadcast_to(centre[inside][1:-1], got[:, 1:-1].shape), atol=1e-3)


def test_a_defect_in_the_blind_margin_counts_as_missed(tmp_path: Path) -> None:
    from PIL import Image

    image, drawn = tmp_path / "a.png", tmp_path / "a_mask.png"
    Image.new("RGB", (256, 256)).save(image)
    mask = np.zeros((256, 256), np.uint8)
    mask[120:136, 120:136] = 255  # in the middle, seen
    mask[:8, :] = 255  # along the upper edge, beyond the crop 224 of 256
    Image.fromarray(mask).save(drawn)
    sample = Sample(image, "part", 1, "scratch", masks=(drawn,))
    good = Sample(image, "part", 0)
    masks = protocol.masks_of([sample, good])
    np.testing.assert_array_equal(masks[0], load_mask(sample, 448, 448))
    seen = np.random.default_rng(0).random((256, 256), np.float32)
    hit = seen.copy()
    hit[118:138, 118:138] += 1  # in the crop's own pixels, 256 for 224
    cropped = protocol.measure([1.0, 0.0], [hit, seen], [sample, good], masks, resize=256, crop=224)
    whole = protocol.measure([1.0, 0.0], [seen + masks[0], seen], [sample, good], masks, resize=256, crop=256)
    assert cropped["image_auroc"] == whole["image_auroc"] == 1
    assert whole["pixel_auroc"] > 0.99 and whole["pixel_aupro"] > 0.95
    assert cropped["pixel_auroc"] < 0.5  # the edge, most of the defect, ranks below all that is seen
    assert 0.4 < cropped["pixel_aupro"] < 0.6  # one of the two regions


def test_without_masks_there_are_image_metrics_only(tmp_path: Path) -> None:
    samples = [Sample(tmp_path / "a.png", "part", 0), Sample(tmp_path / "b.png", "part", 1, "bad")]
    assert protocol.masks_of(samples) is None
    found = protocol.measure([0.0, 1.0], [], samples, None, 448, 384)
    assert found == {"image_auroc": 1.0, "pixel_auroc": None, "pixel_aupro": None}
