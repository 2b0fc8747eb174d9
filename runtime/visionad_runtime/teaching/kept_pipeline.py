"""A pipeline that keeps what a replay needs again: which tokens belong to an image, and each patch's distance to each support.

The distance to a bank is the smallest of the distances to its supports, each rounded from the score of one pair of rows. So it has
the same bits, whichever of these distances were kept and whichever other supports a bank has. A draft of a bank that adds one
support costs the search of that support.
"""

from __future__ import annotations

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
from ..errors import VisionADError
from ..formats.manifest import FeatureIdentity, ViewName
from ..pipeline.bank_search import raised
from ..pipeline.base import StageTimer
from ..pipeline.host import Encoded, HostPipeline
from ..preprocess import view_slice
from ..scoring.score import SearchBank
from ..scoring.spec import ScoringSpec
from ..search import nearest
from ..system import package_version
from .kept_images import digest, image_digest, pixels_of, write_cached
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

    Files are named by digests of what they stand for: pixels, model and way to compute; the prepared image of the tokens. Distances
    are named by the rows. A file that is damaged or cannot be written costs time only.
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

    def _encode(self, rgbs: Sequence[NDArray[np.uint8]], class_token: bool, trace: bool, timer: StageTimer) -> Encoded:
        """See :class:`HostPipeline`. Images whose tokens are kept are not prepared, unless ``trace`` asks for them."""
        views = len(self.scoring.views)
        paths = [self._path(IMAGES, digest(self._way + image_digest(rgb).encode()), ".txt") for rgb in rgbs]
        names = [name for path in paths for name in _read_names(path, views)]
        timer.mark("preprocess")
        tokens, images = None, None
        if len(names) == len(rgbs) * views and not trace:
            tokens = self._kept.read_named(names, class_token)
        if tokens is None:
            images = self._prepare([pixels_of(rgb) for rgb in rgbs])
            timer.mark("preprocess")
            rows, before = images.reshape(-1, *images.shape[2:]), self._kept.computed
            names = self._kept.names(rows)
            tokens = self._kept.encode_named(rows, names, class_token)
            if self._kept.computed > before:  # another machine may have computed those that were kept
                for name in names:
                    _remove(self._path(DISTANCES, name, ".safetensors"))
            for i, path in enumerate(paths):
                write_cached(path, "\n".join(names[i * views : (i + 1) * views]).encode())
        timer.mark("engine")
        each = [names[i * views : (i + 1) * views] for i in range(len(rgbs))]
        return Encoded(images if trace else None, tokens, each)

    def _search(self, bank: MemoryBank, names: Sequence[str]) -> SearchBank:
        """See :class:`HostPipeline`. It searches each support whose distances are not kept."""
        files = {
            view: self._path(DISTANCES, name, ".safetensors")
            for view, name in zip(self.scoring.views, names, strict=True)
        }

        def search(view: ViewName, tokens: F32) -> F32:
            supports, defects = self._parts_of(bank, view)
            kept = _read_distances(files[view], len(tokens))
            parts = supports if defects is None else [*supports, defects]
            missing = [(number, part) for number, part in enumerate(parts) if part.name not in kept]
            for number, part in missing:
                index = self.index.index_for(bank, f"{view} {number}", part.rows, tokens)
                kept[part.name] = nearest(tokens, index, threads=self._threads).distance
            if missing:
                write_cached(files[view], save_tensors(kept))
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

    def _path(self, kind: str, name: str, suffix: str) -> Path:
        return self._kept.folder / kind / name[:2] / f"{name}{suffix}"


def _part(rows: F32) -> _Part:
    flat = np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]))
    return _Part(digest(b"", flat.data), flat)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:  # nothing can be kept there
        pass
    except OSError as exc:
        raise VisionADError(
            f"{path} belongs to older tokens and cannot be removed: {exc.strerror}; remove it"
        ) from None


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
