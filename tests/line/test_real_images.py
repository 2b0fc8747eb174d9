"""On real images with real weights, where they are at hand: the claims a user would check first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.cli.main import run
from visionad_runtime.images.decode import load
from visionad_runtime.tools.evaluation.metrics import image_metrics

pytestmark = pytest.mark.slow(group="real-data")


@pytest.fixture(scope="module")
def deit(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = shared / "weights" / "deit_tiny_patch16_224" / "model.safetensors"
    if not weights.is_file():
        pytest.skip(f"no weights at {weights}")
    out = tmp_path_factory.mktemp("deit") / "model"
    assert run(["export", "--backbone", "deit_tiny_patch16_224", "--weights", str(weights), "--out", str(out)]) == 0
    return out


def test_bottle_with_one_shot(deit: Path, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, bank = shared / "data" / "mvtec_bottle", tmp_path / "bank"
    assert (
        run(["bank", "add", str(deit), str(bank), "--class", "bottle", str(data / "train/good"), "--shots", "1"]) == 0
    )
    capsys.readouterr()
    assert run(["predict", str(deit), str(bank), str(data / "test"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 83
    auroc = image_metrics([r["score"] for r in rows], [int("/good/" not in r["image"]) for r in rows]).values[
        "image_auroc"
    ]
    assert auroc is not None and auroc >= 0.99
    assert {r["class"] for r in rows} == {"bottle"}


def test_routing_among_four_sets(deit: Path, shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    sets = {
        "bottle": (sorted(data.glob("mvtec_bottle/train/good/*")), sorted(data.glob("mvtec_bottle/test/*/*"))),
        "hazelnut": (sorted(data.glob("adfi_hazelnut/train/good/*")), sorted(data.glob("adfi_hazelnut/test/*/*"))),
        "tile": (sorted(data.glob("magnetic_tile/train/good/*")), sorted(data.glob("magnetic_tile/test/*/*"))),
        "board": (
            sorted(data.glob("deeppcb/PCBData/*/*/*_temp.jpg")),
            sorted(data.glob("deeppcb/PCBData/*/*/*_test.jpg")),
        ),
    }
    inspector = Inspector.open(deit, tmp_path / "bank", views=["original"])
    for name, (train, _) in sets.items():
        inspector.enroll_files(name, train[:1])
    found = [
        (name, inspector.inspect(load(path), colour="rgb").class_name)
        for name, (_, test) in sets.items()
        for path in test[::4]
    ]
    right = sum(a == b for a, b in found) / len(found)
    assert right >= 0.97, [
        pair for pair in found if pair[0] != pair[1]
    ]  # of all images: benchmarks/results/routing.json
    assert not [pair for pair in found if pair[1] not in (pair[0], None)], "never taken for another class"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    stranger = inspector.inspect(noise)
    assert (stranger.class_name, stranger.verdict) == (None, "unknown")
