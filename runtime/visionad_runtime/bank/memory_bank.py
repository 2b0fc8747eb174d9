"""The class-aware memory bank in memory (method, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats.manifest import (
    BankManifest,
    ClassEntry,
    ViewName,
)
from ..preprocess import upright_block, view_blocks

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ClassBank:
    """One class in memory, immutable and compared by identity.

    ``features`` float32 (B, K, P, D), unit rows: B unique encodings (``blocks``) of K support images of P patches.
    ``class_tokens`` float32 (B, K, Dc), unit rows.
    """

    name: str
    entry: ClassEntry
    blocks: tuple[str, ...]
    features: F32
    class_tokens: F32

    def rows(self, view: ViewName) -> F32:
        """The view's bank, float32 (6·K·P, D): a slice of ``features``, not a copy."""
        part = self.features[view_blocks(self.blocks, view)]
        return part.reshape(-1, part.shape[-1])

    def tokens(self, view: ViewName) -> F32:
        """Class tokens (K, Dc) of the support images, unturned, in ``view``. The first one routes (method, section 5)."""
        tokens: F32 = self.class_tokens[upright_block(self.blocks, view)]
        return tokens

    def upright(self, image: int, views: Sequence[ViewName]) -> dict[ViewName, F32]:
        """Patch tokens (P, D) of support image number ``image``, unturned, by view: what a query of it would look like."""
        return {view: self.features[upright_block(self.blocks, view), image] for view in views}

    def without(self, image: int) -> ClassBank:
        """The class as if support image number ``image`` had not been enrolled (leave-one-out)."""
        keep = [k for k in range(self.features.shape[1]) if k != image]
        entry = self.entry.model_copy(update={"images": tuple(self.entry.images[k] for k in keep)})
        return ClassBank(self.name, entry, self.blocks, self.features[:, keep], self.class_tokens[:, keep])


class Snapshot(NamedTuple):
    """One version of a bank, never changed: who inspects with it sees no half of a later change."""

    manifest: BankManifest
    classes: Mapping[str, ClassBank]
