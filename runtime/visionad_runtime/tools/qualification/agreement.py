"""Repeatability and reproducibility: the same part inspected again and again, also at several stations or on several days.

Variance components follow the AIAG manual Measurement Systems Analysis (4th edition, ANOVA method). Agreement of verdicts is
Fleiss' kappa (Psychological Bulletin 76, 1971), extended to parts with different numbers of repeats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import VisionADError


@dataclass(frozen=True)
class Components:
    """Variance components of scores. Each is at least 0.

    Attributes:
        repeatability: variance of one part at one station (equipment variation EV squared).
        reproducibility: variance between stations or days, their interaction with parts included (AV squared); 0 with one of them.
        parts: variance between parts (PV squared).
        repeats: repeats of each cell that the analysis used.
        operators: number of stations or days.
        count: number of parts.
    """

    repeatability: float
    reproducibility: float
    parts: float
    repeats: int
    operators: int
    count: int

    @property
    def grr(self) -> float:
        """Standard deviation of the measurement: repeatability and reproducibility."""
        return math.sqrt(self.repeatability + self.reproducibility)

    @property
    def total(self) -> float:
        """Standard deviation of all scores."""
        return math.sqrt(self.repeatability + self.reproducibility + self.parts)

    @property
    def grr_share(self) -> float | None:
        """Share of :attr:`grr` in :attr:`total` (%GRR / 100); ``None`` if all scores are equal."""
        return self.grr / self.total if self.total > 0 else None

    @property
    def categories(self) -> float | None:
        """Number of distinct categories, ``sqrt(2) PV / GRR``; ``None`` if the measurement has no spread."""
        return math.sqrt(2 * self.parts) / self.grr if self.grr > 0 else None


def fleiss_kappa(verdicts: Sequence[Sequence[str]]) -> float | None:
    """Return the agreement of repeated verdicts beyond chance.

    Args:
        verdicts: the verdicts of each part, two or more.

    Returns:
        1 for full agreement, 0 for chance. ``None`` if all verdicts of all parts are equal, where it is not defined.

    Raises:
        VisionADError: A part has fewer than two verdicts, or there is no part.
    """
    if not verdicts or min(map(len, verdicts)) < 2:
        raise VisionADError("kappa: expected parts with two verdicts or more")
    kinds = sorted({verdict for part in verdicts for verdict in part})
    counts = np.array([[sum(v == kind for v in part) for kind in kinds] for part in verdicts], np.float64)
    sizes = counts.sum(axis=1)
    observed = float((((counts**2).sum(axis=1) - sizes) / (sizes * (sizes - 1))).mean())
    shares = counts.sum(axis=0) / counts.sum()
    chance = float((shares**2).sum())
    return None if chance >= 1 else (observed - chance) / (1 - chance)


def variance_components(scores: Mapping[str, Mapping[str, Sequence[float]]]) -> Components:
    """Return the variance components of scores by the ANOVA method.

    Args:
        scores: operator (station or day) → part → scores. Every operator has the same parts. Where repeats differ in number, the
            first ones count, as many as the smallest cell has.

    Raises:
        VisionADError: The parts differ between operators, there are fewer than two, or a cell has fewer than two scores.
    """
    operators = sorted(scores)
    parts = sorted(scores[operators[0]]) if operators else []
    for name in operators:
        if sorted(scores[name]) != parts:
            other = sorted(set(parts) ^ set(scores[name]))
            raise VisionADError(
                f"--repeat: expected the same parts at each station or day, but {', '.join(other[:5])} is not at all of "
                f"{', '.join(operators)}"
            )
    repeats = min((len(scores[o][p]) for o in operators for p in parts), default=0)
    if len(parts) < 2 or repeats < 2:
        raise VisionADError(
            f"--repeat: expected two parts or more, each with two images or more, got {len(parts)} parts with {repeats}"
        )
    table = np.array([[scores[o][p][:repeats] for p in parts] for o in operators], np.float64)  # (o, p, r)
    n_o, n_p, n_r = table.shape
    cells, mean = table.mean(axis=2), table.mean()
    within = float(((table - cells[:, :, None]) ** 2).sum()) / (n_o * n_p * (n_r - 1))
    of_parts, of_operators = cells.mean(axis=0), cells.mean(axis=1)
    ms_parts = n_o * n_r * float(((of_parts - mean) ** 2).sum()) / (n_p - 1)
    if n_o == 1:
        return Components(within, 0.0, max(0.0, (ms_parts - within) / n_r), n_r, 1, n_p)
    ms_operators = n_p * n_r * float(((of_operators - mean) ** 2).sum()) / (n_o - 1)
    rest = cells - of_parts[None] - of_operators[:, None] + mean
    ms_both = n_r * float((rest**2).sum()) / ((n_o - 1) * (n_p - 1))
    operator = max(0.0, (ms_operators - ms_both) / (n_p * n_r))
    interaction = max(0.0, (ms_both - within) / n_r)
    part = max(0.0, (ms_parts - ms_both) / (n_o * n_r))
    return Components(within, operator + interaction, part, n_r, n_o, n_p)
