"""The published choice of support images (method, section 6), without torch.

The published recipe draws from torch's CPU generator, which is the Mersenne Twister that numpy's legacy ``RandomState``
also is, seeded alike with the low 32 bits. ``tests/unit/teaching/test_sampling.py`` holds both against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import VisionADError

_MAX_N = (2**32 - 1) // 20
"""From here on torch's ``randperm`` draws 64 bits a step; no class has that many images."""


def sample_support(n: int, k: int, seed: int) -> list[int]:
    """Indices of the ``k`` support images among ``n`` sorted by file name; nested: ``k`` is a prefix of ``k + 1``.

    Equal to ``g = torch.Generator().manual_seed(seed); torch.empty((), dtype=torch.int64).random_(generator=g);
    torch.randperm(n, generator=g)[:k]``.

    Args:
        n: images to choose from, 1 <= n < 2**32 / 20.
        k: images wanted, 1 <= k <= n.
        seed: any integer torch takes: -2**63 <= seed < 2**64.

    Raises:
        VisionADError: an argument out of its range.
    """
    if not 1 <= n < _MAX_N:
        raise VisionADError(f"support: cannot choose from {n} images; expected 1 to {_MAX_N - 1}")
    if not 1 <= k <= n:
        raise VisionADError(f"support: expected {k} shots, but there are {n} images to choose from")
    if not -(2**63) <= seed < 2**64:
        raise VisionADError(f"support: seed {seed} does not fit in 64 bits")
    steps = min(k, n - 1)  # the last of n is not drawn, it is left over
    twister = np.random.RandomState(seed & 0xFFFF_FFFF)
    draws = twister.randint(0, 2**32, size=2 + steps, dtype=np.uint32)[2:]  # the discarded int64 takes two draws
    order = list(range(n))
    for i, draw in enumerate(draws.tolist()):  # Fisher-Yates, with torch's biased modulo
        j = i + draw % (n - i)
        order[i], order[j] = order[j], order[i]
    return order[:k]


def sample_support_paths(paths: Sequence[Path], k: int, seed: int | None) -> list[Path]:
    """The ``k`` support images among ``paths``, sorted by file name here; ``seed=None`` takes the first ``k``.

    Raises:
        VisionADError: fewer than ``k`` images, ``k`` below 1, or a seed beyond 64 bits.
    """
    by_name = sorted(paths, key=lambda path: path.name)
    if seed is not None:
        return [by_name[i] for i in sample_support(len(by_name), k, seed)]
    if not 1 <= k <= len(by_name):
        raise VisionADError(f"support: expected {k} shots, but there are {len(by_name)} images to choose from")
    return by_name[:k]
