"""What lies below a folder: images, and what is passed over, which is counted and said."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime import VisionADError
from visionad_runtime.images.discover import SUFFIXES, find_images
from visionad_runtime.images.scan import SYSTEM_FOLDERS, describe_passed_over, scan


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        "#recycle",
        "#snapshot",
        "@Recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        ".Trashes",
    ],
)
def test_folders_of_storage_systems_are_left_out(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.png", f"{name}/b.png", f"sub/{name}/c.png")
    assert [f.name.as_posix() for f in find_images([tmp_path])] == ["a.png"]
    assert ("2 hidden" if name.startswith(".") else f"2 system folder ({name})") in caplog.text
    assert [f.name.as_posix() for f in find_images([tmp_path / name])] == ["b.png"]  # named, so meant
    assert all(name == name.lower() for name in SYSTEM_FOLDERS)


def test_what_is_passed_over_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a.png", "b.heic", "c.heic", "README", ".hidden.png", ".git/x.png", "elsewhere/d.png")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(find_images([tmp_path])) == 2
    assert [r.getMessage() for r in caplog.records] == [
        f"folder {tmp_path}: passed over 3 of another ending (.heic, none), 1 linked folder (link), 2 hidden"
    ]
    touch(tmp_path, *(f"x.{i}" for i in range(9)))
    assert "(.0, .1, .2, .3, .4, 6 more)" in describe_passed_over(scan(tmp_path, SUFFIXES).passed_over)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(VisionADError, match=r"holds no image .*; passed over: 1 linked folder \(link\)"):
        find_images([tmp_path / "only"])


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("done", ["a.png", "deep/b_raw.png"]),
        ("done/", ["a.png", "deep/b_raw.png"]),
        ("*_raw.png", ["a.png", "deep/done/d.png", "done/c.png"]),
        ("deep/done", ["a.png", "deep/b_raw.png", "done/c.png"]),
        ("./deep/*", ["a.png", "done/c.png"]),
        ("DONE", ["a.png", "deep/b_raw.png", "deep/done/d.png", "done/c.png"]),
        ("[ab]*.png", ["deep/done/d.png", "done/c.png"]),
    ],
)
def test_patterns_leave_files_and_folders_out(tmp_path: Path, pattern: str, left: list[str]) -> None:
    touch(tmp_path, "a.png", "deep/b_raw.png", "done/c.png", "deep/done/d.png")
    assert [f.name.as_posix() for f in find_images([tmp_path], [pattern])] == left


def test_an_empty_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VisionADError, match="expected a pattern"):
        scan(tmp_path, SUFFIXES, ["/"])


def test_a_folder_that_cannot_be_listed_stops_the_others_only_where_all_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "a.png", "locked/b.png", "gone/c.png", "z/d.png")
    real = os.scandir
    numbers = {"locked": errno.EACCES, "gone": errno.ENOENT}

    def refuse(path: Path) -> Iterator[os.DirEntry[str]]:
        if (number := numbers.get(path.name)) is not None:
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(VisionADError, match="locked cannot be listed: Permission denied"):
        find_images([tmp_path])
    errors: list[VisionADError] = []
    assert [f.name.as_posix() for f in find_images([tmp_path], errors=errors)] == ["a.png", "z/d.png"]
    assert list(map(str, errors)) == [f"folder {tmp_path / 'locked'} cannot be listed: Permission denied"]


def test_names_of_any_length_are_arguments(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300 + ".png")  # reading it says what is wrong
    assert [f.path for f in find_images([long])] == [long]
