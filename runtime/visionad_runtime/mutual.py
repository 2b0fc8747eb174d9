"""Good parts scored against each other: which of many to enrol, and which of the enrolled looks like none of the others.

Both use the score that inspection uses, so they speak of the very false rejects a line would see. Evidence: ``docs/presets.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import picture
from .artefacts import ModelManifest, SupportImage, ViewName, sha256_bytes
from .bank import ClassBank, stored_name
from .errors import VisionADError
from .inspector import Inspector, read_supports
from .maps import fuse, image_score, upsample
from .preprocess import prepare, query_views
from .rarity import rarity
from .search import nearest

F32 = NDArray[np.float32]
Grids = Mapping[ViewName, F32]

SHORTLIST = 24
"""Candidates scored against each other. More are first thinned out by class token: every pair takes a search, and all are held."""
ODD = 1.5
"""How many times the others' median a support's score must be to be named."""


class Standing(NamedTuple):
    """A support among the others of its class. ``score``: as if it were inspected and not enrolled; ``ratio``: to the median of the
    other supports' scores; ``odd``: the ratio exceeds :data:`ODD`."""

    image: SupportImage
    score: float
    ratio: float
    odd: bool


def standings(matched: ClassBank, views: Sequence[ViewName], model: ModelManifest) -> list[Standing]:
    """Score each support of a class against the others (leave-one-out), in the bank's order; none for fewer than three.

    A defect that was enrolled as good hides every defect like it. It stands out where good parts look alike; where they vary, the
    most unusual good part stands out as well: a reason to look at the picture, not a verdict.

    Args:
        views: to score in, some of the bank's.
        model: says how to score.
    """
    images = matched.entry.images
    if len(images) < 3:
        return []
    scores = []
    for k in range(len(images)):
        own, others = matched.upright(k, views), matched.without(k)
        scores.append(_score(_weighed(_seen(own, others), _weights(own, model)), model))
    found = []
    for k, image in enumerate(images):
        usual = float(np.median([s for i, s in enumerate(scores) if i != k]))
        ratio = scores[k] / usual if usual > 0 else 1.0
        found.append(Standing(image, scores[k], ratio, ratio > ODD))
    return found


def choose_covering(
    inspector: Inspector,
    name: str,
    paths: Sequence[Path],
    count: int,
    *,
    bit_depth: int | None = None,
    step: Callable[[], None] = lambda: None,
) -> list[Path]:
    """The ``count`` good pictures that, once enrolled, let the other good ones score lowest.

    Greedy: each choice minimises the mean score of the pictures not chosen, on top of what the class holds already; ties go to the
    first. Beyond :data:`SHORTLIST` pictures, those are taken first that lie farthest apart by class token, from the most
    central one on (k-centre; ties to the first). ``step`` is called once a picture.

    Raises:
        PictureError: unreadable or the same picture twice. VisionADError: fewer pictures than ``count``. BankError: no bank.
    """
    if not 1 <= count <= len(paths):
        raise VisionADError(f"--choose {count}: wanted 1 to {len(paths)}, as many pictures as were found")
    if count > SHORTLIST:
        raise VisionADError(f"--choose {count}: at most {SHORTLIST} can be chosen; enrol more with --shots {count}")
    supports = read_supports(paths, bit_depth)
    thinned = len(paths) > SHORTLIST
    if thinned:
        tokens = []
        for path in paths:
            prepared = prepare(picture.load(path, bit_depth), inspector.manifest.identity.preprocess)
            found = inspector.encode(query_views(prepared, inspector.views[:1]))
            assert found.cls is not None
            tokens.append(found.cls[0])
            step()
        kept = sorted(spread(np.stack(tokens), SHORTLIST))
        paths, supports = [paths[i] for i in kept], [supports[i] for i in kept]
    bank = inspector.bank
    known = bank.classes.get(stored_name(name)) if bank is not None else None
    if known is not None:
        enrolled = {image.sha256 for image in known.entry.images}
        fresh = [i for i, s in enumerate(supports) if s.sha256 not in enrolled]
        if len(fresh) < count:
            raise VisionADError(
                f"--choose {count}: only {len(fresh)} of the pictures are not enrolled in {name!r} already"
            )
        paths, supports = [paths[i] for i in fresh], [supports[i] for i in fresh]
    candidates = []
    for path, support in zip(paths, supports, strict=True):
        data = picture.read_bytes(path)
        if sha256_bytes(data) != support.sha256:
            raise VisionADError(f"{path}: changed while it was being read; nothing was enrolled")
        candidates.append(inspector.as_class(name, support, picture.decode(data, path, bit_depth)))
        if not thinned:
            step()
    return [paths[i] for i in _cover(candidates, known, inspector.views, inspector.manifest, count)]


def spread(tokens: F32, count: int) -> list[int]:
    """k-centre: the row nearest to all (smallest summed cosine distance), then each time the one farthest from those taken.

    Args:
        tokens: float32 (N, D), unit rows. count: 1 to N.
    """
    apart = 1.0 - tokens.astype(np.float64) @ tokens.astype(np.float64).T
    taken = [int(apart.sum(axis=1).argmin())]
    while len(taken) < count:
        gap = apart[:, taken].min(axis=1)
        gap[taken] = -1.0
        taken.append(int(gap.argmax()))
    return taken


def _cover(
    candidates: Sequence[ClassBank],
    known: ClassBank | None,
    views: Sequence[ViewName],
    model: ModelManifest,
    count: int,
) -> list[int]:
    uprights = [c.upright(0, views) for c in candidates]
    weights = [_weights(own, model) for own in uprights]

    def seen_from(bank: ClassBank) -> list[Grids]:
        return [_weighed(_seen(own, bank), weight) for own, weight in zip(uprights, weights, strict=True)]

    pairs = [seen_from(c) for c in candidates]
    now = seen_from(known) if known is not None else None
    chosen: list[int] = []
    while len(chosen) < count:
        best: tuple[float, int] | None = None
        for j in range(len(candidates)):
            if j in chosen:
                continue
            rest = [i for i in range(len(candidates)) if i not in chosen and i != j]
            scores = [_score(_nearer(pairs[j][i], now[i] if now else None), model) for i in rest]
            value = float(np.mean(scores)) if scores else 0.0
            if best is None or value < best[0]:
                best = value, j
        assert best is not None
        chosen.append(best[1])
        now = [_nearer(pairs[best[1]][i], now[i] if now else None) for i in range(len(candidates))]
    return chosen


def _nearer(a: Grids, b: Grids | None) -> Grids:
    return a if b is None else {view: np.minimum(grid, b[view]) for view, grid in a.items()}


def _seen(own: Grids, bank: ClassBank) -> Grids:
    return {view: nearest(patch, bank.rows(view)).distance for view, patch in own.items()}


def _weights(own: Grids, model: ModelManifest) -> Grids | None:
    return {view: rarity(patch, model.identity.grid) for view, patch in own.items()} if model.rarity else None


def _weighed(distances: Grids, weights: Grids | None) -> Grids:
    return distances if weights is None else {view: d * weights[view] for view, d in distances.items()}


def _score(distances: Grids, model: ModelManifest) -> float:
    side = model.identity.grid
    return image_score(upsample(fuse({v: d.reshape(side, side) for v, d in distances.items()})), model.top_share)
