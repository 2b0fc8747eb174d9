"""Patch tokens → distances → map → score: the only definition, used by inspection, selection, audit and self-test.

Callers pass a bank as the function that searches it, so this module depends neither on banks nor on the search.
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
"""One number per patch: view → float32 (P,)."""
SearchBank = Callable[[ViewName, F32], F32]
"""View and its patch tokens float32 (P, D) → float32 (P,): cosine distance of each to the nearest row of the bank in that view."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Score of one image against one bank.

    Attributes:
        distances: view → float32 (side, side), in that view's orientation, weighted if the specification says so.
        anomaly_map: float32 (256, 256).
        score: mean of the map's largest pixels.
        cutoff: smallest of these pixels.
    """

    distances: Mapping[ViewName, F32]
    anomaly_map: F32
    score: float
    cutoff: float


def nearest_distances(tokens: TokensByView, search: SearchBank) -> Distances:
    """Return each patch's distance to the bank, unweighted."""
    return {view: search(view, patch) for view, patch in tokens.items()}


def patch_weights(tokens: TokensByView, spec: ScoringSpec, threads: int | None = None) -> Distances | None:
    """Return the factor of each patch's distance, which depends on the image only, or ``None`` if all factors are 1.

    Args:
        tokens: patch tokens of the image.
        spec: how to score.
        threads: maximum number of threads (default: all CPUs). The result does not depend on it.

    Raises:
        VisionADError: The grid is too small for self-similarity.
    """
    if not spec.self_similarity:
        return None
    return {view: self_similarity_weight(patch, _side(patch), threads) for view, patch in tokens.items()}


def apply_weights(distances: Distances, weights: Distances | None) -> Distances:
    """Multiply distances by the patches' weights."""
    return distances if weights is None else {view: distance * weights[view] for view, distance in distances.items()}


def score_distances(distances: Distances, spec: ScoringSpec) -> Scored:
    """Return the map and the score of distances, which are weighted already if the specification says so."""
    grids = {view: distance.reshape(_side(distance), _side(distance)) for view, distance in distances.items()}
    anomaly_map = upsample(fuse(grids))
    return Scored(grids, anomaly_map, *top_k_mean(anomaly_map, spec.top_fraction))


def ignore_cells(grids: Mapping[ViewName, F32], cells: NDArray[np.bool_], spec: ScoringSpec) -> Scored:
    """Score distances anew with those of ignored patches at 0. Inspection and leave-one-out scores both use this function.

    Args:
        grids: view → float32 (side, side), in that view's orientation, weighted if the specification says so.
        cells: bool (side, side), ignored patches, row by row from the image's top.
        spec: how to score.
    """
    zero = np.float32(0)
    distances = {
        view: np.where(cells[::-1] if view == "flip" else cells, zero, grid).ravel() for view, grid in grids.items()
    }
    return score_distances(distances, spec)


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
        tokens: patch tokens of the image, in the views of ``spec``.
        search: search of the bank.
        spec: how to score.
        threads: maximum number of threads for self-similarity (default: all CPUs). No bit of the result depends on it.
        mark: called at the end of each stage with its name: ``search``, ``map``.

    Raises:
        VisionADError: The grid is too small for self-similarity, or ``search`` raised it.
    """
    distances = apply_weights(nearest_distances(tokens, search), patch_weights(tokens, spec, threads))
    mark("search")
    scored = score_distances(distances, spec)
    mark("map")
    return scored


def _side(patches: F32) -> int:
    return math.isqrt(len(patches))
