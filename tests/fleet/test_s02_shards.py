"""S2: shards of ``batch`` under GNU parallel, killed with their group and resumed: no row lost, none twice, all as ``predict``."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fleet.archives import COMMAND, predicted, run, write_images, written
from tests.fleet.components import module, note, program, releases

pytestmark = pytest.mark.slow(group="fleet")

COUNT, SHARDS, KILLS = 160, 8, 6


def test_s2_killed_with_its_group_and_resumed(tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    module("pyarrow")
    images = write_images(tmp_path / "images", COUNT)
    expected = predicted(tiny_model, filled_bank, images)
    rng, kills, turns, lost, repeated = random.Random(2), 0, 0, 0, 0
    while kills < KILLS:
        out, log, turns = tmp_path / f"out{turns}", tmp_path / f"joblog{turns}", turns + 1
        assert turns <= KILLS, "the runs were too short to be killed"
        job = [sys.executable, "-c", f"'{COMMAND}'", "batch", tiny_model, filled_bank, images, "--out", out]
        line = " ".join(map(str, [*job, "--block", 8, "--workers", 1, "--shard", f"{{}}/{SHARDS}"]))
        command = ["perl", program("parallel"), "--will-cite", "-j", "2", "--joblog", log, "--resume-failed", line]
        command += [":::", *map(str, range(SHARDS))]
        is_killed = True
        while is_killed and kills < KILLS:
            process = subprocess.Popen(
                command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            try:
                process.wait(rng.uniform(1, 5))
                is_killed = False
            except subprocess.TimeoutExpired:
                kills += 1
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        rows, twice = written(out)
        lost, repeated = lost + len(expected.keys() - rows.keys()), repeated + twice
        assert (lost, repeated) == (0, 0)
        assert rows == expected
        assert "finished before" in run("batch", tiny_model, filled_bank, images, "--out", out, "--block", 8)
    figures = {
        "kills": kills,
        "runs": turns,
        "shards": SHARDS,
        "rows_each": len(expected),
        "lost": lost,
        "repeated": repeated,
    }
    note("S2", **figures, releases=releases("parallel", "pyarrow"))


def test_s2_two_workers_on_one_shard_at_once(tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    module("pyarrow")
    images, out = write_images(tmp_path / "images", 60), tmp_path / "out"
    arguments = [
        "batch",
        tiny_model,
        filled_bank,
        images,
        "--out",
        out,
        "--block",
        "4",
        "--workers",
        "1",
        "--shard",
        "0/1",
    ]
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    rows, twice = written(out)
    assert twice == 0
    assert rows == predicted(tiny_model, filled_bank, images)


def test_schedulers_say_which_shard(tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    module("pyarrow")
    images, out = write_images(tmp_path / "images", 20), tmp_path / "out"
    arguments = ["batch", tiny_model, filled_bank, images, "--out", out, "--block", "4", "--workers", "1"]
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "2"}
    subprocess.run(command, check=True, env={**os.environ, **array}, capture_output=True)
    indexed = {**os.environ, "JOB_COMPLETION_INDEX": "1"}
    assert subprocess.run(command, env=indexed, capture_output=True).returncode == 2
    subprocess.run([*command, "--shard", "auto/2"], check=True, env=indexed, capture_output=True)
    assert written(out)[0] == predicted(tiny_model, filled_bank, images)


def test_a_killed_run_leaves_no_worker(tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    module("pyarrow")
    import psutil

    images = write_images(tmp_path / "images", 200)
    arguments = ["batch", tiny_model, filled_bank, images, "--out", tmp_path / "out", "--workers", "2", "--block", "50"]
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *map(str, arguments)])
    children: list[psutil.Process] = []
    end = time.monotonic() + 60
    while len(children) < 3 and time.monotonic() < end and process.poll() is None:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.1)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_compare_says_what_another_bank_changes(tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    module("pyarrow")
    import shutil

    from visionad_runtime.bank.store import Bank

    images = write_images(tmp_path / "images", 12)
    other = shutil.copytree(filled_bank, tmp_path / "other")
    Bank.open(other).update("grid", "t", lambda held: held.entry.model_copy(update={"threshold": 99.0}))
    for name, bank in (("a", filled_bank), ("b", other)):
        run("batch", tiny_model, bank, images, "--out", tmp_path / name, "--workers", "1")
    found = json.loads(run("compare", tmp_path / "a", tmp_path / "b", "--json"))
    before, after = predicted(tiny_model, filled_bank, images), predicted(tiny_model, other, images)
    changed = [name for name in before if before[name].get("verdict") != after[name].get("verdict")]  # type: ignore[attr-defined]
    assert changed and found["flipped"] == len(changed)
    assert set(found["flips"]) == {"grid"} and found["moved"] == 0
    assert {one["image"] for one in found["flipped_images"]} == set(changed)


@pytest.mark.parametrize("kind", ["list", "parquet", "folder"])
def test_sources_name_images_and_classes(kind: str, tiny_model: Path, filled_bank: Path, tmp_path: Path) -> None:
    module("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = write_images(tmp_path / "images", 6)
    paths = [str(path) for path in sorted(images.iterdir())]
    source = tmp_path / f"source.{'txt' if kind == 'list' else 'parquet'}"
    if kind == "list":
        source.write_text("\n".join(paths) + "\n")
    else:
        table = pa.table({"image": [f"file://{path}" for path in paths], "class": ["grid"] * len(paths)})
        if kind == "parquet":
            pq.write_table(table, source)
        else:
            (source / "day=2").mkdir(parents=True)
            pq.write_table(table[:4], source / "1.parquet")
            pq.write_table(table[4:], source / "day=2" / "2.parquet")
    run("batch", tiny_model, filled_bank, source, "--out", tmp_path / "out", "--workers", "1")
    rows, _ = written(tmp_path / "out")
    sources = {one.get("class_source") for one in rows.values() if "error" not in one}  # type: ignore[attr-defined, operator]
    assert len(rows) == 7 and sources == ({"routed"} if kind == "list" else {"given"})


def test_a_program_that_read_parquet_ends_well(tmp_path: Path) -> None:
    """Arrow's threads aborted one program in five, after its answer was printed."""
    module("pyarrow")
    import pyarrow as pa
    from visionad_runtime.fleet.parquet import read_parquet, to_parquet

    table = pa.table({"image": ["a", "b"], "score": [1.0, None], "error": [None, "unreadable"]})
    path = tmp_path / "rows.parquet"
    path.write_bytes(to_parquet(table))
    assert read_parquet(path.read_bytes()).equals(table)
    assert read_parquet(path.read_bytes(), ("error", "no such", "image")).column_names == ["error", "image"]
    program = (
        "import sys; from pathlib import Path; from visionad_runtime.fleet.parquet import read_parquet; "
        "rows = read_parquet(Path(sys.argv[1]).read_bytes()).to_pylist()"
    )
    for _ in range(20):
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_parquet_without_images_is_named_with_its_columns(tmp_path: Path) -> None:
    module("pyarrow")
    import pyarrow as pa
    from visionad_runtime.errors import VisionADError
    from visionad_runtime.fleet.batch.source import _read_parquet
    from visionad_runtime.fleet.parquet import to_parquet

    path = tmp_path / "source.parquet"
    path.write_bytes(to_parquet(pa.table({"path": ["a.png"], "label": ["grid"]})))
    with pytest.raises(VisionADError, match="expected a column 'image' with paths or URLs, got path, label"):
        _read_parquet(str(path))
    path.write_bytes(b"no Parquet")
    with pytest.raises(VisionADError, match="expected Parquet"):
        _read_parquet(str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(VisionADError, match="expected Parquet"):
        _read_parquet(str(tmp_path / "empty"))
