"""A sink for a Rockwell Logix controller: the result is written into tags by explicit messages of EtherNet/IP.

Tags, with the prefix of the settings: ``_Inspection`` DINT, ``_Sequence`` DINT, ``_Evaluation`` DINT, ``_Score`` REAL and, written
last, ``_Valid`` DINT: the inspection whose data stands in the tags, 0 while there is none.
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec

from visionad_runtime.station.leaf import LeafSettings
from visionad_runtime.station.sink import SinkError

RETRY_S = 2.0
DINT, REAL = 0xC4, 0xCA


class LogixSettings(LeafSettings):
    """Settings of a Logix sink: address and slot of the controller, and prefix of its tags."""

    host: str
    port: int = 44818
    slot: int = 0
    prefix: str = "VisionAD"


class LogixSink:
    """A live sink. It writes the newest state; a state that comes while one is written replaces those that wait."""

    Settings = LogixSettings
    live = True

    def __init__(self, name, settings):
        self._name, self._settings = name, settings
        self._news = asyncio.Event()
        self._state = None
        self._problem = "not connected yet"

    def missing(self):
        return None if find_spec("pylogix") else "pylogix is not installed: pip install visionad-logix"

    async def run(self, line):
        from pylogix import PLC

        s, self._state = self._settings, line.state
        while True:  # until cancelled
            controller = PLC(s.host, slot=s.slot, timeout=2.0, port=s.port)
            try:
                while True:
                    self._news.clear()
                    # The library blocks, so it has a thread: the front's event loop must not wait for a controller.
                    await asyncio.to_thread(self._write, controller, self._state.offered)
                    self._problem = ""
                    await self._news.wait()
            except (OSError, SinkError) as exc:
                self._problem = str(exc)
            finally:
                controller.Close()
            await asyncio.sleep(RETRY_S)

    def _write(self, controller, offered):
        self._set(controller, "Valid", 0, DINT)  # it falls before the data changes
        if offered is not None:
            self._set(controller, "Inspection", offered.id, DINT)
            self._set(controller, "Sequence", offered.sequence, DINT)
            self._set(controller, "Evaluation", offered.evaluation, DINT)
            self._set(controller, "Score", offered.score or 0.0, REAL)
            self._set(controller, "Valid", offered.id, DINT)

    def _set(self, controller, tag, value, kind):
        answer = controller.Write(f"{self._settings.prefix}_{tag}", value, datatype=kind)
        if answer.Status != "Success":
            raise SinkError(f"{answer.TagName}: {answer.Status}")

    async def tell(self, state):
        self._state = state
        self._news.set()

    async def store(self, record):
        raise SinkError("this sink is live: it stores no records")

    def health(self):
        return {"ok": not self._problem, "detail": self._problem or f"writes to {self._settings.host}"}
