"""Images that a person keeps: what is answered is what became of them."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime.station.front.cycle import Job
from visionad_runtime.station.settings import Archive
from visionad_runtime.station.worker import archive
from visionad_runtime.station.worker.archive import ArchiveWriter

JOB = Job(3, 3, "SN-3", 1, 0.0, 1.0, "2026-11-30T06:00:00.000+00:00")


class Camera(NamedTuple):
    evaluation: int
    rgb: NDArray[np.uint8] | None


IMAGE = {"top": Camera(1, np.zeros((8, 8, 3), np.uint8))}


def kept(writer: ArchiveWriter, judged: dict[str, Camera]) -> str:
    answers: queue.Queue[str] = queue.Queue()
    writer.keep(JOB, judged, answers.put)
    return answers.get(timeout=20)


def of(folder: Path, said: list[tuple[Any, ...]]) -> ArchiveWriter:
    settings = Archive.model_validate({"folder": folder, "keep": {"ok": "none", "not_ok": "none"}, "min_free_gb": 0})
    return ArchiveWriter(settings, lambda *message: said.append(message))


def test_it_is_answered_when_the_images_lie_there(tmp_path: Path) -> None:
    said: list[tuple[Any, ...]] = []
    writer = of(tmp_path / "archive", said)
    writer.add(JOB, IMAGE)  # no rule keeps it
    assert kept(writer, IMAGE) == ""
    (path,) = (tmp_path / "archive").rglob("*.png")
    assert said == [("archived", 3, [str(path)])]
    assert "no camera gave an image" in kept(writer, {"top": Camera(3, None)})
    writer.close()


def test_what_cannot_be_written_is_not_called_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "archive").write_bytes(b"a file lies where the folder should be")
    writer = of(tmp_path / "archive", [])
    assert kept(writer, IMAGE)
    monkeypatch.setattr(archive, "MAX_QUEUE", 0)
    assert "too many" in kept(writer, IMAGE)
    writer.close()
