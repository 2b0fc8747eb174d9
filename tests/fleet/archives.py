"""Archives of images, what ``predict`` says of them, and what a batch run has written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2

from tests.data import part

COMMAND = "from visionad_runtime.cli.entry import main; main()"


def write_images(folder: Path, count: int) -> Path:
    folder.mkdir()
    for seed in range(count):
        image = part(seed, defect=seed % 5 == 0, kind="grid" if seed % 2 else "disc")
        cv2.imwrite(str(folder / f"{seed:04d}.png"), image)
    (folder / "zz.png").write_bytes(b"no image")
    return folder


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def predicted(model: Path, bank: Path, images: Path) -> dict[str, object]:
    """Return what ``predict --json`` says of each image, without times."""
    lines = run("predict", model, bank, images, "--json", "--threads", "1").splitlines()
    facts = [json.loads(line) for line in lines]
    return {one["image"]: {k: v for k, v in one.items() if k != "timings_ms"} for one in facts}


def written(out: Path) -> tuple[dict[str, object], int]:
    """Return the rows of the one run in a folder by image, without times, and how often an image stands twice."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from visionad_runtime.fleet.batch.rows import facts_of

    (folder,) = out.glob("run=*")
    parts = sorted(folder.glob("part-*.parquet"))
    assert [
        path for path in folder.iterdir() if path.suffix not in (".parquet", ".json") and not path.name.endswith(".tmp")
    ] == []
    rows = pa.concat_tables([pq.read_table(path) for path in parts]).to_pylist()
    counts = Counter(row["image"] for row in rows)
    assert sorted(row["id"] for row in rows) == list(range(len(rows)))
    facts = {row["image"]: {k: v for k, v in facts_of(row).items() if k != "timings_ms"} for row in rows}
    return facts, sum(counts.values()) - len(counts)
