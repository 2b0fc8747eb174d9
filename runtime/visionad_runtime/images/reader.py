"""Read image files in order, the next ones ahead in threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from ..errors import ImageError
from .decode import load
from .pixels import RGB8

READERS, AHEAD_BYTES = 4, 64 << 20
"""How many images are read ahead at most, each in a thread of its own, and how many bytes they may hold together, judged by the
size of the image read last. So very large images are not read ahead."""


class Read(NamedTuple):
    """An image file: its image, or why there is none, and the milliseconds that took."""

    path: Path
    rgb: RGB8 | None
    error: ImageError | None
    ms: float


def read_all(paths: Iterable[Path], bit_depth: int | None = None, readers: int = 1) -> Generator[Read, None, None]:
    """:func:`load` each, in order.

    Args:
        paths: a list is read ahead while the caller works on the images it has. An iterator is not: its next path may not exist
            yet, so it is asked for one path at a time, when that one is needed.
        readers: threads that read ahead, at most :data:`READERS`.
    """
    if readers < 2 or not isinstance(paths, Sequence):
        for path in paths:
            yield _read(path, bit_depth)
        return
    left, ahead = deque(paths), deque[Future[Read]]()
    pool = ThreadPoolExecutor(min(readers, READERS), "visionad-read")
    try:
        while left or ahead:
            one = ahead.popleft().result() if ahead else _read(left.popleft(), bit_depth)
            most = min(readers, READERS, AHEAD_BYTES // (1 if one.rgb is None else one.rgb.nbytes))
            while left and len(ahead) < most:
                ahead.append(pool.submit(_read, left.popleft(), bit_depth))
            yield one
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: Path, bit_depth: int | None) -> Read:
    start = time.perf_counter()
    rgb, error = None, None
    try:
        rgb = load(path, bit_depth)
    except ImageError as exc:
        error = exc
    return Read(path, rgb, error, (time.perf_counter() - start) * 1e3)
