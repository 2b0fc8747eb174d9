"""Exchangeability alarm of one class: today's good parts are not like the calibration's, so the promise is void.

A promised false-reject rate holds while the good parts of today and of the calibration are exchangeable. Light, lens, material
and supplier can end that. The monitor tests it on the scores that a line has anyway, those of the accepted parts, and says so
at a stated false-alarm rate. It is a conformal test martingale (Vovk, Nouretdinov and Gammerman 2003; Vovk, Gammerman and
Shafer 2005, chapter 7).

**Censoring.** Only parts that are ``ok`` are taken as good, and those score at most the limit ``v``. ``v`` is an order
statistic of the ``n`` calibration scores. Let the scores of all good parts be i.i.d. from ``F``. Given ``v`` and the number of
calibration scores below it, these are i.i.d. from ``F`` truncated to scores below ``v``: the event that fixes ``v`` as the
``k``-th score restricts the others to ``v`` or above, and the ones below to nothing else. A later good part that scores below
``v`` is i.i.d. from the same truncated distribution. So calibration scores strictly below ``v``, followed by later scores
strictly below ``v``, are exchangeable. A score equal to ``v`` is left out on both sides, which keeps this exact for tied scores
too.

**Bounded memory.** A score is replaced by its cell among :data:`CELLS` equal ones of ``[0, v)``. Given ``v`` this map is fixed
before any of the scores below ``v`` is seen, and a fixed map keeps them i.i.d. The monitor counts scores by cell, so no score
is ever dropped and its state does not grow. Ties within a cell are broken by ``u`` below, so nothing of the proof is lost.

**P-values.** For each score, with all ``m`` scores so far including the calibration's and itself, ``p = (#{s_i > s} + u #{s_i =
s}) / m``. If the scores are exchangeable and each ``u`` is independent and uniform on ``(0, 1]``, the p-values are independent
and uniform (Vovk, Nouretdinov and Gammerman 2003). ``u`` comes from SHA-256 of the class's name and the number of the score:
two runs over the same scores agree, and ``u`` has nothing to do with the scores.

**Bets.** ``p_t`` is the p-value of the ``t``-th accepted part. ``f_e(p) = e p^(e - 1)`` for ``0 < e < 1`` integrates to 1 and
pays for small ``p``, that is for scores larger than before. Let ``w_i = 1 / log2(i + 1) - 1 / log2(i + 2)``, which sum to 1,
and ``S_t = (S_(t-1) + w_t) f_e(p_t)``: a stake ``w_i`` begins to bet at part ``i``. With the stakes that have not begun, ``M_t
= mean over e of S_t + 1 / log2(t + 2)``. Then ``M_0 = 1``, ``M_t >= 0`` and ``E[M_t | p_1 … p_(t-1)] = M_(t-1)``. By Ville's
inequality ``P(sup M_t >= 1 / alpha) <= alpha``, over all time. Because a stake begins at each part, a change after ``t`` quiet
parts has to make up for about ``log t + 2 log log t`` only, not for all that was lost by betting before.

**Leave-one-out scores.** The bound is proven for held-out scores only. Calibration scores of enrolled parts use one support
less than later parts do, so they are no smaller than they would be otherwise. Later scores then rank lower, and bets on small
``p`` lose on average. But later parts share one bank, which may fit its own supports better than others:
``benchmarks/exchangeability.py`` measures how often.

What it cannot see: a change that makes scores smaller, or one that lifts nearly all scores beyond the limit. Those parts are
rejected, not accepted, and the rate of rejects shows it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ...errors import VisionADError

CELLS = 4096
"""Cells of the scores from 0 to the limit."""
EXPONENTS = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
"""Exponents ``e`` of the bets: small ones win fast where every score exceeds the calibration's, large ones where few do."""
STATE_VERSION = 1


