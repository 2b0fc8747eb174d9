"""Changes of what the line judges by, as the front does them for the page: on which parts, who may, and what is audited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from visionad_runtime.station.page import drafting
from visionad_runtime.station.page.commands import ROLES_OF
from visionad_runtime.station.page.drafting import Drafting
from visionad_runtime.station.records.image_names import image_name
from visionad_runtime.station.records.records import Records

from tests.fakes.line import outcome


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    found = Records(tmp_path / "records.sqlite")
    yield found
    found.close()


class Side:
    """A front and a teaching process in one, and the audit."""

    def __init__(self, records: Records) -> None:
        recipe = SimpleNamespace(bank_version=None)
        self.station = SimpleNamespace(settings=SimpleNamespace(recipes={1: recipe}))
        self.state = SimpleNamespace(recipe=1)
        self.facts = {"bank_version": 7}  # what the worker has loaded
        self.records, self.asked = records, [("", ())]
        self.version = 7
        self.audited: list[tuple[Any, ...]] = []
        self.drafting = Drafting(self, self, self.audit)  # type: ignore[arg-type]

    async def write(self, work: Callable[[], Any]) -> Any:
        return work()

    async def ask(self, command: str, *values: Any) -> Any:
        self.asked.append((command, values))
        if command in ("version_back", "live"):
            self.version += 1
            return {"version": self.version, "class": values[0]}
        return {"collecting": False, "class_name": values[0]}

    async def audit(self, *row: Any) -> None:
        self.audited.append(row)

    def change(self, command: str, **values: Any) -> Any:
        return asyncio.run(self.drafting.change(command, values, "anna", []))


def keep(records: Records, number: int, name: str, cameras: tuple[str, ...] = ("top",)) -> None:
    one = outcome(number)
    records.complete([replace(one, cameras={camera: {**one.cameras["top"], "class": name} for camera in cameras})])
    records.add_archived(number, [f"/archive/{image_name(number, True, camera)}" for camera in cameras])


def test_a_class_that_comes_rarely_is_tried_on_its_own_newest_parts(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafting, "EFFECT_PARTS", 3)
    monkeypatch.setattr(drafting, "READ_AT_ONCE", 4)
    rare = (1, 2, 5, 9, 30)
    for number in range(1, 41):
        keep(records, number, "rare" if number in rare else "gear", ("top", "side") if number == 9 else ("top",))
    records.add_review(5, "anna", False)
    side = Side(records)
    side.change("draft_effect", **{"class": "rare", "version": 1})
    (_, (_, _, parts)) = side.asked[-1]
    assert [part for part, *_ in parts] == [5, 9, 9, 30]  # three parts, one of them with two images
    assert [good for *_, good in parts] == [False, None, None, None]
    side.change("draft_effect", **{"class": "nothing", "version": 1})
    assert side.asked[-1][1][2] == []


def test_the_audit_names_the_version_that_was_in_force(records: Records) -> None:
    side = Side(records)
    side.change("version_back", **{"class": "gear", "version": 3})
    side.change("version_back", **{"class": "gear", "version": 2})  # before the worker has loaded the first
    side.change("draft_live", **{"class": "gear", "version": 1})
    assert [(old["version"], new["version"]) for _, _, old, new in side.audited] == [(7, 8), (8, 9), (9, 10)]
    assert [new.get("as in version") for *_, new in side.audited] == [3, 2, None]


def test_a_part_that_is_sent_is_enrolled_and_audited(tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []
    audited: list[tuple[Any, ...]] = []

    async def ask(*values: Any) -> Any:
        asked.append(values)
        return {"version": 5, "class": "gear"}

    async def audit(*values: Any) -> None:
        audited.append(values)

    front: Any = SimpleNamespace(facts={"bank_version": 4})
    teacher: Any = SimpleNamespace(ask=ask)
    changes = Drafting(front, teacher, audit)
    rgb = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    sent = {"class": "gear", "shape": [2, 3, 3], "name": "a.png"}
    assert asyncio.run(changes.change("version_add", sent, "anna", [rgb.tobytes()])) == {"version": 5, "class": "gear"}
    ((command, name, pixels, source),) = asked
    assert (command, name, source) == ("enroll", "gear", "file a.png") and np.array_equal(pixels, rgb)
    new = {"version": 5, "class": "gear", "source": "file a.png"}
    assert audited == [("anna", "part enrolled", {"version": 4}, new)]
    assert ROLES_OF["version_add"] == ("setter",)
