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
