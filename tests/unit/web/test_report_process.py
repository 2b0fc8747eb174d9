"""Reports of the page are those of ``visionad report``, made in a process of their own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.records.report import Source, as_html, as_json, make_report
from visionad_runtime.station.settings import Shifts
from visionad_runtime.station.sink import Outcome

pytest.importorskip("fastapi")

START = datetime(2026, 11, 30, 4, tzinfo=UTC)
END = START + timedelta(hours=9)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "a #1 %.sqlite"
    records = Records(path)
    facts = {"top": {"verdict": "anomalous", "regions": [{"bbox": [0, 0, 9, 9], "score": 1.0}]}}
    for number in range(1, 21):
        time_utc = f"2026-11-30T{4 + number // 4:02}:{number:02}:00.000+00:00"
        records.complete([Outcome(number, time_utc, number, "", 1, 2, "anomalous", 0.9, 0.5, 10.0 + number, 1, facts)])
    records.close()
    return Source("Presse 3 · 压机", path, Shifts(zone="Europe/Berlin", start=["06:00", "14:00"]), {1: "Zahnrad"})


def test_a_report_is_that_of_the_command(source: Source) -> None:
    from visionad_runtime.web.station.report_process import Reports

    async def both() -> tuple[bytes, bytes]:
        reports = Reports(source)
        return await reports.make(START, END, "json"), await reports.make(START, END, "html")

    as_text, page = asyncio.run(both())
    made = make_report(source, START, END)
    assert json.loads(as_text) == json.loads(json.dumps(as_json(made)))
    assert page.decode() == as_html(made)
    assert len(made.shifts) == 2


def test_what_is_wrong_is_said_in_words(source: Source, tmp_path: Path) -> None:
    from visionad_runtime.web.station.report_process import Reports

    with pytest.raises(VisionADError, match="expected --to after --from"):
        asyncio.run(Reports(source).make(END, START, "json"))
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"no database" * 1000)
    with pytest.raises(VisionADError, match=r"damaged\.sqlite"):
        asyncio.run(Reports(source._replace(records=damaged)).make(START, END, "json"))


def test_the_page_process_begins_without_arrays() -> None:
    """It stays small: NumPy and the decoders come with the first image that somebody sends to it."""
    code = (
        "import sys, visionad_runtime.web.station.__main__;"
        "heavy = {'numpy', 'PIL', 'cv2', 'safetensors', 'pymodbus'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_report_that_takes_too_long_is_ended(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionad_runtime.web.station import report_process

    monkeypatch.setattr(report_process, "MAX_SECONDS", 0.01)

    async def make() -> None:
        with pytest.raises(report_process.CommandError, match="took too long"):
            await report_process.Reports(source).make(START, END, "json")

    asyncio.run(make())


def test_a_report_that_nobody_waits_for_any_more_is_ended(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionad_runtime.web.queue import RequestError
    from visionad_runtime.web.station import report_process

    monkeypatch.setattr(report_process, "LOOK_SECONDS", 0.01)

    class Gone:
        async def is_disconnected(self) -> bool:
            return True

    class Waits:
        async def is_disconnected(self) -> bool:
            return False

    async def make() -> bytes:
        reports = report_process.Reports(source)
        request: Any = Gone()
        for _ in range(2 * report_process.MAX_TOGETHER):  # none of them keeps its place
            with pytest.raises(RequestError, match="went away"):
                await reports.make_for(request, START, END, "json")
        request = Waits()
        return await reports.make_for(request, START, END, "json")

    assert json.loads(asyncio.run(make()))["shifts"]


def test_an_export_is_that_of_the_history(source: Source, tmp_path: Path) -> None:
    from visionad_runtime.web.station.history import Filter, History
    from visionad_runtime.web.station.report_process import Reports

    async def exported(wanted: Filter) -> bytes:
        return b"".join([block async for block in Reports(source).export(wanted, ";")])

    for wanted in (Filter(), Filter(verdict="ok"), Filter(start="2026-11-30T07:00:00.000+00:00", review="none")):
        assert asyncio.run(exported(wanted)) == b"".join(History(source.records).csv(wanted, ";"))
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"no database" * 1000)

    async def cut() -> None:
        async for _ in Reports(source._replace(records=damaged)).export(Filter(), ","):
            pass

    with pytest.raises(VisionADError, match="not a database"):
        asyncio.run(cut())


def test_an_export_that_nobody_reads_ends_its_process(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionad_runtime.web.station import report_process
    from visionad_runtime.web.station.history import Filter

    monkeypatch.setattr(report_process, "BLOCK_BYTES", 16)

    async def begun() -> None:
        reports = report_process.Reports(source)
        for _ in range(2 * report_process.MAX_TOGETHER):  # none of them keeps its place
            blocks = reports.export(Filter(), ",")
            assert await anext(blocks)
            await blocks.aclose()  # type: ignore[attr-defined]

    asyncio.run(begun())


def test_an_export_does_not_wait_for_slow_readers_for_ever(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    from visionad_runtime.web.station import report_process
    from visionad_runtime.web.station.history import Filter

    monkeypatch.setattr(report_process, "WAIT_SECONDS", 0.05)

    async def read() -> None:
        reports = report_process.Reports(source)
        slow = [reports.export(Filter(), ",") for _ in range(report_process.MAX_TOGETHER)]
        for blocks in slow:
            assert await anext(blocks)
        with pytest.raises(report_process.CommandError, match="others read exports"):
            await anext(reports.export(Filter(), ","))
        for blocks in slow:
            await blocks.aclose()  # type: ignore[attr-defined]
        assert await anext(reports.export(Filter(), ","))

    asyncio.run(read())
