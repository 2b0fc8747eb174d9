"""The loop of `watch`: what it notes in the journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from visionad_runtime import ImageError
from visionad_runtime.images.discover import ImageFile
from visionad_runtime.result import FileResult
from visionad_runtime.station.judging.judge import Judge
from visionad_runtime.station.watch.arrivals import ArrivalLoop
from visionad_runtime.station.watch.detected import DetectedFile, FileStamp
from visionad_runtime.station.watch.folder_source import FolderSource
from visionad_runtime.station.watch.journal import Journal


class _Source:
    """Hands one file over, and never again."""

    def __init__(self, one: DetectedFile) -> None:
        self._one = one

    def __iter__(self) -> Any:
        yield self._one

    def retry(self, _: DetectedFile) -> bool:
        return False


class _Judge:
    """Cannot read the file, which may be moved away at that moment."""

    def __init__(self, *, moved: bool) -> None:
        self._moved = moved

    def refresh(self) -> bool:
        return False

    def judge_file(self, path: Path, *_: object) -> FileResult:
        if self._moved:
            path.unlink()
        return FileResult(path, None, None, None, ImageError(f"{path}: cannot be read"))


class _Output:
    def __init__(self) -> None:
        self.counts, self.said = Counter[str](), list[str]()

    def add(self, one: FileResult, name: Path) -> Mapping[str, Any]:
        self.said.append(f"{name}: {one.error}")
        return {"error": str(one.error)}

    def error(self, path: Path, error: Exception | None) -> Mapping[str, Any]:
        raise AssertionError((path, error))


@pytest.mark.parametrize("moved", [False, True])
def test_a_file_that_was_moved_away_before_it_was_read_is_not_done(tmp_path: Path, moved: bool) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "a.png"
    path.write_bytes(b"no image")
    one = DetectedFile(ImageFile(path, Path("a.png")), FileStamp.of(path.stat()))
    journal, output = Journal(tmp_path / "journal.jsonl", folder), _Output()
    source, judge = cast(FolderSource, _Source(one)), cast(Judge, _Judge(moved=moved))
    ArrivalLoop(judge, source, output, journal, None, None, print).run(lambda: False)
    assert len(output.said) == 1  # it is said in any case
    assert [done.image.name for done in journal.processed([one])] == ([] if moved else [Path("a.png")])
    journal.close()
