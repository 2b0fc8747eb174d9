"""The class-aware memory bank in memory (method, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats.manifest import BankManifest, ClassEntry, ViewName
from ..preprocess import unrotated_index, view_slice

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClassBank:
    """One class in memory, immutable, compared and hashed by identity.

    Attributes:
        name: of the class, as stored.
        entry: its entry in the bank's manifest.
        blocks: names of the B unique encodings of a support.
        features: float32 (B, K, P, D), unit rows: patch tokens of K supports with P patches each.
        class_tokens: float32 (B, K, Dc), unit rows.
    """

    name: str
    entry: ClassEntry
    blocks: tuple[str, ...]
    features: F32
    class_tokens: F32

    def rows(self, view: ViewName) -> F32:
        """Return the rows that a view is searched in, float32 (6·K·P, D). It is a slice of ``features``, not a copy."""
        part = self.features[view_slice(self.blocks, view)]
        return part.reshape(-1, part.shape[-1])

    def tokens(self, view: ViewName) -> F32:
        """Return the class tokens of the unrotated supports in a view, float32 (K, Dc).

        Routing uses the first one (method, section 5).
        """
        tokens: F32 = self.class_tokens[unrotated_index(self.blocks, view)]
        return tokens

    def unrotated(self, image: int, views: Sequence[ViewName]) -> dict[ViewName, F32]:
        """Return the patch tokens of an unrotated support, which equal those of the same image as a query.

        Args:
            image: index of the support.
            views: views to return.

        Returns:
            View → float32 (P, D), unit rows.
        """
        return {view: self.features[unrotated_index(self.blocks, view), image] for view in views}

    def leave_out(self, image: int) -> ClassBank:
        """Return the class without one support, for leave-one-out scores.

        Args:
            image: index of the support.
        """
        keep = [k for k in range(self.features.shape[1]) if k != image]
        entry = self.entry.model_copy(update={"images": tuple(self.entry.images[k] for k in keep)})
        return ClassBank(self.name, entry, self.blocks, self.features[:, keep], self.class_tokens[:, keep])


class Snapshot(NamedTuple):
    """One version of a bank, immutable, so that an inspection never sees part of a later change.

    Attributes:
        manifest: the bank's manifest in this version.
        classes: class name → class.
    """

    manifest: BankManifest
    classes: Mapping[str, ClassBank]
