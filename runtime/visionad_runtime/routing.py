"""Which class is a picture of? Per picture, by class token (method, section 5; per picture is this project's protocol)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .artefacts import ViewName
from .bank import ClassBank

F32 = NDArray[np.float32]


class Route(NamedTuple):
    """``nearest`` class, its cosine ``distance`` 0..2, the ``margin`` to the second (``None`` with one class only), and
    whether the picture is like that class at all."""

    nearest: str
    distance: float
    margin: float | None
    known: bool


def route(token: F32, classes: Mapping[str, ClassBank], view: ViewName = "original") -> Route:
    """Arg-min of the cosine distance between the picture's class token and each class's (first support, unturned).

    Args:
        token: float32 (Dc,), unit length, of the picture seen in ``view``.
    """
    distances = {
        n: float(1.0 - token.astype(np.float64) @ c.token(view).astype(np.float64)) for n, c in classes.items()
    }
    order = sorted(distances, key=lambda n: (distances[n], n))
    first = order[0]
    margin = distances[order[1]] - distances[first] if len(order) > 1 else None
    return Route(first, distances[first], margin, distances[first] <= limit(classes[first]))


def limit(_entry: ClassBank) -> float:
    """placeholder until measured"""
    return 2.0
