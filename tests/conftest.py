"""Fixtures every test shares: a tiny real model, exported once, and small synthetic parts."""

from __future__ import annotations

import os

# Triton decides at its own import whether kernels are interpreted on CPU tensors (test_kernels.py) or compiled.
os.environ.setdefault("TRITON_INTERPRET", "1")

import shutil
import signal
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

# Tests are about correctness; a busy machine is no failure.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as for a background job of a script; Ctrl-C is tested too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real pictures and weights, where they lie beside the project."""
    place = Path(os.environ.get("VISIONAD_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (place / "data").is_dir():
        pytest.skip(f"no real pictures at {place} (set VISIONAD_SHARED)")
    return place


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DeiT-Tiny with random weights, timm keys."""
    timm = pytest.importorskip("timm", reason="exporting takes the export extra")
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    torch.manual_seed(7)
    net = timm.create_model("deit_tiny_patch16_224", pretrained=False)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    """A model folder with a 4 x 4 patch grid: the real chain at a hundredth of the cost. Read only; copy it to change it."""
    from visionad_export.exporter import export_model

    out = tmp_path_factory.mktemp("models") / "tiny"
    export_model("deit_tiny_patch16_224", out, weights=tiny_weights, resize=72, crop=64, layers=(0, 1))
    return out


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that build engines, which lie beside a model: no other test finds them."""
    return shutil.copytree(tiny_model, tmp_path / "own" / "tiny")


def cpu_session(path: str | Path) -> Any:
    """ONNX Runtime for a stand-in of another engine, which a test may open a hundred times of one file."""
    found = Path(path).stat()
    return _cpu_session(str(path), found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2)
def _cpu_session(path: str, *_: int) -> Any:
    import onnxruntime as ort

    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def part(seed: int, defect: bool = False, kind: str = "disc") -> NDArray[np.uint8]:
    """A synthetic part, uint8 (96, 128, 3) BGR: a disc or a grid on a noisy ground, with a scratch if ``defect``."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 90, (96, 128, 3), dtype=np.uint8)
    if kind == "disc":
        cv2.circle(image, (64 + int(rng.integers(-3, 4)), 48), 30, (200, 180, 160), -1)
    else:
        for x in range(0, 128, 16):
            cv2.line(image, (x, 0), (x, 95), (20, 220, 40), 3)
    if defect:
        cv2.line(image, (50, 40), (80, 60), (0, 0, 255), 4)
    return image


def unit(seed: int, rows: int, dim: int) -> NDArray[np.float32]:
    """Random unit rows, float32 (rows, dim)."""
    x = np.random.default_rng(seed).standard_normal((rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def noise(height: int, width: int, seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    """A picture of noise, uint8 (height, width, channels)."""
    rng = np.random.default_rng(seed)
    if seed % 2:  # black and white: the widest sums
        return rng.integers(0, 2, (height, width, channels), dtype=np.uint8) * np.uint8(255)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.fixture
def good(tmp_path: Path) -> list[Path]:
    """Four good parts as files."""
    folder = tmp_path / "good"
    folder.mkdir()
    paths = [folder / f"{i:03d}.png" for i in range(4)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), part(i))
    return paths


def in_threads(*work: Callable[[], None]) -> None:
    """All at once; the first error is raised."""
    errors: list[BaseException] = []

    def guarded(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
