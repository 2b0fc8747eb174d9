"""Timing side by side: who is compared runs in turns within one run, so that a busy minute or a slower clock hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ENOUGH = {"p50": 1, "p95": 20, "p99": 100}
"""Calls a percentile is given from: with fewer, no call at all lies beyond it."""
MIN_ROUNDS = 3
MAX_CALLS = 2000


class TorchBaseline(NamedTuple):
    """PyTorch as a candidate: its backbone alone, or the whole method.

    Attributes:
        where: device that it runs on.
        encode: encodes views, float32 (N, 3, crop, crop), to float32 arrays; ``None`` for a whole method.
        inspect: inspects an image file; ``None`` for a backbone alone.
    """

    where: str
    encode: Callable[[NDArray[np.float32]], object] | None
    inspect: Callable[[Path], object] | None


@dataclass
class Candidate:
    """Something to time. ``call`` is given the number of the call, to choose its images by; what it returns is not kept.

    ``rounds`` holds milliseconds a call, a list for each round.
    """

    name: str
    call: Callable[[int], object]
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """Milliseconds of every timed call."""
        return [t for one in self.rounds for t in one]


def time_interleaved(
    candidates: Sequence[Candidate],
    seconds: float,
    rounds: int,
    step: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Time the candidates in turns within one run. Fills their ``rounds``; the call that warms up is numbered 0 and not kept.

    Each gets about ``seconds`` in all, and at least one call a round. Who begins changes from round to round. Where calls are
    so slow that one a round takes longer than that, there are fewer rounds, but never fewer than three.

    Args:
        step: called ``rounds`` times in all.
    """
    slow = []
    for candidate in candidates:
        start = clock()
        candidate.call(0)
        slow.append(max(clock() - start, 1e-7))
    turns = max(min(rounds, MIN_ROUNDS), min(rounds, int(seconds / max(slow))))
    calls = [min(MAX_CALLS, max(1, round(seconds / turns / one))) for one in slow]
    for turn in range(turns):
        for i in range(len(candidates)):
            which = (turn + i) % len(candidates)
            candidate, count = candidates[which], calls[which]
            times = []
            for n in range(count):
                start = clock()
                candidate.call(1 + turn * count + n)
                times.append((clock() - start) * 1e3)
            candidate.rounds.append(times)
        step()
    for _ in range(rounds - turns):
        step()


def summarise(times: Sequence[float]) -> dict[str, Any]:
    """Number of calls, mean and percentiles of ``times`` (ms), interpolated linearly between calls.

    A percentile that too few calls lie behind is ``None``, and ``why_null`` says so.
    """
    found: dict[str, Any] = {"calls": len(times), "mean": round(statistics.fmean(times), 4)}
    missing = {}
    for name, wanted in ENOUGH.items():
        if len(times) >= wanted:
            found[name] = round(float(np.percentile(times, int(name[1:]))), 4)
        else:
            found[name] = None
            missing[name] = f"{len(times)} calls; expected at least {wanted} (--seconds)"
    if missing:
        found["why_null"] = missing
    return found


def ratio(a: Candidate, b: Candidate) -> dict[str, Any]:
    """How many times as long ``a`` takes as ``b``: the median over rounds of the ratio of their medians in that round."""
    pairs = [statistics.median(x) / statistics.median(y) for x, y in zip(a.rounds, b.rounds, strict=True)]
    return {
        "median": round(statistics.median(pairs), 4),
        "lowest": round(min(pairs), 4),
        "highest": round(max(pairs), 4),
        "rounds": len(pairs),
    }


def throughput(candidate: Candidate, batch: int) -> float:
    """Images a second over all calls."""
    return round(batch * len(candidate.times) / (sum(candidate.times) / 1e3), 3)


def stage_table(timings: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Stage → :func:`summarise` of its milliseconds an image, and its ``share`` of the whole by medians."""
    table = {stage: summarise([t[stage] for t in timings]) for stage in timings[0]}
    whole = table["total"]["p50"]
    for row in table.values():
        row["share"] = round(row["p50"] / whole, 4) if whole else None
    return table
