"""Once a minute a station looks whether its records are still the file that it writes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from visionad_runtime.station.front import housekeeping
from visionad_runtime.station.front.alarms import Alarms
from visionad_runtime.station.records.record_writer import RecordWriter
from visionad_runtime.station.records.records import Records

from tests.stations import until


@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be moved there")
def test_records_that_are_deleted_or_replaced_raise_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "HOUSE_SECONDS", 0.01)
    path, aside = tmp_path / "records.sqlite", tmp_path / "aside.sqlite"
    said: list[tuple[str, str, bool]] = []

    async def play() -> None:
        records = Records(path)
        writer = RecordWriter(records, lambda _: None, lambda: None, lambda: None)
        alarms = Alarms(lambda *one: said.append(one) if one[0] == "disk" else None)
        keeping = asyncio.ensure_future(housekeeping.keep_house(writer, alarms, None))
        await asyncio.sleep(0.1)
        assert not said
        path.rename(aside)
        await until(lambda: len(said) == 1, 10)
        path.write_bytes(aside.read_bytes())
        await asyncio.sleep(0.1)
        assert len(said) == 1, "another file under its name"
        aside.replace(path)
        await until(lambda: len(said) == 2, 10)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        writer.close()

    asyncio.run(play())
    text = f"records {path} were deleted or replaced while the station runs; stop it, and put them back"
    assert said == [("disk", text, True), ("disk", text, False)]
