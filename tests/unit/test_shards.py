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
        ("auto/4", {"JOB_COMPLETION_INDEX": "5"}),
        (None, {"JOB_COMPLETION_INDEX": "1"}),
    ],
)
def test_what_is_no_shard_is_refused(text: str | None, environment: dict[str, str]) -> None:
    with pytest.raises(VisionADError, match="--shard"):
        parse_shard(text, environment)
