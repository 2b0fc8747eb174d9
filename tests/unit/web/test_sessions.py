"""What a request tells the front of itself."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the page needs the extra page")

from visionad_runtime.web.station.link import Answer
from visionad_runtime.web.station.sessions import Caller


def test_a_repeated_upload_is_known_by_its_bytes() -> None:
    """The front compares what is sent with one key, and need not read images for it."""
    asked: list[dict[str, Any]] = []

    class Link:
        async def ask(self, command: str, blobs: tuple[bytes, ...] = (), **values: Any) -> Answer:
            asked.append(values)
            return Answer({}, [])

    app = SimpleNamespace(state=SimpleNamespace(link=Link()))
    request: Any = SimpleNamespace(app=app, cookies={}, headers={"idempotency-key": "k"})
    for data in (b"one", b"one", b"two"):
        asyncio.run(Caller(request).send("draft_add", {"class": "disc"}, (data,)))
    first, again, other = (one["content"] for one in asked)
    assert first == again != other
