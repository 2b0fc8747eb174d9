"""Archive of images: written aside by a thread of the worker, never in the line's way; deleted by age, size and free space."""

from __future__ import annotations

import logging
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import VisionADError
from ...formats.files import atomic_write
from ..front.cycle import OK, Job
from ..records.image_names import image_name
from ..settings import Archive

log = logging.getLogger("visionad")

MAX_QUEUE = 32
"""Parts whose images wait to be written. With more, images of ok parts are dropped first, and counted."""
CLEAN_SECONDS = 10.0
"""Pause between two looks at the limits."""
_NAME = re.compile(r"(\d{10})-(ok|not-ok)-([A-Za-z0-9_-]+)\.png")


class JudgedCamera(Protocol):
    """What the archive needs of a judged camera: its evaluation, and uint8 pixels or ``None``."""

    @property
    def evaluation(self) -> int: ...

    @property
    def rgb(self) -> NDArray[np.uint8] | None: ...


class _Wish(NamedTuple):
    job: Job
    images: Mapping[str, NDArray[np.uint8]]
    good: bool
    then: Callable[[str], object]


class ArchiveWriter:
    """Writes images of parts below ``folder/YYYY-MM-DD``.

    Args:
        settings: which images, and the limits.
        say: called with ``("archived", part, paths)`` and ``("alarm", code, text)``.
    """

    def __init__(self, settings: Archive, say: Callable[..., object]) -> None:
        self._settings, self._say = settings, say
        self._queue: queue.Queue[_Wish | None] = queue.Queue()
        self._counts = {"ok": 0, "not_ok": 0}
        self.dropped = 0
        self._failing = False
        self._cleaned = 0.0
        self._thread = threading.Thread(target=self._work, name="visionad-archive", daemon=True)
        self._thread.start()

    def add(self, job: Job, judged: Mapping[str, JudgedCamera]) -> None:
        """Queue the images of a part, if a rule says so. Returns at once."""
        good, images = _images(judged)
        if images and self._wanted("ok" if good else "not_ok") and not self._queued(_Wish(job, images, good, _nothing)):
            self._say("archive-dropped", self.dropped)

    def keep(self, job: Job, judged: Mapping[str, JudgedCamera], then: Callable[[str], object]) -> None:
        """Queue the images of a part, whatever the rules say. Returns at once.

        Args:
            job: of the part.
            judged: its cameras.
            then: called once with an empty text when all images lie in the archive, else with why they do not.
        """
        good, images = _images(judged)
        if not images:
            then(f"no camera gave an image of part {job.id}")
        elif not self._queued(_Wish(job, images, good, then)):
            then("too many images wait to be written")

    def close(self) -> None:
        """Write what waits, for a second at most."""
        self._queue.put(None)
        self._thread.join(1.0)

    def _queued(self, wish: _Wish) -> bool:
        is_full = self._queue.qsize() >= (MAX_QUEUE // 2 if wish.good else MAX_QUEUE)
        if is_full:
            self.dropped += 1
        else:
            self._queue.put(wish)
        return not is_full

    def _wanted(self, kind: str) -> bool:
        rule = self._settings.keep.ok if kind == "ok" else self._settings.keep.not_ok
        self._counts[kind] += 1
        if rule in ("all", "none"):
            return rule == "all"
        return self._counts[kind] % int(rule.rpartition(" ")[2]) == 1 or rule == "1 of 1"

    def _work(self) -> None:
        while (wish := self._queue.get()) is not None:
            why = ""
            try:
                self._clean()
                paths = [self._write(wish.job, camera, rgb, wish.good) for camera, rgb in wish.images.items()]
                self._failing = False
                self._say("archived", wish.job.id, [str(path) for path in paths])
            except (OSError, VisionADError) as exc:
                why = str(exc)
                self.dropped += 1
                if not self._failing:
                    self._failing = True
                    self._try_say("alarm", "disk", f"images cannot be archived: {exc}")
            except Exception as exc:
                why = f"{type(exc).__name__}: {exc}"
                log.exception("archive")
            with suppress(OSError):  # the front is gone
                wish.then(why)

    def _try_say(self, *message: Any) -> None:
        with suppress(OSError):
            self._say(*message)

    def _write(self, job: Job, camera: str, rgb: NDArray[np.uint8], good: bool) -> Path:
        folder = self._settings.folder / job.time_utc[:10]
        folder.mkdir(parents=True, exist_ok=True)
        bgr = rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(".png", bgr, (cv2.IMWRITE_PNG_COMPRESSION, 1))
        if not done:
            raise VisionADError(f"camera {camera}: its image cannot be written as PNG")
        path = folder / image_name(job.id, good, camera)
        atomic_write(path, data.tobytes())
        return path

    def _clean(self) -> None:
        """Keep the limits: delete images that are too old, then ok ones, then the rest, oldest first by number."""
        if time.monotonic() < self._cleaned + CLEAN_SECONDS:
            return
        self._cleaned = time.monotonic()
        clean(self._settings, datetime.now().timestamp())


def _images(judged: Mapping[str, JudgedCamera]) -> tuple[bool, dict[str, NDArray[np.uint8]]]:
    """Return whether a part is ok, and the images that there are of it."""
    good = all(one.evaluation == OK for one in judged.values())
    return good, {name: one.rgb for name, one in judged.items() if one.rgb is not None}


def _nothing(_: str) -> None: ...


def clean(settings: Archive, now: float) -> int:
    """Delete archived images until all limits are kept. Return how many.

    Args:
        settings: folder and limits.
        now: wall clock in seconds.
    """
    found: list[tuple[bool, int, Path, int, float]] = []
    for path in settings.folder.glob("????-??-??/*.png"):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            status = path.stat()
            found.append((match[2] == "ok", int(match[1]), path, status.st_size, status.st_mtime))
    deleted = 0

    def delete(path: Path) -> None:
        nonlocal deleted
        path.unlink(missing_ok=True)
        deleted += 1
        with suppress(OSError):
            path.parent.rmdir()  # only if it is empty

    kept = []
    for one in found:
        if now - one[4] > settings.days * 86_400:
            delete(one[2])
        else:
            kept.append(one)
    size = sum(one[3] for one in kept)
    free = shutil.disk_usage(settings.folder if settings.folder.exists() else settings.folder.parent).free
    for one in sorted(kept, key=lambda one: (not one[0], one[1])):  # ok ones first, then by number
        if size <= settings.max_gb * 1e9 and free >= settings.min_free_gb * 1e9:
            break
        delete(one[2])
        size -= one[3]
        free += one[3]
    return deleted
