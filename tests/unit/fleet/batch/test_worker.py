"""A worker in another working folder than the run's, as on a node of a cluster."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from visionad_runtime import Inspector

from tests.data import part

pytest.importorskip("pyarrow", reason="batch runs take the batch extra")

from visionad_runtime.fleet.batch.source import Block
from visionad_runtime.fleet.batch.worker import Settings, Worker


def test_relative_images_are_those_of_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(100 + i) for i in range(3)])
    for folder, seed in (("run", 1), ("node", 2)):  # the node has another image of that name
        (tmp_path / folder / "in").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / "in" / "a.png"), part(seed))
    monkeypatch.chdir(tmp_path / "node")
    worker = Worker(Settings(str(tiny_model), str(tmp_path / "bank"), folder=str(tmp_path / "run")), str(tmp_path))
    images = ("in/a.png", str(tmp_path / "run/in/a.png"), str(tmp_path / "node/in/a.png"), "in/b.png")
    rows = worker.rows(Block(0, 0, images, (None,) * 4))
    worker.close()
    assert rows[0]["score"] == rows[1]["score"] != rows[2]["score"]
    assert rows[0]["image"] == "in/a.png"
    assert str(tmp_path / "run/in/b.png") in rows[3]["error"]
