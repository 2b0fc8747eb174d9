"""Commands of the page that the station refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from visionad_runtime.station.page.commands import PageCommands
from visionad_runtime.station.page.users import Refused
from visionad_runtime.station.records.records import Records

from tests.fakes.line import outcome


def test_a_part_that_is_not_there_cannot_be_reviewed(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.sqlite")
    records.complete([outcome(1)])

    async def write(work: Callable[[], Any]) -> Any:
        return work()

    front: Any = SimpleNamespace(records=records, write=write)
    commands = PageCommands(front, SimpleNamespace(), lambda: None)  # type: ignore[arg-type]
    session: Any = SimpleNamespace(name="anna")

    def review(part: int) -> Any:
        return asyncio.run(commands.change("review", {"id": part, "good": True, "note": ""}, session))

    assert review(1) == {"id": 1, "good": True, "who": "anna"}
    with pytest.raises(Refused, match="there is no part 999") as refused:
        review(999)
    assert refused.value.code == "no_part"  # 404
    assert records.reviews_of(1, 999) == {1: True}
    records.close()


class Line:
    """A front whose worker has the images of part 7, and can write them or not."""

    def __init__(self, folder: Path) -> None:
        self.records = Records(folder / "records.sqlite")
        self.station: Any = SimpleNamespace(settings=SimpleNamespace(archive=True))
        self.why = ""
        self.folder = folder

    async def write(self, work: Callable[[], Any]) -> Any:
        return work()

    async def ask_worker(self, command: str, part: int) -> Any:
        assert command == "keep"
        if part != 7:
            raise Refused("not_in_memory", f"the images of part {part} are not in memory any more")
        if self.why:
            raise Refused("not_kept", self.why)
        return True

    def keep(self, part: int) -> Any:
        commands = PageCommands(self, SimpleNamespace(), lambda: None)  # type: ignore[arg-type]
        return asyncio.run(commands.change("keep", {"id": part}, SimpleNamespace(name="anna")))  # type: ignore[arg-type]

    def audited(self) -> list[str]:
        return [row["new"] for row in self.records.audit_rows()]


def test_only_what_lies_in_the_archive_is_called_kept(tmp_path: Path) -> None:
    line = Line(tmp_path)
    line.records.complete([outcome(5), outcome(6), outcome(7)])
    image = tmp_path / "0000000005-ok-top.png"
    image.write_bytes(b"")
    line.records.add_archived(5, [str(image)])
    for part, code in ((9_999_999, "no_part"), (6, "not_in_memory")):
        with pytest.raises(Refused) as refused:
            line.keep(part)
        assert refused.value.code == code
    assert line.keep(5) == {"id": 5}  # by a rule of the archive, long ago
    line.why = "disk full"
    with pytest.raises(Refused, match="disk full"):
        line.keep(7)
    assert line.audited() == []
    line.why = ""
    assert line.keep(7) == {"id": 7}
    assert line.audited() == ['{"part": 7}']
    image.unlink()  # by the archive's limits
    with pytest.raises(Refused):
        line.keep(5)
    line.records.close()