class ExchangeabilityMonitor:
    """Test whether the accepted parts of a class are like its calibration's.

    Not safe for use by several threads at once.

    Args:
        calibration_scores: scores of the calibration's good images, in any order. Those below ``limit`` are used.
        limit: the limit of the verdict ``ok``, which is one of the calibration's scores.
        alpha: bound of the probability that the alarm is ever raised while the promise holds, between 0 and 1.
        name: name of the class. It determines how ties are broken.

    Raises:
        VisionADError: ``alpha`` is out of range, or a score or the limit is not finite.
    """

    def __init__(self, calibration_scores: Iterable[float], limit: float, alpha: float = 0.01, name: str = "") -> None:
        if not 0 < alpha < 1:
            raise VisionADError(f"exchangeability alarm: alpha {alpha}: expected a rate between 0 and 1, e.g. 0.01")
        self._limit, self._alpha, self._name = _finite(limit), alpha, name
        self._resets, self._count = 0, 0
        self._alarmed = False
        self._log_stakes: list[float] = []
        self._calibration: dict[int, int] = {}
        for score in calibration_scores:
            if _finite(score) < self._limit:
                cell = self._cell(score)
                self._calibration[cell] = self._calibration.get(cell, 0) + 1
        self._start()

    @property
    def value(self) -> float:
        """The martingale now: evidence against exchangeability, 1 at the start. The alarm is raised at ``1 / alpha``."""
        return math.exp(min(self._log_value(), 700.0))

    @property
    def alarmed(self) -> bool:
        """Whether the martingale has reached ``1 / alpha`` since the start or the last :meth:`reset`."""
        return self._alarmed

    @property
    def count(self) -> int:
        """Number of scores that were tested since the start or the last :meth:`reset`."""
        return self._count

    def observe(self, score: float) -> bool:
        """Test the score of a part that was accepted as ``ok``. Time and memory do not grow with the number of parts.

        A score that is not below the limit is not tested (the module's docstring says why).

        Args:
            score: score of the part.

        Returns:
            Whether the alarm is raised. It stays raised until :meth:`reset`.

        Raises:
            VisionADError: The score is not finite. Nothing is changed.
        """
        if _finite(score) >= self._limit:
            return self._alarmed
        cell = self._cell(score)
        self._accepted[cell] = self._accepted.get(cell, 0) + 1
        self._ranks.add(cell, 1)
        self._count += 1
        above = self._ranks.total - self._ranks.up_to(cell)
        equal = self._calibration.get(cell, 0) + self._accepted[cell]
        log_p = math.log((above + self._tie() * equal) / self._ranks.total)
        log_stake = math.log(_stake(self._count))
        self._log_stakes = [
            _log_add(log_s, log_stake) + math.log(e) + (e - 1) * log_p
            for e, log_s in zip(EXPONENTS, self._log_stakes, strict=True)
        ]
        self._alarmed = self._alarmed or self._log_value() >= -math.log(self._alpha)
        return self._alarmed

    def reset(self) -> None:
        """Begin anew from the calibration's scores: the cause was mended. The bound holds for each run apart."""
        self._resets += 1
        self._start()

    def state(self) -> dict[str, Any]:
        """Return all of the monitor as JSON types, for :meth:`from_state`. It has at most ``2 * CELLS`` pairs of numbers."""
        return {
            "version": STATE_VERSION,
            "name": self._name,
            "limit": self._limit,
            "alpha": self._alpha,
            "resets": self._resets,
            "alarmed": self._alarmed,
            "calibration": [list(pair) for pair in sorted(self._calibration.items())],
            "accepted": [list(pair) for pair in sorted(self._accepted.items())],
            "log_stakes": [log_s if math.isfinite(log_s) else None for log_s in self._log_stakes],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ExchangeabilityMonitor:
        """Return the monitor whose :meth:`state` this is. It continues bit for bit.

        Raises:
            VisionADError: The state is damaged, or a later release wrote it.
        """
        try:
            if state["version"] != STATE_VERSION:
                raise ValueError(f"version {state['version']}")
            monitor = cls((), float(state["limit"]), float(state["alpha"]), str(state["name"]))
            monitor._resets, monitor._calibration = int(state["resets"]), _counts(state["calibration"])
            monitor._start()
            monitor._accepted = _counts(state["accepted"])
            for cell, n in monitor._accepted.items():
                monitor._ranks.add(cell, n)
            monitor._count, monitor._alarmed = sum(monitor._accepted.values()), bool(state["alarmed"])
            stakes = [-math.inf if log_s is None else _finite(log_s) for log_s in state["log_stakes"]]
            if len(stakes) != len(EXPONENTS):
                raise ValueError(f"{len(stakes)} stakes")
            monitor._log_stakes = stakes
        except (KeyError, TypeError, ValueError, VisionADError) as exc:
            raise VisionADError(
                f"exchangeability alarm: expected a state of version {STATE_VERSION}, got {type(exc).__name__} {exc}: "
                "begin a new monitor from the calibration"
            ) from None
        return monitor

    def _start(self) -> None:
        self._accepted: dict[int, int] = {}
        self._ranks = _Ranks()
        for cell, n in self._calibration.items():
            self._ranks.add(cell, n)
        self._count, self._alarmed = 0, False
        self._log_stakes = [-math.inf] * len(EXPONENTS)

    def _cell(self, score: float) -> int:
        """Return the cell of a score below the limit. It never falls as the score rises."""
        if score <= 0 or self._limit <= 0:
            return 0
        return min(CELLS - 1, int(score / self._limit * CELLS))

    def _tie(self) -> float:
        """Return ``u`` of the current score, in (0, 1]."""
        digest = hashlib.sha256(f"{self._name}\0{self._resets}\0{self._count}".encode()).digest()
        return ((int.from_bytes(digest[:8], "big") >> 11) + 1) / 2**53

    def _log_value(self) -> float:
        started = -math.inf
        for log_s in self._log_stakes:
            started = _log_add(started, log_s)
        return _log_add(started - math.log(len(EXPONENTS)), -math.log(math.log2(self._count + 2)))


class _Ranks:
    """Counts by cell whose sums take ``log2(CELLS)`` steps (Fenwick 1994)."""

    def __init__(self) -> None:
        self._tree = [0] * (CELLS + 1)
        self.total = 0

    def add(self, cell: int, n: int) -> None:
        self.total += n
        i = cell + 1
        while i <= CELLS:
            self._tree[i] += n
            i += i & -i

    def up_to(self, cell: int) -> int:
        """Return the number of scores in this cell and below."""
        i, count = cell + 1, 0
        while i:
            count += self._tree[i]
            i -= i & -i
        return count


def _stake(i: int) -> float:
    """Return ``1 / log2(i + 1) - 1 / log2(i + 2)``, without cancellation."""
    return math.log1p(1 / (i + 1)) / math.log(2) / (math.log2(i + 1) * math.log2(i + 2))


def _log_add(a: float, b: float) -> float:
    """Return ``log(exp(a) + exp(b))``."""
    high, low = max(a, b), min(a, b)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise VisionADError(f"exchangeability alarm: expected a finite score, got {value}; run `visionad doctor`")
    return float(value)


def _counts(pairs: Iterable[Iterable[int]]) -> dict[int, int]:
    counts = {int(cell): int(n) for cell, n in pairs}
    if not all(0 <= cell < CELLS and n > 0 for cell, n in counts.items()):
        raise ValueError("counts out of range")
    return counts
