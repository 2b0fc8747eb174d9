"""Which class is an image of, and is it of any? Per image, by class token.

The class is the method's (section 5): arg-min of the cosine distance to each class's first support image. Whether the
image is of *any* class is this project's own rule, since the paper has none. Class tokens of all images lie close
together, in a direction of their own, so a raw distance means something else for every backbone. Seen from ``m``, the mean
of the bank's class tokens and of that of a synthetic image that is like no part (stored with the model), directions
spread out and one limit serves all: ``unlikeness = 1 - cos(q - m, c - m)`` is about 0 for an image of class ``c``, and
about 1 for one that has nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..formats.manifest import ViewName
from .memory_bank import ClassBank

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


class RoutingThresholds(NamedTuple):
    """Up to which unlikeness an image is of a class: ``widest``.

    Where the class has several supports: ``tightest`` plus their largest unlikeness to the first, so that parts which look all
    alike are told from strangers more sharply.
    """

    widest: float
    tightest: float


LIMITS = {"fused": RoutingThresholds(0.68, 0.50), "final": RoutingThresholds(0.85, 0.60)}
"""By kind of class token; set on four real data sets in banks of 1 to 4 classes (``docs/routing.md``)."""


class Route(NamedTuple):
    """``nearest`` class, its cosine ``distance`` 0..2, the ``margin`` to the second (``None`` with one class only), the
    ``unlikeness`` 0..2 to the nearest class, and whether the image is ``known``: not unlike it."""

    nearest: str
    distance: float
    margin: float | None
    unlikeness: float
    known: bool


class Router:
    """The classes of a bank, as images are routed among them. What depends on the bank alone is worked out once."""

    def __init__(
        self, classes: Mapping[str, ClassBank], stranger: F32, limits: RoutingThresholds, view: ViewName = "original"
    ) -> None:
        """For images seen in ``view``.

        Args:
            classes: at least one; they must not change.
            stranger: float32 (Dc,), unit length, class token of the model's golden image.
            limits: of :data:`LIMITS`, by the model's kind of class token.
        """
        self._names = sorted(classes)
        self._tokens = [classes[name].tokens(view) for name in self._names]
        self._known = np.stack([tokens[0] for tokens in self._tokens]).astype(np.float64)
        self._middle: F64 = np.concatenate([self._known, stranger.astype(np.float64)[None]]).mean(axis=0)
        self._limits = limits
        self._limit_of: dict[int, float] = {}

    def route(self, token: F32) -> Route:
        """The class of an image by its class token, float32 (Dc,), unit length."""
        query = token.astype(np.float64)
        distances = 1.0 - self._known @ query
        first = int(distances.argmin())
        margin = float(np.partition(distances, 1)[1] - distances[first]) if len(self._names) > 1 else None
        unlikeness = self._unlikeness(query, first)
        if first not in self._limit_of:
            self._limit_of[first] = self._limit(first)
        return Route(
            self._names[first], float(distances[first]), margin, unlikeness, unlikeness <= self._limit_of[first]
        )

    def _limit(self, number: int) -> float:
        """Up to which unlikeness an image is of the class of this number."""
        spread = [self._unlikeness(t.astype(np.float64), number) for t in self._tokens[number][1:]]
        return min(self._limits.widest, self._limits.tightest + max(spread)) if spread else self._limits.widest

    def _unlikeness(self, token: F64, number: int) -> float:
        a, b = token - self._middle, self._known[number] - self._middle
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return 1.0 - float(a @ b) / lengths if lengths > 0 else 1.0
