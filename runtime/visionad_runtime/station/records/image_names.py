"""Names of archived images: part, whether it was ok, camera. The archive writes them; who shows or teaches a part reads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_NAME = re.compile(r"\d+-(?:not-ok|ok)-(?P<camera>.+)")


def image_name(part: int, good: bool, camera: str) -> str:
    """Return the name of a part's archived image.

    Args:
        part: number in the records.
        good: whether the part was ok.
        camera: that took the image.
    """
    return f"{part:010d}-{'ok' if good else 'not-ok'}-{camera}.png"


def by_camera(paths: Iterable[str]) -> dict[str, str]:
    """Return the archived images of one part: camera → path. A file of another name is left out."""
    found = {}
    for path in paths:
        match = _NAME.fullmatch(Path(path).stem)
        if match is not None:
            found[match["camera"]] = path
    return found
