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

PREFETCH_THREADS, PREFETCH_BYTES = 4, 64 << 20
"""How many images are read ahead at most, each in a thread of its own, and how many bytes they may hold together, judged by the
size of the image read last. So very large images are not read ahead."""


class LoadedImage(NamedTuple):
    """An image file: its image, or why there is none, and the milliseconds that took."""

    path: Path
    rgb: RGB8 | None
    error: ImageError | None
    ms: float


def read_images(
    paths: Iterable[Path], bit_depth: int | None = None, readers: int = 1
) -> Generator[LoadedImage, None, None]:
    """:func:`load` each, in order.

    Args:
        paths: a list is read ahead while the caller works on the images it has. An iterator is not: its next path may not exist
            yet, so it is asked for one path at a time, when that one is needed.
        readers: threads that read ahead, at most :data:`PREFETCH_THREADS`.
    """
    if readers < 2 or not isinstance(paths, Sequence):
        for path in paths:
            yield _read(path, bit_depth)
        return
    left, ahead = deque(paths), deque[Future[LoadedImage]]()
    pool = ThreadPoolExecutor(min(readers, PREFETCH_THREADS), "visionad-read")
    try:
        while left or ahead:
            one = ahead.popleft().result() if ahead else _read(left.popleft(), bit_depth)
            most = min(readers, PREFETCH_THREADS, PREFETCH_BYTES // (1 if one.rgb is None else one.rgb.nbytes))
            while left and len(ahead) < most:
                ahead.append(pool.submit(_read, left.popleft(), bit_depth))
            yield one
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: Path, bit_depth: int | None) -> LoadedImage:
    start = time.perf_counter()
    rgb, error = None, None
    try:
        rgb = load(path, bit_depth)
    except ImageError as exc:
        error = exc
    return LoadedImage(path, rgb, error, (time.perf_counter() - start) * 1e3)
