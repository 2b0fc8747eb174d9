"""A pipeline that keeps what a replay needs again: which tokens belong to an image, and each patch's distance to each support.

The distance to a bank is the smallest of the distances to its supports, each rounded from the score of one pair of rows. So it has
the same bits, whichever of these distances were kept and whichever other supports a bank has. A draft of a bank that adds one
support costs the search of that support.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from .._release import __version__
from ..bank.memory_bank import MemoryBank
from ..engine.base import Tokens
from ..formats.manifest import FeatureIdentity, ViewName
from ..pipeline.bank_search import raised
from ..pipeline.base import StageTimer
from ..pipeline.host import HostPipeline
from ..preprocess import view_slice
from ..scoring.score import SearchBank
from ..scoring.spec import ScoringSpec
from ..search import nearest
from ..system import package_version
from .kept_tokens import KeptTokensEngine

F32 = NDArray[np.float32]

IMAGES, DISTANCES = "images", "distances"
"""Folders of the kept tokens' folder: names of an image's tokens, and distances of tokens."""


class _Part(NamedTuple):
    """Rows of one support, or of all remembered defects, in one view.

    Attributes:
        name: digest of the rows.
        rows: float32 (N, D), unit rows.
    """

    name: str
    rows: F32


class KeptPipeline(HostPipeline):
    """Pipeline on the CPU around kept tokens.

    Files are named by digests of what they stand for: pixels, model and way to compute; tokens; rows. A file that is damaged or
    cannot be written costs time only.
    """

    def __init__(
        self, engine: KeptTokensEngine, identity: FeatureIdentity, scoring: ScoringSpec, *, threads: int | None = None
    ) -> None:
        super().__init__(engine, identity, scoring, threads=threads)
        self._kept = engine
        self._parts = weakref.WeakKeyDictionary[MemoryBank, dict[ViewName, tuple[list[_Part], _Part | None]]]()
        # What decides the prepared image beside the pixels and the model: this package, and Pillow, which resizes.
        views = " ".join(scoring.views)
        self._way = engine.key + f"{__version__} {package_version('pillow')} {views}\n".encode()

    def _encode(
        self, rgbs: Sequence[NDArray[np.uint8]], class_token: bool, trace: bool, timer: StageTimer
    ) -> tuple[F32 | None, Tokens]:
        """See :class:`HostPipeline`. With ``trace`` images are prepared anew."""
        paths = [self._path(IMAGES, self._way + repr(rgb.shape).encode(), rgb, ".txt") for rgb in rgbs]
        names = [] if trace else [name for path in paths for name in _read_names(path, len(self.scoring.views))]
        timer.mark("preprocess")
        tokens = None
        if len(names) == len(paths) * len(self.scoring.views):
            tokens = self._kept.read_named(names, class_token)
        if tokens is not None:
            timer.mark("engine")
            return None, tokens
        images = self._prepare(rgbs)
        timer.mark("preprocess")
        rows = images.reshape(-1, *images.shape[2:])
        names = self._kept.names(rows)
        tokens = self._kept.encode_named(rows, names, class_token)
        views = len(self.scoring.views)
        for i, path in enumerate(paths):
            _write(path, "\n".join(names[i * views : (i + 1) * views]).encode())
        timer.mark("engine")
        return images if trace else None, tokens

    def _search(self, bank: MemoryBank) -> SearchBank:
        """See :class:`HostPipeline`. It searches each support whose distances are not kept."""

        def search(view: ViewName, tokens: F32) -> F32:
            supports, defects = self._parts_of(bank, view)
            path = self._path(DISTANCES, b"", tokens, ".safetensors")
            kept = _read_distances(path, len(tokens))
            parts = supports if defects is None else [*supports, defects]
            missing = [(number, part) for number, part in enumerate(parts) if part.name not in kept]
            for number, part in missing:
                index = self.index.index_for(bank, f"{view} {number}", part.rows, tokens)
                kept[part.name] = nearest(tokens, index, threads=self._threads).distance
            if missing:
                _write(path, save_tensors(kept))
            good: F32 = np.minimum.reduce([kept[part.name] for part in supports])
            return good if defects is None else raised(good, kept[defects.name])

        return search

    def _parts_of(self, bank: MemoryBank, view: ViewName) -> tuple[list[_Part], _Part | None]:
        """Return the rows of a bank in a view: those of each support, and those of remembered defects."""
        known = self._parts.setdefault(bank, {})
        if view not in known:
            blocks = view_slice(bank.blocks, view)
            features, tiles = bank.features[blocks], bank.tiles
            places = range(0, features.shape[1], tiles)
            supports = [_part(features[:, first : first + tiles]) for first in places]
            known[view] = supports, None if bank.defects is None else _part(bank.defects[blocks])
        return known[view]

    def _path(self, kind: str, key: bytes, array: NDArray[np.generic], suffix: str) -> Path:
        name = _digest(array, key)
        return self._kept.folder / kind / name[:2] / f"{name}{suffix}"


def _part(rows: F32) -> _Part:
    flat = np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]))
    return _Part(_digest(flat), flat)


def _digest(array: NDArray[np.generic], key: bytes = b"") -> str:
    digest = hashlib.blake2b(key, digest_size=20)  # on most CPUs in a third of sha256's time
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_names(path: Path, count: int) -> list[str]:
    """Return the names of an image's tokens; none if they are not kept."""
    try:
        names = path.read_text("ascii").split("\n")
    except (OSError, ValueError):
        return []
    whole = len(names) == count and all(len(name) == 64 and name.isalnum() for name in names)
    return names if whole else []


def _read_distances(path: Path, count: int) -> dict[str, F32]:
    """Return the kept distances of an image's patches by name of the rows."""
    try:
        tensors: Mapping[str, F32] = load_tensors(path.read_bytes())
    except (OSError, SafetensorError, ValueError):
        return {}
    return {name: d for name, d in tensors.items() if d.shape == (count,) and d.dtype == np.float32}


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, without waiting for the disk: it can be computed again."""
    part = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
