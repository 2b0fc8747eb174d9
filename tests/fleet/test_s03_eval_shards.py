"""S3: three shards of an evaluation at once on one work folder, then gathered, equal a run alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from tests.data import part
from tests.fleet.components import note

COMMAND = "from visionad_runtime.cli.entry import main; main()"


def write_data(root: Path, classes: int) -> Path:
    for number in range(classes):
        for place, seeds, defect in (("train/good", range(3), False), ("test/good", range(3, 6), False),
                                     ("test/scratch", range(6, 8), True)):  # fmt: skip
            folder = root / f"part{number}" / place
            folder.mkdir(parents=True)
            for seed in seeds:
                image = part(100 * number + seed, defect)
                cv2.imwrite(str(folder / f"{seed:03d}.png"), image)
                if defect:
                    masks = root / f"part{number}" / "ground_truth/scratch"
                    masks.mkdir(parents=True, exist_ok=True)
                    mask = (image != part(100 * number + seed)).any(axis=2).astype(np.uint8) * 255
                    cv2.imwrite(str(masks / f"{seed:03d}_mask.png"), mask)
    return root


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "eval", *map(str, arguments), "--threads", "1"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_s3_shards_at_once_equal_a_run_alone(tiny_model: Path, tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", 4)
    common = (tiny_model, "--dataset", "mvtec", "--root", root, "--shots", 1, "--seeds", "1,2")
    shards = [start(*common, "--work", tmp_path / "work", "--shard", f"{i}/3") for i in (1, 2, 3)]
    alone = start(*common, "--json", tmp_path / "alone.json", "--work", tmp_path / "own")
    for process in (*shards, alone):
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert process is alone or "finished" in said
    assert len(list((tmp_path / "work").glob("*.npz"))) == 8, (
        "each unit was computed, and none twice under another name"
    )
    gathered = start(*common, "--work", tmp_path / "work", "--json", tmp_path / "gathered.json")
    said, errors = gathered.communicate(timeout=300)
    assert gathered.returncode == 0, errors
    assert "8 of 8 units were finished already" in said
    assert json.loads((tmp_path / "gathered.json").read_text()) == json.loads((tmp_path / "alone.json").read_text())
    note("S3", shards=len(shards), units=8)


def test_a_shard_takes_a_work_folder(tiny_model: Path, tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", 1)
    process = start(tiny_model, "--dataset", "mvtec", "--root", root, "--shots", 1, "--shard", "1/2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.count("\n") == 1 and "--work" in errors
