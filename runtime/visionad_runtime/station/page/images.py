"""Images that the page shows: the newest parts' frames, kept in the worker and encoded off the judging path."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ...result import Result
from ...scoring.anomaly_map import MAP_SIZE
from ..front.cycle import Job

KEPT = 30
"""Parts whose images stay in memory."""
MAX_BYTES = 600_000_000
"""Of all kept images."""
LONGEST_SIDE = 1280
"""Of an image that the page shows, in pixels."""
JPEG_QUALITY = 80
MAX_WAITING = 4
"""Parts that wait for their encoding. Beyond that, a part has no image: the front does not wait for it for long."""


class JudgedCamera(Protocol):
    """What the page needs of a judged camera: its evaluation, uint8 pixels or ``None``, and the result or ``None``."""

    @property
    def evaluation(self) -> int: ...

    @property
    def rgb(self) -> NDArray[np.uint8] | None: ...

    @property
    def result(self) -> Result | None: ...


class KeptImages:
    """The images of the newest parts.

    Args:
        say: called with ``("images", part, [facts])``, where facts have the keys ``camera, width, height, crop, jpeg, heat``.
    """

    def __init__(self, say: Callable[..., object]) -> None:
        self._say = say
        self._kept: OrderedDict[int, tuple[Job, Mapping[str, JudgedCamera]]] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, "visionad-page-images")
        self._lock = threading.Lock()
        self._waiting = 0
        self._watched = False

    def watch(self, watched: bool) -> None:
        """Begin or end to encode each part's images. Nobody looks at most of them, so nothing is encoded then."""
        self._watched = watched

    def keep(self, job: Job, judged: Mapping[str, JudgedCamera]) -> None:
        """Keep a part's images, from before its result is told: whoever hears of it may ask for them. Returns at once."""
        with self._lock:
            self._kept[job.id] = (job, judged)
            size = sum(_size(one) for _, one in self._kept.values())
            while len(self._kept) > 1 and (len(self._kept) > KEPT or size > MAX_BYTES):
                size -= _size(self._kept.popitem(last=False)[1][1])

    def show(self, part: int) -> None:
        """Encode a part's images if someone looks. Returns at once."""
        if self._watched and self._waiting < MAX_WAITING:
            self.send(part)

    def send(self, part: int) -> None:
        """Encode the images of a part, and send them; none if they are not kept any more."""
        self._waiting += 1
        self._pool.submit(self._encode, part)

    def kept(self, part: int) -> tuple[Job, Mapping[str, JudgedCamera]] | None:
        """Return what is kept of a part; ``None`` if it is gone."""
        with self._lock:
            return self._kept.get(part)

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, part: int) -> None:
        try:
            found = self.kept(part)
            judged = {} if found is None else found[1]
            shown = [
                shown_image(name, one.rgb, one.result) for name, one in judged.items() if name and one.rgb is not None
            ]
        except Exception:
            shown = []  # an image that cannot be encoded must not end the thread; the part is told without it
        finally:
            self._waiting -= 1
        self._tell(part, shown)

    def _tell(self, part: int, shown: list[dict[str, Any]]) -> None:
        with suppress(OSError):  # the front is gone
            self._say("images", part, shown)


def shown_image(camera: str, rgb: NDArray[np.uint8], result: Result | None) -> dict[str, Any]:
    """Return an image as the page shows it.

    Args:
        camera: name of the camera.
        rgb: uint8 (H, W, 3) RGB or (H, W) gray.
        result: of its inspection.

    Returns:
        ``camera``; ``width`` and ``height`` of the original; ``crop``: x, y, width, height of the inspected area in original
        pixels, ``None`` without a result; ``jpeg``: bytes, at most :data:`LONGEST_SIDE` pixels long; ``heat``: PNG, 8 bits gray,
        256 x 256
        over the crop, from 0 at the low end of the class's scale to 255 at its high end; empty without a result.
    """
    height, width = rgb.shape[:2]
    scale = LONGEST_SIDE / max(height, width)
    small = rgb if scale >= 1 else cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    small = np.ascontiguousarray(small if small.ndim == 3 else small[..., None])
    space = "RGB" if small.shape[2] == 3 else "GRAY"
    facts: dict[str, Any] = {"camera": camera, "width": width, "height": height, "crop": None, "heat": b""}
    facts["jpeg"] = simplejpeg.encode_jpeg(small, quality=JPEG_QUALITY, colorspace=space)
    if result is not None:
        left, top = result.geometry.to_original(0, 0)
        right, bottom = result.geometry.to_original(MAP_SIZE, MAP_SIZE)
        facts["crop"] = [float(left), float(top), float(right - left), float(bottom - top)]
        low, high = result.map_scale
        levels = np.clip((result.anomaly_map - low) / max(high - low, 1e-9), 0, 1) * 255
        done, data = cv2.imencode(".png", levels.astype(np.uint8), (cv2.IMWRITE_PNG_COMPRESSION, 1))
        facts["heat"] = data.tobytes() if done else b""
    return facts


def _size(judged: Mapping[str, JudgedCamera]) -> int:
    return sum(one.rgb.nbytes for one in judged.values() if one.rgb is not None)
