"""The published random sample of supports (method, section 6), without torch.

The published code draws from torch's CPU generator. That is the Mersenne Twister of NumPy's legacy ``RandomState``, seeded in the
same way with the low 32 bits. ``tests/unit/teaching/test_sampling.py`` compares both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import VisionADError

MAX_IMAGES = (2**32 - 1) // 20
"""From this number on, torch's ``randperm`` draws 64 bits per step. No class has as many images."""


def sample_support(n: int, k: int, seed: int) -> list[int]:
    """Sample ``k`` of ``n`` images, which are sorted by file name. The sample for ``k`` is a prefix of the one for ``k + 1``.

    It equals ``g = torch.Generator().manual_seed(seed); torch.empty((), dtype=torch.int64).random_(generator=g);
    torch.randperm(n, generator=g)[:k]``.

    Args:
        n: number of images, 1 <= n < 2**32 / 20.
        k: number of supports, 1 <= k <= n.
        seed: any integer that torch accepts, -2**63 <= seed < 2**64.

    Returns:
        Indices of the supports.

    Raises:
        VisionADError: An argument is out of range.
    """
    if not 1 <= n < MAX_IMAGES:
        raise VisionADError(f"support: cannot choose from {n} images; expected 1 to {MAX_IMAGES - 1}")
    if not 1 <= k <= n:
        raise VisionADError(f"support: expected {k} shots, but there are {n} images to choose from")
    if not -(2**63) <= seed < 2**64:
        raise VisionADError(f"support: seed {seed} does not fit in 64 bits")
    steps = min(k, n - 1)  # the last of n images needs no draw
    twister = np.random.RandomState(seed & 0xFFFF_FFFF)
    draws = twister.randint(0, 2**32, size=2 + steps, dtype=np.uint32)[2:]  # torch's discarded int64 takes two draws
    order = list(range(n))
    for i, draw in enumerate(draws.tolist()):  # Fisher-Yates, with torch's biased modulo
        j = i + draw % (n - i)
        order[i], order[j] = order[j], order[i]
    return order[:k]


def sample_support_paths(paths: Sequence[Path], k: int, seed: int | None) -> list[Path]:
    """Sample ``k`` images.

    Args:
        paths: image files, in any order. They are sorted by file name first.
        k: number of supports.
        seed: seed of the sample, or ``None`` for the first ``k`` images.

    Raises:
        VisionADError: There are fewer than ``k`` images, ``k`` is below 1, or the seed exceeds 64 bits.
    """
    by_name = sorted(paths, key=lambda path: path.name)
    if seed is not None:
        return [by_name[i] for i in sample_support(len(by_name), k, seed)]
    if not 1 <= k <= len(by_name):
        raise VisionADError(f"support: expected {k} shots, but there are {len(by_name)} images to choose from")
    return by_name[:k]
