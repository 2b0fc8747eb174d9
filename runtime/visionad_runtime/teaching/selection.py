"""Selection: which of many good images to enroll, so that the other good images get the lowest scores.

The score is that of an inspection, so it predicts false rejects of a line. Evidence:
``docs/guides/presets.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bank.layout import Layout
from ..bank.memory_bank import ClassBank
from ..bank.names import normalize_class_name
from ..bank.supports import load_support, read_supports
from ..errors import ImageError, VisionADError
from ..images import decode
from ..inspector import Inspector
from ..pipeline.leave_one_out import search_rows
from ..preprocess import prepare, query_views
from ..scoring.score import Distances, apply_weights, nearest_distances, patch_weights, score_distances
from ..scoring.spec import ScoringSpec

F32 = NDArray[np.float32]

MAX_CANDIDATES = 24
"""Maximum number of candidates that are scored against each other: each pair takes a search and memory. More are reduced first."""


def select_support(
    inspector: Inspector,
    name: str,
    paths: Sequence[Path],
    count: int,
    *,
    bit_depth: int | None = None,
    layout: Layout | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Select the good images which, once enrolled, give the other good images the lowest scores.

    The selection is greedy: each step minimizes the mean score of the images not selected, given those selected and enrolled so
    far. Ties go to the first image. If there are more than :data:`MAX_CANDIDATES` images, :func:`k_center_greedy` first reduces
    them to this number, by class token.

    Args:
        inspector: inspector with a bank. Its scoring is used.
        name: the class, which need not exist.
        paths: good images.
        count: number of images to select, at most :data:`MAX_CANDIDATES`.
        bit_depth: bits that the camera fills in 16-bit files.
        layout: what is inspected, if the class does not exist; ``None`` for whole images.
        step: called once per image.

    Returns:
        The selected paths, in the order of selection.

    Raises:
        ImageError: An image cannot be read or is given twice.
        VisionADError: There are fewer images than ``count``, or ``count`` is too large.
        BankError: The inspector has no bank.
    """
    if not 1 <= count <= len(paths):
        raise VisionADError(f"--choose {count}: expected 1 to {len(paths)}, as many images as were found")
    if count > MAX_CANDIDATES:
        raise VisionADError(
            f"--choose {count}: at most {MAX_CANDIDATES} can be chosen; enroll more with --shots {count}"
        )
    supports = read_supports(paths, bit_depth)
    is_reduced = len(paths) > MAX_CANDIDATES
    if is_reduced:
        tokens = []
        for path in paths:
            prepared = prepare(decode.load(path, bit_depth), inspector.manifest.identity.preprocess)
            encoded = inspector.encode(query_views(prepared, inspector.views[:1]))
            assert encoded.cls is not None
            tokens.append(encoded.cls[0])
            step()
        centers = sorted(k_center_greedy(np.stack(tokens), MAX_CANDIDATES))
        paths, supports = [paths[i] for i in centers], [supports[i] for i in centers]
    bank = inspector.bank
    enrolled = bank.classes.get(normalize_class_name(name)) if bank is not None else None
    if enrolled is not None:
        digests = {image.sha256 for image in enrolled.entry.images}
        new = [i for i, support in enumerate(supports) if support.sha256 not in digests]
        if len(new) < count:
            raise VisionADError(f"--choose {count}: only {len(new)} of the images are not enrolled in {name!r} already")
        paths, supports = [paths[i] for i in new], [supports[i] for i in new]
    candidates = []
    for path, support in zip(paths, supports, strict=True):
        rgb = load_support(path, support, bit_depth)[1]
        try:
            candidates.append(inspector.encode_class(name, support, rgb, layout))
        except ImageError as exc:
            raise ImageError(f"{path}: {exc}") from None
        if not is_reduced:
            step()
    return [paths[i] for i in _select(candidates, enrolled, inspector.scoring, count)]


def k_center_greedy(tokens: F32, count: int) -> list[int]:
    """Choose rows that cover all rows: first the one with the smallest summed cosine distance, then each time the farthest.

    Args:
        tokens: float32 (N, D), unit rows.
        count: number of rows to choose, 1 to N.

    Returns:
        Row numbers, in the order of choice. Ties go to the first row.
    """
    distances = 1.0 - tokens.astype(np.float64) @ tokens.astype(np.float64).T
    centers = [int(distances.sum(axis=1).argmin())]
    while len(centers) < count:
        to_nearest = distances[:, centers].min(axis=1)
        to_nearest[centers] = -1.0
        centers.append(int(to_nearest.argmax()))
    return centers


def _select(candidates: Sequence[ClassBank], enrolled: ClassBank | None, spec: ScoringSpec, count: int) -> list[int]:
    """Return the indices of the selected candidates, each a class with one support."""
    # With several ROIs or tiles, the first one stands for the image.
    queries = [candidate.rois[0].unrotated(0, spec.views) for candidate in candidates]
    weights = [patch_weights(tokens, spec) for tokens in queries]

    def distances_to(bank: ClassBank) -> list[Distances]:
        search = search_rows(bank.rois[0])
        return [apply_weights(nearest_distances(q, search), w) for q, w in zip(queries, weights, strict=True)]

    pairs = [distances_to(candidate) for candidate in candidates]
    current = distances_to(enrolled) if enrolled is not None else None
    selected: list[int] = []
    while len(selected) < count:
        best: tuple[float, int] | None = None
        for j in range(len(candidates)):
            if j in selected:
                continue
            rest = [i for i in range(len(candidates)) if i not in selected and i != j]
            scores = [score_distances(_minimum(pairs[j][i], current[i] if current else None), spec).score for i in rest]
            mean_score = float(np.mean(scores)) if scores else 0.0
            if best is None or mean_score < best[0]:
                best = mean_score, j
        assert best is not None
        selected.append(best[1])
        current = [_minimum(pairs[best[1]][i], current[i] if current else None) for i in range(len(candidates))]
    return selected


def _minimum(a: Distances, b: Distances | None) -> Distances:
    """Return the distances to the union of two banks."""
    return a if b is None else {view: np.minimum(distance, b[view]) for view, distance in a.items()}
