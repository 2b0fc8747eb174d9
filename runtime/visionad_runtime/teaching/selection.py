"""Which of many good images to enroll, so that the other good ones score lowest.

The score is the one that inspection uses, so it speaks of the very false rejects a line would see. Evidence:
``docs/guides/presets.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bank.memory_bank import ClassBank
from ..bank.names import normalize_class_name
from ..bank.supports import load_support, read_supports
from ..errors import VisionADError
from ..formats.manifest import ViewName
from ..images import decode
from ..inspector import Inspector
from ..preprocess import prepare, query_views
from ..scoring.score import Distances, SearchBank, apply_weights, nearest_distances, patch_weights, score_distances
from ..scoring.spec import ScoringSpec
from ..search import nearest

F32 = NDArray[np.float32]

MAX_CANDIDATES = 24
"""Candidates scored against each other. More are first thinned out by class token: every pair takes a search, and all are held."""


def select_support(
    inspector: Inspector,
    name: str,
    paths: Sequence[Path],
    count: int,
    *,
    bit_depth: int | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Return the ``count`` good images that, once enrolled, let the other good ones score lowest.

    Greedy: each choice minimises the mean score of the images not chosen, on top of what the class holds already; ties go to the
    first. Beyond :data:`MAX_CANDIDATES` images, :func:`k_center_greedy` takes so many by class token first.

    Args:
        inspector: with a bank. Its scoring says how to score.
        name: of the class, which need not exist yet.
        paths: good images.
        count: how many to choose, at most :data:`MAX_CANDIDATES`.
        bit_depth: bits that the camera fills in 16-bit files.
        step: called once an image.

    Raises:
        ImageError: unreadable, or the same image twice.
        VisionADError: fewer images than ``count``, or too many to choose.
        BankError: no bank.
    """
    if not 1 <= count <= len(paths):
        raise VisionADError(f"--choose {count}: expected 1 to {len(paths)}, as many images as were found")
    if count > MAX_CANDIDATES:
        raise VisionADError(
            f"--choose {count}: at most {MAX_CANDIDATES} can be chosen; enroll more with --shots {count}"
        )
    supports = read_supports(paths, bit_depth)
    thinned = len(paths) > MAX_CANDIDATES
    if thinned:
        tokens = []
        for path in paths:
            prepared = prepare(decode.load(path, bit_depth), inspector.manifest.identity.preprocess)
            encoded = inspector.encode(query_views(prepared, inspector.views[:1]))
            assert encoded.cls is not None
            tokens.append(encoded.cls[0])
            step()
        kept = sorted(k_center_greedy(np.stack(tokens), MAX_CANDIDATES))
        paths, supports = [paths[i] for i in kept], [supports[i] for i in kept]
    bank = inspector.bank
    known = bank.classes.get(normalize_class_name(name)) if bank is not None else None
    if known is not None:
        enrolled = {image.sha256 for image in known.entry.images}
        fresh = [i for i, s in enumerate(supports) if s.sha256 not in enrolled]
        if len(fresh) < count:
            raise VisionADError(
                f"--choose {count}: only {len(fresh)} of the images are not enrolled in {name!r} already"
            )
        paths, supports = [paths[i] for i in fresh], [supports[i] for i in fresh]
    candidates = []
    for path, support in zip(paths, supports, strict=True):
        candidates.append(inspector.encode_class(name, support, load_support(path, support, bit_depth)))
        if not thinned:
            step()
    return [paths[i] for i in _cover(candidates, known, inspector.scoring, count)]


def k_center_greedy(tokens: F32, count: int) -> list[int]:
    """Return the row nearest to all (smallest summed cosine distance), then each time the one farthest from those taken.

    Args:
        tokens: float32 (N, D), unit rows.
        count: how many rows, 1 to N. Ties go to the first.
    """
    apart = 1.0 - tokens.astype(np.float64) @ tokens.astype(np.float64).T
    taken = [int(apart.sum(axis=1).argmin())]
    while len(taken) < count:
        gap = apart[:, taken].min(axis=1)
        gap[taken] = -1.0
        taken.append(int(gap.argmax()))
    return taken


def search_rows(bank: ClassBank) -> SearchBank:
    """Return the search of a class's plain rows: a bank that is searched a few times is not worth an index."""

    def search(view: ViewName, patch: F32) -> F32:
        return nearest(patch, bank.rows(view)).distance

    return search


def _cover(candidates: Sequence[ClassBank], known: ClassBank | None, spec: ScoringSpec, count: int) -> list[int]:
    queries = [candidate.unrotated(0, spec.views) for candidate in candidates]
    weights = [patch_weights(tokens, spec) for tokens in queries]

    def distances_to(bank: ClassBank) -> list[Distances]:
        search = search_rows(bank)
        return [apply_weights(nearest_distances(q, search), w) for q, w in zip(queries, weights, strict=True)]

    pairs = [distances_to(candidate) for candidate in candidates]
    now = distances_to(known) if known is not None else None
    chosen: list[int] = []
    while len(chosen) < count:
        best: tuple[float, int] | None = None
        for j in range(len(candidates)):
            if j in chosen:
                continue
            rest = [i for i in range(len(candidates)) if i not in chosen and i != j]
            scores = [score_distances(_nearer(pairs[j][i], now[i] if now else None), spec).score for i in rest]
            value = float(np.mean(scores)) if scores else 0.0
            if best is None or value < best[0]:
                best = value, j
        assert best is not None
        chosen.append(best[1])
        now = [_nearer(pairs[best[1]][i], now[i] if now else None) for i in range(len(candidates))]
    return chosen


def _nearer(a: Distances, b: Distances | None) -> Distances:
    """Distances to two banks together."""
    return a if b is None else {view: np.minimum(distance, b[view]) for view, distance in a.items()}
