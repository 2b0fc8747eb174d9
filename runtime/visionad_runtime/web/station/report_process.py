"""Reports of the page, each made in a process of its own: a million parts fill its memory, not the page's, and delay no beat."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

from starlette.requests import Request

from ...errors import VisionADError
from ...station.records.report import Source, as_html, as_json, make_report
from ...station.settings import Shifts
from ..queue import RequestError
from .link import CommandError

Form = Literal["json", "html"]
MAX_TOGETHER = 2
"""Reports that are made at the same time; others wait."""
MAX_SECONDS = 300.0
LOOK_SECONDS = 0.5
"""How often it is looked whether somebody still waits for a report."""


class Reports:
    """Makes reports of a station's records.

    Args:
        source: where they come from.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._turn = asyncio.Semaphore(MAX_TOGETHER)

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
        source = {
            **self._source._asdict(),
            "records": str(self._source.records),
            "shifts": self._source.shifts.model_dump(mode="json"),
        }
        wish = {"source": source, "start": start.isoformat(), "end": end.isoformat(), "form": form}
        pipe = asyncio.subprocess.PIPE
        async with self._turn:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", __name__, stdin=pipe, stdout=pipe, stderr=pipe
            )
            try:
                made, said = await asyncio.wait_for(process.communicate(json.dumps(wish).encode()), MAX_SECONDS)
            except TimeoutError:
                raise CommandError("unavailable", "the report took too long: ask for a shorter time") from None
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or ["the report could not be made"]
            raise VisionADError(lines[-1])
        return made


def main() -> int:
    """Write the report that standard input asks for to standard output."""
    wish = json.load(sys.stdin)
    facts = wish["source"]
    names = {int(number): name for number, name in facts["recipe_names"].items()}
    source = Source(facts["name"], Path(facts["records"]), Shifts(**facts["shifts"]), names)
    try:
        made = make_report(source, datetime.fromisoformat(wish["start"]), datetime.fromisoformat(wish["end"]))
        text = as_html(made) if wish["form"] == "html" else json.dumps(as_json(made), ensure_ascii=False)
    except VisionADError as exc:
        sys.stderr.write(f"{exc}\n")
        return 2
    sys.stdout.buffer.write(text.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
