"""Load a memory bank onto the GPU in pieces, while inspection goes on."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from ...cuda.interface import Device
from ...cuda.memory import ResourceScope
from ...errors import VisionADError
from ...search import NO_ROWS
from .shared import STAGING_BYTES, MemoryBankLike, ResidentBank, SharedBuffers

F32 = NDArray[np.float32]
UPLOAD_POLL_SECONDS = 50e-6
"""Pause of the owner thread between two checks whether a piece has been uploaded."""


def checked_rows(bank: MemoryBankLike) -> F32:
    """Return a bank's features as one contiguous float32 array.

    Raises:
        VisionADError: They contain NaN or Inf.
    """
    source = np.ascontiguousarray(bank.features).reshape(-1)
    if not np.isfinite(source).all():
        raise VisionADError(
            f"class {bank.name!r}: expected finite rows in the bank, got NaN or Inf; run `visionad bank verify`"
        )
    return source


class BankLoader:
    """Uploads a bank piece by piece through two page-locked buffers, then packs it to 16 bits."""

    def __init__(self, device: Device, shared: SharedBuffers, bank: MemoryBankLike, source: F32) -> None:
        """Allocate the bank's memory on the device.

        Args:
            device: The GPU.
            shared: Kernels and staging buffers.
            bank: The bank.
            source: Its features, from :func:`checked_rows`.

        Raises:
            VisionADError: The bank is empty, or the GPU is out of memory.
        """
        self._device, self._shared, self._source = device, shared, source
        dim = shared.identity.dim
        self._row_count = len(self._source) // dim
        if not self._row_count:
            raise VisionADError(NO_ROWS)
        self._resources, self._temporary = ResourceScope(device), ResourceScope(device)
        try:
            self._rows32 = self._resources.alloc(self._source.nbytes)
            # The last tile reads beyond the last row. The result ignores those rows; zeros cost the search least.
            self._rows16 = self._resources.alloc(2 * shared.width * (self._row_count + shared.block_n))
            self._norms = self._temporary.alloc(8 * self._row_count)
            self._host_norms: F32 = self._temporary.pinned((self._row_count, 2), np.float32)
            self._packed = self._temporary.own(device.event())
        except BaseException:
            self.abandon()
            raise
        self._offset = 0
        self._piece = 0
        self._resident = ResidentBank(bank, dim, shared.width, self._resources, self._rows32, self._rows16)

    def step(self) -> bool:
        """Enqueue the next piece if a staging buffer is free. Return whether the bank is complete."""
        shared, stream = self._shared, self._shared.stream
        if self._offset < len(self._source):
            index = self._piece % 2
            if not shared.staged[index].query():
                time.sleep(UPLOAD_POLL_SECONDS)
                return False
            piece = self._source[self._offset : self._offset + STAGING_BYTES // 4]
            host = shared.staging[index][: piece.nbytes].view(np.float32)
            host[...] = piece
            self._device.upload(self._rows32, host, stream, 4 * self._offset)
            shared.staged[index].record(stream)
            self._offset += len(piece)
            self._piece += 1
            if self._offset == len(self._source):
                shared.kernels["pack"].launch(
                    (self._row_count + shared.block_n, 1),
                    (self._rows32, self._rows16, self._norms, self._row_count, shared.identity.dim, shared.width), stream,
                )  # fmt: skip
                self._device.download(self._host_norms, self._norms, stream)
                self._packed.record(stream)
            return False
        if not self._packed.query():
            time.sleep(UPLOAD_POLL_SECONDS)
            return False
        self._packed.synchronize()
        resident = self._resident
        resident.quantization_error, resident.quantized_norm = self._host_norms.max(axis=0).tolist()
        self._temporary.close()
        return True

    def resident(self) -> ResidentBank:
        """Return the complete bank."""
        return self._resident

    def abandon(self) -> None:
        """Free the bank's memory."""
        self._shared.stream.synchronize()
        self._temporary.close()
        self._resources.close()
