"""Shards: each unit belongs to one, however they are counted, and schedulers say which."""

from __future__ import annotations

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.shards import WHOLE, Shard, parse_shard


@pytest.mark.parametrize("first", [0, 1])
def test_each_unit_belongs_to_one_shard(first: int) -> None:
    shards = [parse_shard(f"{i}/3", {}) for i in range(first, first + 3)]
    assert all(sum(shard.holds(unit) for shard in shards) == 1 for unit in range(100))


def test_the_scheduler_says_which() -> None:
    assert parse_shard("auto/8", {"JOB_COMPLETION_INDEX": "0"}) == Shard(0, 8)
    assert parse_shard("auto/8", {"JOB_COMPLETION_INDEX": "7"}) == Shard(7, 8)
    array = {"SLURM_ARRAY_TASK_ID": "13", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert parse_shard(None, array) == Shard(3, 4)
    assert parse_shard("auto/4", array) == Shard(3, 4)
    assert parse_shard("2/5", array) == Shard(2, 5)
    assert parse_shard(None, {}) == WHOLE


def array(task: int, first: int, last: int, count: int, step: int) -> dict[str, str]:
    facts = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in facts.items()}


@pytest.mark.parametrize("tasks", [range(8), range(1, 6), range(1, 6, 2), range(0, 12, 4), range(7, 8)])
def test_a_job_array_covers_each_shard_once(tasks: range) -> None:
    found = [parse_shard(None, array(task, tasks[0], tasks[-1], len(tasks), tasks.step)) for task in tasks]
    assert found == [Shard(index, len(tasks)) for index in range(len(tasks))]


@pytest.mark.parametrize("text", [None, "auto/2"])
@pytest.mark.parametrize("task", [1, 3])
def test_an_array_with_gaps_is_refused(task: int, text: str | None) -> None:
    with pytest.raises(VisionADError, match="--shard I/N"):
        parse_shard(text, array(task, 1, 3, 2, 1))


@pytest.mark.parametrize(
    "text, environment",
    [
        ("4/3", {}),
        ("1/0", {}),
        ("0/0", {}),
        ("-1/3", {}),
        ("1", {}),
        ("a/b", {}),
        ("auto", {}),
        ("auto/4", {}),
        ("auto/4", {"JOB_COMPLETION_INDEX": "x"}),
        ("auto/4", {"JOB_COMPLETION_INDEX": "4"}),
        ("auto/4", {"JOB_COMPLETION_INDEX": "5"}),
        (None, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2"}),
        (None, {"JOB_COMPLETION_INDEX": "1"}),
    ],
)
def test_what_is_no_shard_is_refused(text: str | None, environment: dict[str, str]) -> None:
    with pytest.raises(VisionADError, match="--shard"):
        parse_shard(text, environment)
