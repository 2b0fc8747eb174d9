"""Where the tests of the GPU chain run: a GPU, or what stands in for it; and the chain there around an engine of given tokens."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime import search
from visionad_runtime.cuda.device import Device
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.formats.manifest import FeatureIdentity, PreprocessSpec
from visionad_runtime.pipeline.cuda.executor import CudaExecutor
from visionad_runtime.pipeline.cuda.outputs import Encoded, ExecutorOutput
from visionad_runtime.scoring.anomaly_map import fuse, top_k_mean, upsample

from tests.data import unit
from tests.fakes.engine import VIEWS, Class, StubEngine
from tests.oracles import check_distances

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Place:
    """A GPU, or what stands in for it, and the sizes that it can take in a second or so: ``rows`` of a bank, ``side`` of an image,
    ``grid`` of patches of ``patch`` pixels, ``calls``."""

    name: str
    owner: DeviceThread
    queries: int
    rows: int
    side: int
    grid: int
    patch: int
    calls: int

    @property
    def spec(self) -> PreprocessSpec:
        """With an odd margin."""
        crop = self.patch * self.grid
        return PreprocessSpec(
            resize=crop + self.patch + 1, crop=crop, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        )

    def identity(self, dim: int = 24) -> FeatureIdentity:
        return FeatureIdentity(
            backbone="stub", weights_sha256="0" * 64, kind="vit", layers=(0,), patch=self.patch, grid=self.grid, dim=dim,
            class_token="fused", class_token_dim=8, pos_embed="none", preprocess=self.spec,
        )  # fmt: skip


SIZES = {
    "hardware": {"queries": 789, "rows": 100_000, "side": 4096, "grid": 28, "patch": 14, "calls": 2000},
    "numpy": {"queries": 9, "rows": 100_000, "side": 4096, "grid": 4, "patch": 4, "calls": 40},
    "interpreter": {"queries": 5, "rows": 300, "side": 64, "grid": 4, "patch": 4, "calls": 0},
    "driver": {"queries": 9, "rows": 100_000, "side": 4096, "grid": 4, "patch": 4, "calls": 40},
}
PRETENDED = "VISIONAD_PRETENDED_DRIVER" in os.environ


def stand_in(name: str) -> type[Any]:
    """The device of this name, ready to be opened."""
    if name == "interpreter":
        pytest.importorskip("triton", reason="the kernels' source needs Triton")
        return importlib.import_module("tests.fakes.interpreted_gpu").set_up()  # type: ignore[no-any-return]
    from tests.fakes.gpu import FakeDevice

    FakeDevice.reset()
    if name == "driver":
        importlib.import_module("tests.fakes.pretend_driver").set_up()
        return Device
    return FakeDevice


class Line:
    """A chain around a :class:`StubEngine`."""

    def __init__(self, place: Place, rows: int = 6, dim: int = 24, slots: int = 1, side: int | None = None) -> None:
        self.place, self.identity = place, place.identity(dim)
        self.engine = StubEngine(place.owner, self.identity, rows)
        size = side or place.side
        self.executor = CudaExecutor(place.owner, self.engine, self.identity, slots=slots, max_image=(size, size))

    def enroll(self, seed: int, shots: int = 1) -> Class:
        shape = (len(Class("", np.empty(0)).blocks), shots, self.identity.grid**2, self.identity.dim)
        return Class(f"class {seed}", unit(1000 + seed, int(np.prod(shape[:3])), self.identity.dim).reshape(shape))

    def inspect(self, rgbs: Sequence[U8], banks: Sequence[Class], slot: int = 0) -> list[ExecutorOutput]:
        return self.executor.match(self.encode(rgbs, slot), banks)

    def encode(self, rgbs: Sequence[U8], slot: int = 0) -> Encoded:
        return self.executor.encode(rgbs, slot)

    def check(self, found: Sequence[ExecutorOutput], banks: Sequence[Class]) -> None:
        """Distances are the CPU's search's up to rounding, map and score the CPU's of them to the last bit."""
        side = self.identity.grid
        for i, (one, bank) in enumerate(zip(found, banks, strict=True)):
            for v, view in enumerate(VIEWS):
                wanted = search.nearest(np.array(self.engine.patch[i * len(VIEWS) + v]), bank.rows(view)).distance
                check_distances(one.distances[view], wanted.reshape(side, side), self.identity.dim)
            np.testing.assert_array_equal(one.anomaly_map, upsample(fuse(one.distances)))
            assert (one.score, one.cutoff) == top_k_mean(one.anomaly_map)
