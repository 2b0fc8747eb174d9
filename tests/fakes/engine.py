"""Engines for the chain on the GPU without a library, and as much of a class's bank as that chain reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from visionad_runtime import preprocess
from visionad_runtime.cuda.memory import ResourceScope
from visionad_runtime.cuda.thread import DeviceThread
from visionad_runtime.formats.manifest import FeatureIdentity, ViewName

from tests.data import unit
from tests.fakes.gpu import FakeDevice, FakeStream

F32 = NDArray[np.float32]
VIEWS: tuple[ViewName, ...] = ("original", "flip", "clamp")


def fake_of(owner: DeviceThread) -> FakeDevice:
    """Return the fake device behind an owner's thread."""
    return cast("FakeDevice", owner.run(lambda device: device))


class FakeEngine:
    """For :class:`FakeDevice` alone.

    Works in two steps on one scratch buffer, as an engine's layers do: two streams at once would spoil each other's rows.
    """

    def __init__(
        self,
        owner: DeviceThread,
        identity: FeatureIdentity,
        encode_row: Callable[[F32], tuple[F32, F32]],
        max_rows: int = 12,
        capturable: bool = True,
    ) -> None:
        self.identity, self.encode_row = identity, encode_row
        self.max_rows, self.capturable = max_rows, capturable
        self.device = fake_of(owner)
        self.scratch = np.zeros((max_rows, 3, *2 * [identity.preprocess.crop]), np.float32)
        self.runs = 0
        self.broken = False

    def enqueue(self, images: int, patch: int, cls: int, rows: int, stream: FakeStream) -> None:
        assert 1 <= rows <= self.max_rows
        read = self.device.read

        def gather() -> None:
            self.runs += 1
            self.scratch[:rows] = read(images, np.float32, *self.scratch[:rows].shape)

        def finish() -> None:
            for i in range(rows):
                tokens, token = self.encode_row(self.scratch[i])
                read(patch, np.float32, rows, self.identity.grid**2, self.identity.dim)[i] = (
                    np.nan if self.broken and i == 1 else tokens
                )
                read(cls, np.float32, rows, self.identity.class_token_dim)[i] = token

        stream.add(gather)
        for _ in range(8):
            stream.add(lambda: None)
        stream.add(finish)


class StubEngine:
    """For any device, hardware too. Gives tokens that were set before, whatever the images."""

    def __init__(self, owner: DeviceThread, identity: FeatureIdentity, rows: int) -> None:
        self.max_rows, self.capturable = rows, True
        shapes = (rows, identity.grid**2, identity.dim), (rows, identity.class_token_dim)
        self._owner = owner
        self._memory: ResourceScope = owner.run(ResourceScope)
        self.patch, self.cls = owner.run(lambda _: [self._memory.pinned(shape, np.float32) for shape in shapes])
        self.patch[:] = unit(0, rows * identity.grid**2, identity.dim).reshape(self.patch.shape)
        self.cls[:] = unit(1, rows, identity.class_token_dim)

    def enqueue(self, images: int, patch: int, cls: int, rows: int, stream: Any) -> None:
        device: Any = self._owner.run(lambda device: device)
        live = device._buffers.values() if isinstance(device._buffers, dict) else device._buffers
        for ptr, host in ((patch, self.patch), (cls, self.cls)):
            (buffer,) = [b for b in live if b.ptr == ptr]
            device.upload(buffer, host[:rows], stream)

    def close(self) -> None:
        self._owner.run(lambda _: self._memory.close())


@dataclass(frozen=True)
class Class:
    """As much of a class's bank as the chain reads."""

    name: str
    features: F32
    blocks: tuple[str, ...] = preprocess.encoding_names(VIEWS)

    def rows(self, view: ViewName) -> F32:
        chosen = self.features[preprocess.view_slice(self.blocks, view)]
        return chosen.reshape(-1, chosen.shape[-1])
