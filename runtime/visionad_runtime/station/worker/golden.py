"""Golden parts: images of known good and known bad parts that are inspected to prove the software of a station.

Stored images prove model, bank, thresholds and the computer. Only real parts under the camera prove light, lens and position.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import VisionADError
from ...images import decode
from ...images.discover import find_images
from ..front.cycle import ANOMALOUS, OK
from ..records.shifts import shift_of
from ..settings import GoldenParts, Shifts

log = logging.getLogger("visionad")

Judge = Callable[[str, NDArray[np.uint8]], tuple[int, str]]
"""Camera and uint8 pixels → evaluation and reason."""


class GoldenImage(NamedTuple):
    """An image of a known part.

    Attributes:
        path: of the file.
        name: path below the folder of golden parts.
        camera: whose class it is inspected with.
        is_good: whether the part is good.
    """

    path: Path
    name: str
    camera: str
    is_good: bool


def golden_images(settings: GoldenParts, number: int, cameras: Sequence[str]) -> list[GoldenImage]:
    """Return the golden parts of a recipe, good ones first, by name.

    They lie in ``folder/NUMBER/good`` and ``folder/NUMBER/bad``, or without a folder of that number in ``folder/good`` and
    ``folder/bad``. An image in a subfolder with a camera's name is inspected with that camera's class, any other with that of the
    recipe's first camera.

    Args:
        settings: the folder.
        number: of the recipe.
        cameras: names of the recipe's cameras.

    Raises:
        VisionADError: There is no good image, or no bad one.
    """
    own = settings.folder / str(number)
    base = own if own.is_dir() else settings.folder
    found = []
    for word in ("good", "bad"):
        folder = base / word
        if not folder.is_dir():
            raise VisionADError(f"golden parts of recipe {number}: expected a folder {folder} with images, got none")
        for file in find_images([folder]):
            camera = file.name.parts[0] if file.name.parts[0] in cameras else cameras[0]
            name = file.path.relative_to(settings.folder).as_posix()
            found.append(GoldenImage(file.path, name, camera, word == "good"))
    return found


class GoldenRun:
    """One run over the golden parts of a recipe, in the worker, an image at a time.

    Args:
        settings: the folder.
        number: of the recipe.
        cameras: names of the recipe's cameras.
    """

    def __init__(self, settings: GoldenParts, number: int, cameras: Sequence[str]) -> None:
        self.number = number
        self.findings: list[dict[str, Any]] = []
        self._waiting: deque[GoldenImage] = deque()
        try:
            self._waiting.extend(golden_images(settings, number, cameras))
        except VisionADError as exc:
            self.findings.append({"image": "", "expected": "", "got": str(exc), "right": False})

    @property
    def is_done(self) -> bool:
        """Whether no image waits."""
        return not self._waiting

    def step(self, judge: Judge) -> None:
        """Judge the next image. A good part is right if it is ok, a bad one only if it is anomalous."""
        one = self._waiting.popleft()
        expected = "ok" if one.is_good else "anomalous"
        try:
            evaluation, reason = judge(one.camera, decode.load(one.path))
        except Exception as exc:  # the worker must live on, or it would be started and fail for ever
            if not isinstance(exc, VisionADError):
                log.exception("golden part %s", one.path)
            self.findings.append({"image": one.name, "expected": expected, "got": str(exc), "right": False})
            return
        got = {OK: "ok", ANOMALOUS: "anomalous"}.get(evaluation, f"not decidable ({reason})")
        self.findings.append({"image": one.name, "expected": expected, "got": got, "right": got == expected})


class GoldenSchedule:
    """When golden parts are due, in the front. It has no clock and sends nothing.

    Args:
        settings: when they are due.
        shifts: time zone and starts.
        last_passed: when they were last all right; ``None`` if never.
    """

    def __init__(self, settings: GoldenParts, shifts: Shifts, last_passed: datetime | None) -> None:
        self._settings, self._shifts, self._last_passed = settings, shifts, last_passed
        self.due = ""
        """Why they are due; empty if they are not."""
        self.who = ""
        """Who started the run that is under way; empty without one."""
        self.wrong: list[str] = []
        """What was wrong in the last run."""
        self._failed = False
        self._recipe, self._shift, self._told = 0, "", ""

    @property
    def may_start(self) -> bool:
        """Whether a run should be started by itself. After a wrong one, a person or a new reason starts the next."""
        return bool(self.due) and not self.who and not self._failed

    def look(self, now: datetime, recipe: int) -> bool:
        """Find out what is due by now. Return whether the reason is new since the last call.

        Args:
            now: with a time zone.
            recipe: number of the prepared recipe; 0 without one.
        """
        if "shift" in self._settings.due:
            shift = shift_of(self._shifts, now)
            if (self._last_passed is None or self._last_passed < shift.start) and self._shift != shift.name:
                self._shift = shift.name
                self._set(f"shift {shift.name} has begun")
        if recipe and recipe != self._recipe:
            if "recipe" in self._settings.due:
                self._set(f"the recipe is now {recipe}")
            self._recipe = recipe
        is_new = bool(self.due) and self.due != self._told
        self._told = self.due
        return is_new

    def restarted(self) -> None:
        """A worker has started: model and bank were opened anew."""
        self.who = ""
        if "restart" in self._settings.due:
            self._set("the station has started")

    def abandoned(self) -> None:
        """The run that was under way has ended without a result, for a change of the recipe."""
        self.who = ""

    def finished(self, findings: Sequence[dict[str, Any]], now: datetime) -> bool:
        """A run has ended. Return whether every image was judged rightly."""
        self.who = ""
        self.wrong = [describe(finding) for finding in findings if not finding["right"]]
        self._failed = bool(self.wrong)
        if not self._failed:
            self.due, self._last_passed = "", now
        return not self._failed

    def facts(self) -> dict[str, Any]:
        """Return what ``GET /health`` says."""
        return {
            "due": self.due,
            "running": bool(self.who),
            "wrong": self.wrong,
            "last_passed": None if self._last_passed is None else self._last_passed.isoformat(timespec="seconds"),
        }

    def _set(self, why: str) -> None:
        self.due, self._failed = why, False


def describe(finding: dict[str, Any]) -> str:
    """Return a wrong finding in words."""
    if not finding["image"]:
        return str(finding["got"])
    return f"{finding['image']}: expected {finding['expected']}, got {finding['got']}"
