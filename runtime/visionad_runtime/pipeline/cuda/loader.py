"""Load a memory bank onto the GPU in pieces, while others inspect."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from ...cuda.interface import Device
from ...cuda.memory import Memory
from ...errors import VisionADError
from ...search import NO_ROWS
from .shared import STAGING, ClassBankLike, ResidentBank, SharedBuffers

F32 = NDArray[np.float32]
UPLOAD_POLL_SECONDS = 50e-6
"""Pause of the owner's thread before it looks again whether a piece of a bank has been uploaded."""


def checked_rows(bank: ClassBankLike) -> F32:
    """A bank's numbers one after the other.

    Raises:
        VisionADError: NaN or Inf among them.
    """
    source = np.ascontiguousarray(bank.features).reshape(-1)
    if not np.isfinite(source).all():
        raise VisionADError(f"class {bank.name!r}: NaN or Inf among the bank's rows; `visionad bank verify` says more")
    return source


class BankLoader:
    """Uploads a bank piece by piece through two page-locked buffers, then packs it to 16 bits."""

    def __init__(self, device: Device, shared: SharedBuffers, bank: ClassBankLike, source: F32) -> None:
        self._device, self._shared, self._source = device, shared, source
        dim = shared.identity.dim
        self._rows = len(self._source) // dim
        if not self._rows:
            raise VisionADError(NO_ROWS)
        self._memory, self._spare = Memory(device), Memory(device)
        try:
            self._rows32 = self._memory.take(self._source.nbytes)
            # The last tile reads beyond the last row. What it finds there is never given as a result, but zeros cost least.
            self._rows16 = self._memory.take(2 * shared.width * (self._rows + shared.block_n))
            self._norms = self._spare.take(8 * self._rows)
            self._host_norms: F32 = self._spare.pinned((self._rows, 2), np.float32)
            self._packed = self._spare.hold(device.event())
        except BaseException:
            self.abandon()
            raise
        self._at = 0
        self._turn = 0
        self._resident = ResidentBank(bank, dim, shared.width, self._memory, self._rows32, self._rows16)

    def step(self) -> bool:
        """Enqueue the next piece, or look whether all is done."""
        shared, stream = self._shared, self._shared.stream
        if self._at < len(self._source):
            turn = self._turn % 2
            if not shared.staged[turn].query():
                time.sleep(UPLOAD_POLL_SECONDS)
                return False
            piece = self._source[self._at : self._at + STAGING // 4]
            host = shared.staging[turn][: piece.nbytes].view(np.float32)
            host[...] = piece
            self._device.upload(self._rows32, host, stream, 4 * self._at)
            shared.staged[turn].record(stream)
            self._at += len(piece)
            self._turn += 1
            if self._at == len(self._source):
                shared.kernels["pack"].launch(
                    (self._rows + shared.block_n, 1),
                    (self._rows32, self._rows16, self._norms, self._rows, shared.identity.dim, shared.width), stream,
                )  # fmt: skip
                self._device.download(self._host_norms, self._norms, stream)
                self._packed.record(stream)
            return False
        if not self._packed.query():
            time.sleep(UPLOAD_POLL_SECONDS)
            return False
        self._packed.synchronize()
        self._resident.lost, self._resident.kept = self._host_norms.max(axis=0).tolist()
        self._spare.close()
        return True

    def resident(self) -> ResidentBank:
        """The bank, complete."""
        return self._resident

    def abandon(self) -> None:
        """Free what was taken."""
        self._shared.stream.synchronize()
        self._spare.close()
        self._memory.close()
