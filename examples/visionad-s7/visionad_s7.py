"""A sink for a Siemens S7: the result is written into a data block of the PLC by PUT.

Layout of the data block, 16 bytes, big-endian: byte 0 bits ready, valid, pass, reject; byte 1 evaluation; byte 2 sequence (INT);
byte 4 inspection (DINT); byte 8 score (REAL); byte 12 threshold (REAL). Data is written before the bits, so a set bit means that
the data is there. In the PLC allow PUT/GET, and switch "optimized block access" off for that block.
"""

from __future__ import annotations

import asyncio
import math
import struct
from importlib.util import find_spec

from visionad_runtime.station.leaf import LeafSettings
from visionad_runtime.station.sink import SinkError, StationState

READY, VALID, PASS, REJECT = 1, 2, 4, 8
RETRY_S = 2.0


class S7Settings(LeafSettings):
    """Settings of an S7 sink: address of the PLC, and number of the data block."""

    host: str
    port: int = 102
    rack: int = 0
    slot: int = 1
    block: int


def image_of(state: StationState) -> bytes:
    """Return the 16 bytes that show a state."""
    offered = state.offered
    bits = READY * (state.ready and state.alive)
    if offered is None:
        return struct.pack(">BBhiff", bits | REJECT, 0, 0, 0, math.nan, math.nan)
    bits |= VALID | (PASS if offered.evaluation == 1 else REJECT)
    score, threshold = (math.nan if value is None else value for value in (offered.score, offered.threshold))
    sequence = offered.sequence & 0x7FFF
    return struct.pack(">BBhiff", bits, offered.evaluation, sequence, offered.id, score, threshold)


class S7Sink:
    """A live sink. It writes the newest state; a state that comes while one is written replaces those that wait."""

    Settings = S7Settings
    live = True

    def __init__(self, name, settings):
        self._name, self._settings = name, settings
        self._news = asyncio.Event()
        self._state = None
        self._problem = "not connected yet"

    def missing(self):
        return None if find_spec("snap7") else "python-snap7 is not installed: pip install visionad-s7"

    async def run(self, line):
        from snap7 import Client

        self._state = line.state
        while True:  # until cancelled
            client = Client()
            try:
                # The library blocks, so it has a thread: the front's event loop must not wait for a PLC.
                s = self._settings
                await asyncio.to_thread(client.connect, s.host, s.rack, s.slot, s.port)
                self._problem = ""
                while True:
                    self._news.clear()
                    await asyncio.to_thread(self._write, client, image_of(self._state))
                    await self._news.wait()
            except (OSError, RuntimeError) as exc:  # snap7 raises RuntimeError
                self._problem = str(exc)
            finally:
                client.disconnect()
            await asyncio.sleep(RETRY_S)

    def _write(self, client, image):
        bits, data = image[:1], image[1:]
        if not bits[0] & VALID:  # the bit falls before the data changes
            client.db_write(self._settings.block, 0, bytearray(bits))
        client.db_write(self._settings.block, 1, bytearray(data))
        client.db_write(self._settings.block, 0, bytearray(bits))

    async def tell(self, state):
        self._state = state
        self._news.set()

    async def store(self, record):
        raise SinkError("this sink is live: it stores no records")

    def health(self):
        return {"ok": not self._problem, "detail": self._problem or f"writes to {self._settings.host}"}
