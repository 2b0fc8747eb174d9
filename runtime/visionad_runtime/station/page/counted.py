"""What the metrics of the page count of a part."""

from __future__ import annotations

from typing import Any

from ..sink import Outcome


def counted(outcome: Outcome) -> list[dict[str, Any]]:
    """Return what is counted of the image of each camera, JSON types. A camera that gave no result has none."""
    return [
        {
            **{key: facts.get(key) for key in ("class", "verdict", "score", "threshold", "timings_ms")},
            "promise_void": None if facts.get("promise") is None else facts["promise"]["void"],
        }
        for facts in outcome.cameras.values()
        if "verdict" in facts
    ]
