"""Reports and exports of the page, each made in a process of its own, of the lowest priority.

A million parts fill its memory, not the page's, and delay neither a beat nor an answer to the PLC.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from starlette.requests import Request

from ...errors import VisionADError
from ...station.records.report import Source, as_html, as_json, make_report
from ...station.settings import Shifts
from ..queue import RequestError
from .history import Filter, History
from .link import CommandError

Form = Literal["json", "html"]
MAX_TOGETHER = 2
"""Reports that are made at the same time, and exports that are read at the same time; others wait."""
MAX_SECONDS = 300.0
WAIT_SECONDS = 20.0
"""How long an export may wait for others."""
BLOCK_BYTES = 1 << 16
"""Of an export, that are read and sent at once."""
LOOK_SECONDS = 0.5
"""How often it is looked whether somebody still waits for a report."""


class Reports:
    """Makes reports of a station's records.

    Args:
        source: where they come from.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._turn, self._export_turn = asyncio.Semaphore(MAX_TOGETHER), asyncio.Semaphore(MAX_TOGETHER)

    async def make_for(self, request: Request, start: datetime, end: datetime, form: Form) -> bytes:
        """The same as :meth:`make`, as long as somebody waits for it: a page that is loaded again asks again."""
        making = asyncio.create_task(self.make(start, end, form))
        try:
            while not making.done():
                await asyncio.wait([making], timeout=LOOK_SECONDS)
                if not making.done() and await request.is_disconnected():
                    raise RequestError(400, "the sender went away before the report was made")
            return making.result()
        finally:
            making.cancel()
            await asyncio.wait([making])

    async def make(self, start: datetime, end: datetime, form: Form) -> bytes:
        """Return the report of a time.

        Args:
            start: with a time zone, included.
            end: with a time zone, not included.
            form: as :func:`as_json` or :func:`as_html` gives it.

        Raises:
            VisionADError: The end is not after the start, or the records cannot be read.
            CommandError: It took longer than :data:`MAX_SECONDS`.
        """
        wish = {"source": self._facts(), "start": start.isoformat(), "end": end.isoformat(), "form": form}
        async with self._turn, _child(wish) as process:
            try:
                made, said = await asyncio.wait_for(process.communicate(), MAX_SECONDS)
            except TimeoutError:
                raise CommandError("unavailable", "the report took too long: ask for a shorter time") from None
            _check(process, said)
        return made

    async def export(self, wanted: Filter, separator: str) -> AsyncIterator[bytes]:
        """Yield parts as :meth:`History.csv` does. Where it ends early, the process ends too.

        Raises:
            CommandError: Others read exports, slowly.
            VisionADError: The records cannot be read.
        """
        wish = {"source": self._facts(), "filter": wanted._asdict(), "separator": separator, "form": "csv"}
        try:
            await asyncio.wait_for(self._export_turn.acquire(), WAIT_SECONDS)
        except TimeoutError:
            raise CommandError("unavailable", "others read exports: try again when they have theirs") from None
        try:
            async with _child(wish) as process:
                assert process.stdout is not None and process.stderr is not None
                while block := await process.stdout.read(BLOCK_BYTES):
                    yield block
                said = await process.stderr.read()
                await process.wait()
                _check(process, said)
        finally:
            self._export_turn.release()

    def _facts(self) -> dict[str, Any]:
        source = self._source
        return {**source._asdict(), "records": str(source.records), "shifts": source.shifts.model_dump(mode="json")}


@asynccontextmanager
async def _child(wish: dict[str, Any]) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the process that fulfils a wish; it has ended afterwards, whatever happens."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=pipe, stdout=pipe, stderr=pipe, limit=BLOCK_BYTES
    )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(wish).encode())
        process.stdin.write_eof()
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()  # wait() alone would wait for ever for a pipe that nobody empties


def _check(process: asyncio.subprocess.Process, said: bytes) -> None:
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or ["the report could not be made"]
        raise VisionADError(lines[-1])


def main() -> int:
    """Write what standard input asks for to standard output."""
    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(19)  # after the line, and after the page's beats
    wish = json.load(sys.stdin)
    facts = wish["source"]
    try:
        if wish["form"] == "csv":
            for block in History(Path(facts["records"])).csv(Filter(**wish["filter"]), wish["separator"]):
                sys.stdout.buffer.write(block)
            return 0
        names = {int(number): name for number, name in facts["recipe_names"].items()}
        source = Source(facts["name"], Path(facts["records"]), Shifts(**facts["shifts"]), names)
        made = make_report(source, datetime.fromisoformat(wish["start"]), datetime.fromisoformat(wish["end"]))
        text = as_html(made) if wish["form"] == "html" else json.dumps(as_json(made), ensure_ascii=False)
    except (VisionADError, sqlite3.Error) as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    except BrokenPipeError:
        return 0  # nobody reads any more
    sys.stdout.buffer.write(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
