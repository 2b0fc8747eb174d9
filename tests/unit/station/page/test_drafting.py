"""Changes of what the line judges by, as the front does them for the page: who may, and what is audited."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from visionad_runtime.station.page.commands import ROLES_OF
from visionad_runtime.station.page.drafting import Drafting


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
    drafting = Drafting(front, teacher, audit)
    rgb = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    sent = {"class": "gear", "shape": [2, 3, 3], "name": "a.png"}
    assert asyncio.run(drafting.change("version_add", sent, "anna", [rgb.tobytes()])) == {"version": 5, "class": "gear"}
    ((command, name, pixels, source),) = asked
    assert (command, name, source) == ("enroll", "gear", "file a.png") and np.array_equal(pixels, rgb)
    new = {"version": 5, "class": "gear", "source": "file a.png"}
    assert audited == [("anna", "part enrolled", {"version": 4}, new)]
    assert ROLES_OF["version_add"] == ("setter",)
