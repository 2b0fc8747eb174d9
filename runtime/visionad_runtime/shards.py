"""Parts of a run that are computed apart, by any scheduler: ``--shard I/N``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import VisionADError

KUBERNETES = "JOB_COMPLETION_INDEX"
"""Variable with the index of a pod in an Indexed Job, from 0."""
SLURM_INDEX, SLURM_COUNT = "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"
SLURM_FIRST, SLURM_LAST, SLURM_STEP = "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP"
"""Variables of a task in a job array."""
_SHARD = re.compile(r"(?:(?P<index>\d{1,9})|auto)/(?P<count>\d{1,9})")
HOW = "expected --shard I/N, such as 3/8, or auto/N in an Indexed Job or a job array"


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th unit of work.

    Attributes:
        index: 0 to ``count - 1``.
        count: number of shards.
    """

    index: int
    count: int

    def holds(self, unit: int) -> bool:
        """Return whether a unit of work belongs to this shard."""
        return unit % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard(0, 1)


def parse_shard(text: str | None, environment: Mapping[str, str] | None = None) -> Shard:
    """Return the shard of a command line and its environment.

    ``I/N`` counts from 0 or from 1: shard ``N/N`` is ``0/N``, so either way of counting covers all units once. ``auto/N`` takes
    the index from the scheduler. Without text, a Slurm job array says both.

    Args:
        text: value of ``--shard``.
        environment: variables; ``None`` for those of the process.

    Raises:
        VisionADError: The text is no shard, the scheduler gives no index, or an Indexed Job runs without a number of shards.
    """
    variables = os.environ if environment is None else environment
    if text is None:
        if SLURM_INDEX in variables and SLURM_COUNT in variables:
            return _checked(*_scheduled(variables), text)
        if KUBERNETES in variables:
            raise VisionADError(
                f"{KUBERNETES} is set, so other pods do the same work; {HOW}, with N the number of completions"
            )
        return WHOLE
    match = _SHARD.fullmatch(text)
    if match is None:
        raise VisionADError(f"--shard {text}: {HOW}")
    count = int(match["count"])
    if match["index"] is None:
        return _checked(_scheduled(variables)[0], count, text)
    index = int(match["index"])
    if count < 1 or index > count:
        raise VisionADError(f"--shard {text}: got index {index} of {count} shards; {HOW}")
    return Shard(index % count, count)


def _scheduled(variables: Mapping[str, str]) -> tuple[int, int]:
    """Return the index that the scheduler gives, from 0, and its number of tasks or 0."""
    try:
        if KUBERNETES in variables:
            return int(variables[KUBERNETES]), 0
        if SLURM_INDEX in variables:
            return _slurm(variables)
    except ValueError:
        raise VisionADError(f"{KUBERNETES} or {SLURM_INDEX} is no whole number; {HOW}") from None
    raise VisionADError(f"--shard auto: neither {KUBERNETES} nor {SLURM_INDEX} is set; {HOW}")


def _slurm(variables: Mapping[str, str]) -> tuple[int, int]:
    task, first = int(variables[SLURM_INDEX]), int(variables.get(SLURM_FIRST, "0"))
    count, step = int(variables.get(SLURM_COUNT, "0")), int(variables.get(SLURM_STEP, "1")) or 1
    last = int(variables.get(SLURM_LAST, str(first + (count - 1) * step)))
    index, rest = divmod(task - first, step)
    if rest or (count and last != first + (count - 1) * step):  # such as --array=1,3
        raise VisionADError(
            f"{SLURM_INDEX} is {task} of {count} tasks from {first} to {last}, which are not evenly spaced, so that their shards "
            f"are not known; say which with --shard I/N, or number the tasks from 0"
        )
    return index, count


def _checked(index: int, count: int, text: str | None) -> Shard:
    if count < 1 or not 0 <= index < count:
        raise VisionADError(f"--shard {text or 'from the job array'}: got index {index} of {count} shards; {HOW}")
    return Shard(index, count)
