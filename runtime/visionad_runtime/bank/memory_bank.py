"""The class-aware memory bank in memory (method, section 3)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats.manifest import BankManifest, ClassEntry, ViewName
from ..formats.roi import WHOLE_IMAGE, tile_counts
from ..preprocess import unrotated_index, view_slice
from .layout import Layout

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """Rows that the images of one ROI are compared with, immutable, compared and hashed by identity.

    Attributes:
        name: of the class.
        roi: name of the ROI, or ``image``.
        tiles: number of tiles T that the ROI is cut into. All of them share the rows.
        blocks: names of the B unique encodings of a support.
        features: float32 (B, K·T, P, D), unit rows: patch tokens of K supports with P patches per tile.
        defects: float32 (B, R, D), unit rows: patch tokens of remembered defects; ``None`` without any.
    """

    name: str
    roi: str
    tiles: int
    blocks: tuple[str, ...]
    features: F32
    defects: F32 | None = None

    def rows(self, view: ViewName) -> F32:
        """Return the rows that a view is searched in, float32 (6·K·T·P, D). It is a slice of ``features``, not a copy."""
        part = self.features[view_slice(self.blocks, view)]
        return part.reshape(-1, part.shape[-1])

    def rows_with_defects(self, view: ViewName) -> F32:
        """Return the rows of :meth:`rows`, then those of remembered defects. It is a copy, made once for each view.

        Raises:
            ValueError: No defect is remembered.
        """
        if self.defects is None:
            raise ValueError(f"class {self.name!r} remembers no defect")
        if view not in self._joined:
            defects = self.defects[view_slice(self.blocks, view)].reshape(-1, self.defects.shape[-1])
            self._joined[view] = np.concatenate([self.rows(view), defects])
        return self._joined[view]

    @cached_property
    def _joined(self) -> dict[ViewName, F32]:
        return {}

    def unrotated(self, support: int, views: Sequence[ViewName], tile: int = 0) -> dict[ViewName, F32]:
        """Return the patch tokens of an unrotated support, which equal those of the same image as a query.

        Args:
            support: index of the support.
            views: views to return.
            tile: index of the tile.

        Returns:
            View → float32 (P, D), unit rows.
        """
        index = support * self.tiles + tile
        return {view: self.features[unrotated_index(self.blocks, view), index] for view in views}

    def leave_out(self, support: int) -> MemoryBank:
        """Return the rows without one support.

        Args:
            support: index of the support.
        """
        first = support * self.tiles
        kept = [i for i in range(self.features.shape[1]) if not first <= i < first + self.tiles]
        return MemoryBank(self.name, self.roi, self.tiles, self.blocks, self.features[:, kept], self.defects)


class SupportTokens(NamedTuple):
    """Tokens of one support.

    Attributes:
        rois: float32 (B, T, P, D) for each region of the class, unit rows.
        class_tokens: float32 (B, Dc), unit rows, of the whole image.
    """

    rois: tuple[F32, ...]
    class_tokens: F32


class ClassBank:
    """One class in memory, immutable, compared and hashed by identity. Its tokens are read when they are first needed.

    Attributes:
        name: of the class, as stored.
        entry: its entry in the bank's manifest.
        blocks: names of the B unique encodings of a support.
    """

    def __init__(
        self,
        name: str,
        entry: ClassEntry,
        blocks: tuple[str, ...],
        supports: Sequence[SupportTokens] | Callable[[], Sequence[SupportTokens]],
        layout: Layout | Callable[[], Layout | None] | None = None,
        defects: F32 | Callable[[], F32 | None] | None = None,
    ) -> None:
        """Take a class.

        Args:
            name: as stored.
            entry: entry in the bank's manifest.
            blocks: names of the unique encodings.
            supports: tokens of the supports, or a function that reads them and raises :class:`BankError` for damaged ones.
            layout: what is inspected of an image, or a function that reads it and raises :class:`BankError`. A class whose entry
                has ROIs needs one.
            defects: patch tokens of remembered defects, float32 (B, R, D), or a function that reads them and raises
                :class:`BankError`. A class with ROIs has none.
        """
        self.name, self.entry, self.blocks = name, entry, blocks
        self._supports = supports
        self._layout = layout
        self._defects = defects
        self._rois: tuple[MemoryBank, ...] | None = None
        self._class_tokens: F32 | None = None
        self._lock = threading.Lock()

    @property
    def supports(self) -> Sequence[SupportTokens]:
        """Tokens of each support. Once the rows are assembled, these are views of them.

        Raises:
            BankError: A token file is missing or damaged.
        """
        with self._lock:
            if callable(self._supports):
                self._supports = list(self._supports())
            return self._supports

    @property
    def rois(self) -> tuple[MemoryBank, ...]:
        """Rows of each region of interest, in the order of the entry; one for the whole image without ROIs.

        Raises:
            BankError: A token file is missing or damaged.
        """
        supports, defects = self.supports, self.defects
        with self._lock:
            if self._rois is None:
                names = (WHOLE_IMAGE,) if self.entry.roi is None else self.entry.roi.names
                self._rois = tuple(
                    MemoryBank(
                        self.name, name, tiles, self.blocks, _joined([tokens.rois[i] for tokens in supports]), defects
                    )
                    for i, (name, tiles) in enumerate(zip(names, tile_counts(self.entry.roi), strict=True))
                )
                # The supports' own arrays would double the memory.
                self._supports = [
                    SupportTokens(
                        tuple(bank.features[:, k * bank.tiles : (k + 1) * bank.tiles] for bank in self._rois),
                        tokens.class_tokens,
                    )
                    for k, tokens in enumerate(supports)
                ]
            return self._rois

    @property
    def defects(self) -> F32 | None:
        """Patch tokens of remembered defects, float32 (B, R, D), ``None`` without any.

        Raises:
            BankError: A token file is missing or damaged.
        """
        with self._lock:
            if callable(self._defects):
                self._defects = self._defects()
            return self._defects

    @property
    def layout(self) -> Layout | None:
        """What is inspected of an image, ``None`` for all of it.

        Raises:
            BankError: The mask is missing or damaged.
        """
        with self._lock:
            if self.entry.roi is None:
                return None
            if callable(self._layout):
                self._layout = self._layout()
            if self._layout is None:
                raise ValueError(f"class {self.name!r} has ROIs, and no layout was given")
            return self._layout

    @cached_property
    def good_scores(self) -> tuple[float, ...]:
        """Scores of good parts that the thresholds come from, ascending."""
        record = self.entry.calibration
        return () if record is None else tuple(sorted(record.scores))

    @property
    def is_loaded(self) -> bool:
        """Whether the tokens are in memory."""
        return not callable(self._supports)

    def with_entry(self, entry: ClassEntry) -> ClassBank:
        """Return the class with another entry for the same supports. It shares the rows, and so their search index.

        Args:
            entry: the new entry.
        """
        other = ClassBank(
            self.name, entry, self.blocks, lambda: self.supports, lambda: self.layout, lambda: self.defects
        )
        with self._lock:
            if not callable(self._supports):
                other._supports = self._supports
            other._rois, other._class_tokens, other._layout = self._rois, self._class_tokens, self._layout
        return other

    def with_defect(self, entry: ClassEntry, defect: F32) -> ClassBank:
        """Return the class with one more remembered defect. It shares the supports.

        Args:
            entry: the new entry.
            defect: float32 (B, R, D), unit rows.
        """
        defects = defect if self.defects is None else np.concatenate([self.defects, defect], axis=1)
        return ClassBank(self.name, entry, self.blocks, lambda: self.supports, lambda: self.layout, defects)

    @property
    def class_tokens(self) -> F32:
        """Class tokens of the supports, float32 (B, K, Dc), unit rows."""
        if self._class_tokens is None:
            self._class_tokens = np.stack([tokens.class_tokens for tokens in self.supports], axis=1)
        return self._class_tokens

    def tokens(self, view: ViewName) -> F32:
        """Return the class tokens of the unrotated supports in a view, float32 (K, Dc).

        Routing uses the first one (method, section 5).
        """
        tokens: F32 = self.class_tokens[unrotated_index(self.blocks, view)]
        return tokens

    def leave_out(self, support: int) -> ClassBank:
        """Return the class without one support, for leave-one-out scores.

        Args:
            support: index of the support.
        """
        kept = [k for k in range(len(self.entry.images)) if k != support]
        entry = self.entry.model_copy(update={"images": tuple(self.entry.images[k] for k in kept)})
        return ClassBank(
            self.name, entry, self.blocks, lambda: [self.supports[k] for k in kept], lambda: self.layout,
            lambda: self.defects,
        )  # fmt: skip


def _joined(parts: Sequence[F32]) -> F32:
    """Join (B, T, P, D) arrays along T; a single one is returned as it is, if it is contiguous."""
    return np.ascontiguousarray(parts[0]) if len(parts) == 1 else np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One version of a bank, immutable, so that an inspection never sees part of a later change.

    Attributes:
        manifest: the bank's manifest in this version.
        classes: class name → class.
    """

    manifest: BankManifest
    classes: Mapping[str, ClassBank]

    @cached_property
    def has_rois(self) -> bool:
        """Whether some class has ROIs or ignored areas, so that routing must come before inspection."""
        return any(bank.entry.roi is not None for bank in self.classes.values())

    @cached_property
    def digest(self) -> str:
        """sha256 of what decides a verdict (``BankManifest.content_digest``)."""
        return self.manifest.content_digest()
