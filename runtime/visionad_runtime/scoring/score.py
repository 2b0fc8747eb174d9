"""Patch tokens → distances → map → score: the one definition, for inspection, selection, audit and self-test.

A bank is given as the function that searches it, so that this module needs neither a bank's storage nor a search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..formats.manifest import ViewName
from .anomaly_map import fuse, top_k_mean, upsample
from .self_similarity import self_similarity_weight
from .spec import ScoringSpec

F32 = NDArray[np.float32]

TokensByView = Mapping[ViewName, F32]
"""Patch tokens of one image: view → float32 (P, D), unit rows, row by row of a square grid."""
Distances = Mapping[ViewName, F32]
"""One number a patch: view → float32 (P,)."""
SearchBank = Callable[[ViewName, F32], F32]
"""Patch tokens float32 (P, D) of a view → float32 (P,): cosine distance of each to the nearest row of the bank in that view."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One image against one bank.

    Attributes:
        distances: view → float32 (side, side), as seen in that view, weighed if the specification says so.
        anomaly_map: float32 (256, 256).
        score: mean of the map's largest pixels.
        cutoff: the smallest of these.
    """

    distances: Mapping[ViewName, F32]
    anomaly_map: F32
    score: float
    cutoff: float


def nearest_distances(tokens: TokensByView, search: SearchBank) -> Distances:
    """Return each patch's distance to the bank, before any weighing."""
    return {view: search(view, patch) for view, patch in tokens.items()}


def patch_weights(tokens: TokensByView, spec: ScoringSpec, threads: int | None = None) -> Distances | None:
    """Return the factor of each patch's distance, which depends on the image alone; ``None`` where all are 1.

    Raises:
        VisionADError: the grid is too small for self-similarity.
    """
    if not spec.self_similarity:
        return None
    return {view: self_similarity_weight(patch, _side(patch), threads) for view, patch in tokens.items()}


def weighed(distances: Distances, weights: Distances | None) -> Distances:
    """Multiply distances by the patches' weights."""
    return distances if weights is None else {view: d * weights[view] for view, d in distances.items()}


def score_distances(distances: Distances, spec: ScoringSpec) -> Scored:
    """Make the map and its score of weighed distances."""
    grids = {view: d.reshape(_side(d), _side(d)) for view, d in distances.items()}
    anomaly_map = upsample(fuse(grids))
    return Scored(grids, anomaly_map, *top_k_mean(anomaly_map, spec.top_fraction))


def score_tokens(
    tokens: TokensByView,
    search: SearchBank,
    spec: ScoringSpec,
    *,
    threads: int | None = None,
    mark: Callable[[str], None] = lambda _: None,
) -> Scored:
    """Score one image against one bank.

    Args:
        tokens: of the image, in the views of ``spec``.
        search: of the bank.
        spec: how to score.
        threads: of the self-similarity; default all cores. No bit of the result depends on it.
        mark: called with the name of each stage that has ended: ``search``, ``map``.

    Raises:
        VisionADError: the grid is too small for self-similarity, or what ``search`` raises.
    """
    distances = weighed(nearest_distances(tokens, search), patch_weights(tokens, spec, threads))
    mark("search")
    scored = score_distances(distances, spec)
    mark("map")
    return scored


def _side(patches: F32) -> int:
    return math.isqrt(len(patches))
