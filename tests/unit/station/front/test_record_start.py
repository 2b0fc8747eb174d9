"""One station alone writes its records, and what it cannot use is one line."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.front.cycle import Job
from visionad_runtime.station.front.record_start import start_records
from visionad_runtime.station.page.commands import PageCommands
from visionad_runtime.station.records.records import Records, verify_audit

from tests.fakes.line import outcome

UTC = "2026-11-30T06:00:00.000+00:00"
PAGE = 4096


def accept(records: Records, number: int) -> None:
    records.accept(Job(number, number, f"SN-{number}", 1, 0.0, 1.0, UTC))


def test_a_second_station_on_the_same_records_is_refused_and_readers_are_not(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.sqlite"
    one = start_records(path)
    one.records.audit("anna", "control")
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(VisionADError, match=r"are in use by another station; stop that one"):
            start_records(name)
    reader = Records(path)  # of a report, or of the page
    assert len(reader.audit_rows()) == 1 and verify_audit(path) == []
    reader.close()
    one.records.close()
    one.unlock()
    one.unlock()
    again = start_records(path)
    assert (again.interrupted, again.last_id, again.golden_passed) == (0, 0, None)
    again.records.close()
    again.unlock()


def test_parts_that_a_kill_interrupted_are_completed(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.sqlite")
    for number in (1, 2):
        accept(records, number)
    records.note("golden-passed", "all")
    records.close()
    started = start_records(records.path)
    assert (started.interrupted, started.last_id) == (2, 2) and started.golden_passed is not None
    assert [row["reason"] for row in started.records.parts()] == ["internal"] * 2
    started.records.close()
    started.unlock()


def test_what_nobody_has_seen_outlives_the_station(tmp_path: Path) -> None:
    """Also a part that the kill interrupted, which is as simulated as it was when it was accepted."""
    records = Records(tmp_path / "records.sqlite")
    records.complete([outcome(number, part) for number, part in enumerate(("bad", "ok", "odd", "bad"), 1)])
    records.accept(Job(5, 5, "SN-5", 1, 0.0, 1.0, UTC), simulated=True)
    records.accept(Job(6, 6, "SN-6", 1, 0.0, 1.0, UTC))
    records.close()
    started = start_records(records.path)
    assert started.unseen == [1, 3, 4, 5, 6]
    assert [row["simulated"] for row in started.records.parts(after=4)] == [1, 0]

    async def write(work: Callable[[], Any]) -> Any:
        return work()

    front: Any = SimpleNamespace(records=started.records, write=write)
    commands = PageCommands(front, SimpleNamespace(), lambda: None, started.unseen)  # type: ignore[arg-type]
    assert asyncio.run(commands.change("seen", {"id": 4}, SimpleNamespace(name="anna"))) == {"seen": 3}  # type: ignore[arg-type]
    assert commands.unseen == [5, 6]
    started.records.close()
    started.unlock()
    again = start_records(records.path)
    assert again.unseen == [5, 6] and again.records.unseen(limit=1) == [6]
    again.records.close()
    again.unlock()


def test_damaged_records_are_said_in_one_line_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    records = Records(path)
    for number in range(1, 200):
        accept(records, number)
    (root,) = records._db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'parts'").fetchone()
    records.close()
    data = bytearray(path.read_bytes())
    data[(root - 1) * PAGE : root * PAGE] = b"\xa5" * PAGE
    path.write_bytes(data)
    for _ in range(2):  # the lock is let go
        with pytest.raises(VisionADError, match=r"records .*records\.sqlite are damaged: .*; put the file aside"):
            start_records(path)
    path.unlink()
    started = start_records(path)
    started.records.close()
    started.unlock()
