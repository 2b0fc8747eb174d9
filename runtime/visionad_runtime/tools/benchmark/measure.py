"""Interleaved timing: candidates take turns within one run, so that a busy minute or a lower clock affects all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_CALLS = {"p50": 1, "p95": 20, "p99": 100}
"""Calls that a percentile needs. With fewer, no call lies beyond it."""
MIN_ROUNDS = 3
MAX_CALLS = 2000


class TorchBaseline(NamedTuple):
    """PyTorch as a candidate: its backbone alone, or the whole method.

    Attributes:
        where: device that runs it.
        encode: encodes views, float32 (N, 3, crop, crop), to float32 arrays; ``None`` for a whole method.
        inspect: inspects an image file; ``None`` for a backbone alone.
    """

    where: str
    encode: Callable[[NDArray[np.float32]], object] | None
    inspect: Callable[[Path], object] | None


@dataclass
class Candidate:
    """A call to time.

    Attributes:
        name: title in the report.
        call: takes the number of the call, which selects its images. Its result is discarded.
        rounds: milliseconds of each call, one list per round.
    """

    name: str
    call: Callable[[int], object]
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """Milliseconds of every timed call."""
        return [t for times in self.rounds for t in times]


def time_interleaved(
    candidates: Sequence[Candidate],
    seconds: float,
    rounds: int,
    step: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Time the candidates in turns within one run, and fill their ``rounds``.

    Each candidate gets at least one call per round. The first one changes from round to round. If one call per round takes longer
    than ``seconds``, there are fewer rounds, but never fewer than :data:`MIN_ROUNDS`. Call 0 warms up and is not recorded.

    Args:
        candidates: calls to time.
        seconds: approximate time of each candidate.
        rounds: number of rounds.
        step: called ``rounds`` times in all.
        clock: returns seconds.
    """
    durations = []
    for candidate in candidates:
        start = clock()
        candidate.call(0)
        durations.append(max(clock() - start, 1e-7))
    actual_rounds = max(min(rounds, MIN_ROUNDS), min(rounds, int(seconds / max(durations))))
    calls = [min(MAX_CALLS, max(1, round(seconds / actual_rounds / duration))) for duration in durations]
    for number in range(actual_rounds):
        for i in range(len(candidates)):
            index = (number + i) % len(candidates)
            candidate, count = candidates[index], calls[index]
            times = []
            for n in range(count):
                start = clock()
                candidate.call(1 + number * count + n)
                times.append((clock() - start) * 1e3)
            candidate.rounds.append(times)
        step()
    for _ in range(rounds - actual_rounds):
        step()


def summarize(times: Sequence[float]) -> dict[str, Any]:
    """Summarize times.

    Args:
        times: milliseconds of each call, at least one.

    Returns:
        Number of calls, mean, and percentiles with linear interpolation. A percentile of too few calls is ``None``, with the
        reason in ``why_null``.
    """
    summary: dict[str, Any] = {"calls": len(times), "mean": round(statistics.fmean(times), 4)}
    missing = {}
    for name, minimum in MIN_CALLS.items():
        if len(times) >= minimum:
            summary[name] = round(float(np.percentile(times, int(name[1:]))), 4)
        else:
            summary[name] = None
            missing[name] = f"{len(times)} calls; expected at least {minimum} (--seconds)"
    if missing:
        summary["why_null"] = missing
    return summary


def ratio(a: Candidate, b: Candidate) -> dict[str, Any]:
    """Compare two candidates: the time of ``a`` divided by that of ``b``.

    The ratio of a round is that of the medians in it. The result has the median, lowest and highest ratio over the rounds.
    """
    ratios = [statistics.median(x) / statistics.median(y) for x, y in zip(a.rounds, b.rounds, strict=True)]
    return {
        "median": round(statistics.median(ratios), 4),
        "lowest": round(min(ratios), 4),
        "highest": round(max(ratios), 4),
        "rounds": len(ratios),
    }


def throughput(candidate: Candidate, batch: int) -> float:
    """Return images per second over all calls."""
    return round(batch * len(candidate.times) / (sum(candidate.times) / 1e3), 3)


def stage_table(timings: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Summarize the stages of inspections.

    Args:
        timings: milliseconds by stage, with ``total``, of each image.

    Returns:
        Stage → :func:`summarize` of its times, and its ``share`` of the total, by medians.
    """
    table = {stage: summarize([t[stage] for t in timings]) for stage in timings[0]}
    total = table["total"]["p50"]
    for row in table.values():
        row["share"] = round(row["p50"] / total, 4) if total else None
    return table
