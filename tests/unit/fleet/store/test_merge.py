"""What two sides remember of missed defects is merged as their supports are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from visionad_runtime.fleet.store.merge import merge
from visionad_runtime.formats.manifest import ClassEntry, KnownDefect, SupportImage


def entry(defects: Sequence[str] = (), supports: Sequence[str] = ("a",), threshold: float | None = 0.5) -> ClassEntry:
    known = tuple(
        KnownDefect(sha256=d, source=d, tokens=d, cells=1, created="2026-12-01T00:00:00+00:00") for d in defects
    )
    images = tuple(SupportImage(sha256=s, source=s, tokens=s) for s in supports)
    return ClassEntry(images=images, threshold=threshold, defects=known or None)


@pytest.mark.parametrize(
    "base, local, remote, expected",
    [
        (["x"], ["x", "y"], ["x", "z"], ["x", "z", "y"]),
        ([], ["y"], ["z"], ["z", "y"]),
        (["x"], [], ["x", "z"], ["z"]),
        (["x", "y"], ["x"], ["y"], []),
    ],
)
@pytest.mark.parametrize("supports", [("a",), ("a", "b")], ids=["the same supports", "other supports"])
def test_remembered_defects_are_merged(
    base: list[str], local: list[str], remote: list[str], expected: list[str], supports: tuple[str, ...]
) -> None:
    merged = merge({"disc": entry(base)}, {"disc": entry(local)}, {"disc": entry(remote, supports, 0.7)})
    disc = merged.classes["disc"]
    assert [one.tokens for one in disc.defects or ()] == expected
    assert [one.tokens for one in disc.images] == list(supports)
    assert disc.threshold is None and "thresholds are dropped" in merged.notes[0]
