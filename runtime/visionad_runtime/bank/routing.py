"""Routing: find the class of an image by its class token, and decide whether it belongs to any class.

The class is the method's (section 5): the one whose first support has the smallest cosine distance. The paper does not say when an
image belongs to no class, so this project adds a rule. Class tokens of all images point in similar directions, so the scale of raw
distances differs between backbones. Relative to a center ``m`` the directions spread out, and one threshold serves all backbones.
``m`` is the mean of the classes' tokens and of the token of an out-of-distribution image (synthetic, stored with the model). The
*centered distance* ``1 - cos(q - m, c - m)`` is about 0 for an image of class ``c``, and about 1 for an image that has nothing of
it.
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
    """Largest centered distance of an image to its class.

    For a class with several supports the threshold is ``minimum`` plus their largest centered distance to the first support, at
    most ``maximum``. So classes of uniform parts reject out-of-distribution images more strictly.

    Attributes:
        maximum: threshold of a class with one support, and upper bound for all classes.
        minimum: threshold of a class whose supports have identical class tokens.
    """

    maximum: float
    minimum: float


THRESHOLDS = {"fused": RoutingThresholds(0.68, 0.50), "final": RoutingThresholds(0.85, 0.60)}
"""Thresholds by kind of class token, set on four real data sets in banks of 1 to 4 classes (``docs/guides/routing.md``)."""


class Route(NamedTuple):
    """Routing of one image.

    Attributes:
        nearest: name of the nearest class.
        distance: cosine distance to it, 0 to 2.
        margin: distance to the second nearest class minus ``distance``; ``None`` if there is one class.
        centered_distance: centered distance to the nearest class, 0 to 2.
        is_known: whether the image belongs to the nearest class.
    """

    nearest: str
    distance: float
    margin: float | None
    centered_distance: float
    is_known: bool

    def mismatch(self, class_name: str) -> str | None:
        """Return the class that the image belongs to, if it is another one than it was said to be of.

        Args:
            class_name: class that was given.
        """
        return self.nearest if self.is_known and self.nearest != class_name else None


class Router:
    """Route images among the classes of a bank. It computes once what depends on the bank alone."""

    def __init__(
        self,
        classes: Mapping[str, ClassBank],
        out_of_distribution_token: F32,
        thresholds: RoutingThresholds,
        view: ViewName = "original",
    ) -> None:
        """Prepare routing.

        Args:
            classes: at least one class, by name. They must not change.
            out_of_distribution_token: float32 (Dc,), unit length, class token of the model's golden image.
            thresholds: entry of :data:`THRESHOLDS` for the model's kind of class token.
            view: view that class tokens are from.
        """
        self._names = sorted(classes)
        self._tokens = [classes[name].tokens(view) for name in self._names]
        self._first_tokens = np.stack([tokens[0] for tokens in self._tokens]).astype(np.float64)
        out_of_distribution = out_of_distribution_token.astype(np.float64)[None]
        self._center: F64 = np.concatenate([self._first_tokens, out_of_distribution]).mean(axis=0)
        self._thresholds = thresholds
        self._threshold_of: dict[int, float] = {}

    def route(self, token: F32) -> Route:
        """Route an image.

        Args:
            token: float32 (Dc,), unit length, class token of the image.
        """
        query = token.astype(np.float64)
        distances = 1.0 - self._first_tokens @ query
        nearest = int(distances.argmin())
        margin = float(np.partition(distances, 1)[1] - distances[nearest]) if len(self._names) > 1 else None
        centered = self._centered_distance(query, nearest)
        if nearest not in self._threshold_of:
            self._threshold_of[nearest] = self._threshold(nearest)
        is_known = centered <= self._threshold_of[nearest]
        return Route(self._names[nearest], float(distances[nearest]), margin, centered, is_known)

    def _threshold(self, index: int) -> float:
        maximum, minimum = self._thresholds
        within = [self._centered_distance(token.astype(np.float64), index) for token in self._tokens[index][1:]]
        return min(maximum, minimum + max(within)) if within else maximum

    def _centered_distance(self, token: F64, index: int) -> float:
        a, b = token - self._center, self._first_tokens[index] - self._center
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return 1.0 - float(a @ b) / lengths if lengths > 0 else 1.0
