"""Fixtures that all tests share: a tiny real model, exported once, and small synthetic parts."""

from __future__ import annotations

import os

# Triton decides at its own import whether kernels are interpreted on CPU tensors (test_kernels.py) or compiled.
os.environ.setdefault("TRITON_INTERPRET", "1")

import shutil
import signal
from pathlib import Path
from typing import Any

import cv2
import pytest
from hypothesis import HealthCheck, settings

from tests import cache
from tests.data import SHARED, part

# No deadline: tests check correctness, and a busy machine is no failure. The profile `slow` tries more examples where a test sets
# no number of its own; `VISIONAD_HYPOTHESIS=slow` selects it, and `.ci/slow` does.
_checks: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=100, **_checks)
settings.register_profile("slow", max_examples=400, **_checks)
settings.load_profile(os.environ.get("VISIONAD_HYPOTHESIS", "fast"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for a background job of a script; Ctrl-C is tested too
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("test_tensorrt_rtx", "test_search", "test_cli", "test_close", "test_precision", "test_gpu", "test_kernels")
"""Modules that begin first, so that two workers end together (with ``--no-loadscope-reorder``)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the modules that take longest first; keep the order otherwise."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images and weights, where they lie beside the project."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real images at {SHARED} (set VISIONAD_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_weights() -> Path:
    """DeiT-Tiny with random weights, timm keys. Read only."""
    pytest.importorskip("timm", reason="exporting takes the export extra")
    return cache.get("tiny-weights", _write_tiny_weights) / "tiny.safetensors"


def _write_tiny_weights(folder: Path) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(7)
    net = timm.create_model("deit_tiny_patch16_224", pretrained=False)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    save_file(net.state_dict(), folder / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    """A model folder with a 4 x 4 patch grid: the real chain at a hundredth of the cost. Read only; copy it to change it."""
    model = cache.export_tiny(tiny_weights)
    return shutil.copytree(model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that build engines, which lie beside a model: no other test finds them."""
    return shutil.copytree(tiny_model, tmp_path / "own" / "tiny")


@pytest.fixture
def good(tmp_path: Path) -> list[Path]:
    """Four good parts as files."""
    folder = tmp_path / "good"
    folder.mkdir()
    paths = [folder / f"{i:03d}.png" for i in range(4)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), part(i))
    return paths
