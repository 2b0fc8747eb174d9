"""On the hardware: what other tests drive against stand-ins. Skipped without an NVIDIA GPU; `benchmarks/gpu.sh` runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from visionad_runtime.artefacts import ModelManifest, read_manifest
from visionad_runtime.cli import run
from visionad_runtime.cuda.device import Device, Owner
from visionad_runtime.engine import BACKENDS, Engine, gpu_here, open_engine
from visionad_runtime.engine.nvidia import MODULES, RTX_CAPABILITIES, load_api
from visionad_runtime.engine.ort import PROVIDERS
from visionad_runtime.engine.selftest import GOLDEN_TOLERANCE, ROWS
from visionad_runtime.errors import VisionADError
from visionad_runtime.preprocess import normalise

pytestmark = pytest.mark.skipif(not gpu_here(), reason="no GPU")

T = TypeVar("T")
OnDevice = Callable[[Callable[[Device], T]], T]
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
ON_GPU = tuple(b for b in BACKENDS if b != "onnxruntime-cpu")


@pytest.fixture(scope="module")
def on_device() -> OnDevice[object]:
    """Runs work on the GPU's owner thread."""
    try:
        Owner.of(0).run(lambda device: device.name)
    except VisionADError as exc:
        pytest.skip(str(exc))
    return Owner.of(0).run


# -- device ------------------------------------------------------------------------------------------------------------


def test_what_is_uploaded_comes_back(on_device: OnDevice[object]) -> None:
    def work(device: Device) -> None:
        stream = device.stream()
        there, back = device.pinned((1000, 3), np.float32), device.pinned((1000, 3), np.float32)
        there[:] = np.random.default_rng(0).standard_normal(there.shape)
        buffer = device.alloc(2 * there.nbytes)
        before = device.event()
        before.record(stream)
        device.upload(buffer, there, stream, offset=there.nbytes)
        device.download(back, buffer, stream, offset=there.nbytes)
        after = device.event()
        after.record(stream)
        after.synchronize()
        np.testing.assert_array_equal(back, there)
        assert after.elapsed_ms(before) > 0
        buffer.close()

    on_device(work)


def test_memory_is_given_back(on_device: OnDevice[object]) -> None:
    def work(device: Device) -> None:
        free = device.free_memory()
        buffer = device.alloc(256 * 2**20)
        assert device.free_memory() <= free - 256 * 2**20
        buffer.close()
        assert device.free_memory() >= free - 2**20

    on_device(work)


def test_too_much_memory_is_one_line_and_the_device_lives_on(on_device: OnDevice[object]) -> None:
    def work(device: Device) -> None:
        with pytest.raises(VisionADError, match="out of GPU memory"):
            device.alloc(2 * device.total_memory)
        device.alloc(4).close()

    on_device(work)


def test_a_graph_does_again_what_was_recorded(on_device: OnDevice[object]) -> None:
    def work(device: Device) -> None:
        stream = device.stream()
        there, back = device.pinned(64, np.int32), device.pinned(64, np.int32)
        back[:] = -1
        buffer = device.alloc(there.nbytes)
        with device.capture(stream) as graph:
            device.upload(buffer, there, stream)
            device.download(back, buffer, stream)
        stream.synchronize()
        assert (back == -1).all()  # recorded, not run
        for value in (3, 5):
            there[:] = value
            graph.launch(stream)
            stream.synchronize()
            assert (back == value).all()
        graph.close()
        buffer.close()

    on_device(work)


# -- kernels -----------------------------------------------------------------------------------------------------------
# Each kernel, and the whole chain on the device, against the CPU's path: here.


# -- engines -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> dict[str, Path]:
    """The tiny model in each precision."""
    from visionad_export.exporter import export_model

    folder = tmp_path_factory.mktemp("precisions")
    for precision in PRECISIONS:
        export_model(
            "deit_tiny_patch16_224",
            folder / precision,
            weights=tiny_weights,
            resize=72,
            crop=64,
            layers=(0, 1),
            precision=precision,
        )
    return {precision: folder / precision for precision in PRECISIONS}


def _open(backend: str, model: Path, manifest: ModelManifest) -> Engine:
    """Built where that is needed, and self-tested. Skips what is not installed, or what this GPU is not made for."""
    if backend in MODULES:
        try:
            load_api(backend)
            major, minor = Owner.of(0).run(lambda device: device.capability)
        except VisionADError as exc:
            pytest.skip(str(exc))
        if backend == "tensorrt-rtx" and f"{major}.{minor}" not in RTX_CAPABILITIES:
            pytest.skip(f"tensorrt-rtx is not made for compute capability {major}.{minor}")
        assert run(["build", str(model), "--backend", backend]) == 0
    else:
        ort = pytest.importorskip("onnxruntime")
        if PROVIDERS[backend] not in ort.get_available_providers():
            pytest.skip(f"ONNX Runtime {ort.__version__} has no {PROVIDERS[backend]}")
        if manifest.precision == "fp32" and backend != "onnxruntime-cuda":
            with pytest.raises(VisionADError, match="cannot promise fp32"):
                open_engine(model, manifest, backend)
            pytest.skip(f"{backend} refuses fp32, as it should")
    return open_engine(model, manifest, backend)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", ON_GPU)
def test_an_engine_computes_what_the_cpu_computes(backend: str, precision: str, models: dict[str, Path]) -> None:
    model = models[precision]
    manifest = read_manifest(model, ModelManifest)
    plain = models["fp32"]
    cpu = open_engine(plain, read_manifest(plain, ModelManifest), "onnxruntime-cpu", 1)
    engine = _open(backend, model, manifest)
    assert engine.name == backend and engine.details["self-test"]
    try:
        spec = manifest.identity.preprocess
        noise = np.random.default_rng(1).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
        images = np.stack([normalise(picture, spec) for picture in noise])
        found, again, wanted = engine.encode(images), engine.encode(images), cpu.encode(images)
        turned = engine.encode(np.ascontiguousarray(images[::-1]))
        assert engine.encode(images, class_token=False).cls is None
        for name in ("patch", "cls"):
            one, right = getattr(found, name), getattr(wanted, name)
            np.testing.assert_allclose(one, right, rtol=0, atol=GOLDEN_TOLERANCE[precision])
            np.testing.assert_array_equal(one, getattr(again, name))  # the same input, the same bits
            near = ROWS * GOLDEN_TOLERANCE[precision]
            np.testing.assert_allclose(getattr(turned, name)[::-1], one, rtol=0, atol=near)
    finally:
        engine.close()
