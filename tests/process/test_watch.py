"""``visionad watch`` as a process: each image inspected once it is whole, none lost to a restart or to another image."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import pytest
from visionad_runtime import Inspector
from visionad_runtime.cli.main import run

from tests.data import part


class Running:
    """``visionad watch`` as a process of its own."""

    def __init__(self, *arguments: object, out: Any = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from visionad_runtime.cli.entry import main; main()",
                "watch",
                *map(str, arguments),
            ],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        self.out: Any = self.process.stdout
        self.err = self.process.stderr

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def line(tiny_model: Path, good: list[Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Model, bank and an empty folder."""
    bank, folder = tmp_path / "bank", tmp_path / "in"
    folder.mkdir()
    assert run(["bank", "add", str(tiny_model), str(bank), "--class", "disc", *map(str, good[:2])]) == 0
    return tiny_model, bank, folder


def drop(path: Path, seed: int, kind: str = "disc") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), part(seed, kind=kind))


def test_the_line_from_start_to_stop(line: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, bank, folder = line
    drop(folder / "before.png", 1)
    overlays, maps = tmp_path / "overlays", tmp_path / "maps"
    running = Running(model, bank, folder, "--json", "--overlays", overlays, "--maps", maps)
    try:
        assert "passing over 1 of the 1 images there" in running.err.readline()
        drop(folder / "a.png", 2)
        assert json.loads(running.out.readline())["class"] == "disc"
        (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:300])
        (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:300])
        time.sleep(1)  # it has been tried by now
        drop(folder / "half.png", 3)
        found = json.loads(running.out.readline())
        assert found["image"] == str(folder / "half.png") and found["class"] == "disc"
        assert "truncated" in json.loads(running.out.readline())["error"]  # the other one
        # Another process enrolls a class: the next image may be of it.
        for i in range(2):
            drop(tmp_path / "grids" / f"{i}.png", i, "grid")
        assert run(["bank", "add", str(model), str(bank), "--class", "grid", str(tmp_path / "grids")]) == 0
        drop(folder / "sub" / "grid.png", 5, "grid")
        found = json.loads(running.out.readline())
        assert (found["class"], found["bank_version"]) == ("grid", 2)
        assert "bank version 2 from here on: add grid" in running.err.readline()
        # It is damaged: inspecting goes on, and one line says so.
        good = (bank / "manifest.json").read_bytes()
        (bank / "manifest.json").write_bytes(b"{}")
        for i in (7, 8):
            drop(folder / f"{i}.png", i)
            assert json.loads(running.out.readline())["bank_version"] == 2
        assert "going on with version 2 in memory" in running.err.readline()
        (bank / "manifest.json").write_bytes(good)
        # The class goes: said of each image, and inspected again when there is one.
        assert run(["bank", "remove", str(bank), "--class", "grid"]) == 0
        assert run(["bank", "remove", str(bank), "--class", "disc"]) == 0
        drop(folder / "9.png", 9)
        assert "holds no class yet" in json.loads(running.out.readline())["error"]
        assert run(["bank", "undo", str(bank)]) == 0
        drop(folder / "10.png", 10)
        assert json.loads(running.out.readline())["class"] == "disc"
    finally:
        status = running.end(signal.SIGTERM)
    assert status == 0
    assert running.out.read() == ""
    assert "Traceback" not in running.err.read()
    for place, suffix in ((overlays, "png"), (maps, "npy")):
        names = {f"{n}.{suffix}" for n in ("a", "half", "sub/grid", "7", "8", "10")}
        assert {p.relative_to(place).as_posix() for p in place.rglob("*.*")} == names


def test_with_a_journal_nothing_is_lost_or_done_twice(
    line: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, bank, folder = line
    journal = tmp_path / "journal.jsonl"
    for i in range(4):
        drop(folder / f"{i}.png", i)
    running = Running(model, bank, folder, "--journal", journal)
    for _ in range(3):
        assert "0." in running.out.readline()
    running.process.kill()
    running.process.wait(60)
    for i in range(4, 8):
        drop(folder / f"{i}.png", i)
    running = Running(model, bank, folder, "--journal", journal)
    try:
        deadline = time.monotonic() + 60
        while journal.read_bytes().count(b"\n") < 8 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        status = running.end(signal.SIGINT)
    assert status == 0
    assert running.out.read().splitlines()[-1].endswith("ok")  # the count
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sorted(row["name"] for row in rows) == [f"{i}.png" for i in range(8)]
    capsys.readouterr()
    assert run(["predict", str(model), str(bank), str(folder), "--json"]) == 0
    told = {row["image"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    for row in rows:
        for key in ("class", "score", "verdict", "regions", "bank_version"):
            assert row[key] == told[row["image"]][key]


def test_mistakes_are_one_line(
    line: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, bank, folder = line
    drop(folder / "a.png", 1)
    (tmp_path / "file").write_bytes(b"notes")
    for arguments, message in (
        ([model, bank, tmp_path / "none"], "cannot be listed"),
        ([model, bank, folder / "a.png"], "cannot be listed"),
        ([model, tmp_path / "nobank", folder], "nobank"),
        ([model, bank, folder, "--class", "bolt"], "no class 'bolt'"),
        ([model, bank, folder, "--overlays", folder / "overlays"], "would be inspected itself"),
        ([model, bank, tmp_path, "--overlays", folder], "would be inspected itself"),
        ([model, bank, folder, "--maps", tmp_path / "file"], "got a file"),
        ([model, bank, folder, "--journal", tmp_path / "file"], "expected a line of"),
        ([model, bank, folder, "--journal", tmp_path / "j", "--existing"], "--existing and --journal"),
        ([model, bank, folder, "--settle", "-1"], "--settle"),
        ([model, bank, folder, "--journal-days", "3"], "name one with --journal"),
        ([model, bank, folder, "--journal", tmp_path / "j", "--journal-days", "0"], "--journal-days"),
        ([model, bank, folder, "--exclude", "/"], "expected a pattern"),
        ([model, bank, folder, "--keep-alive", "0"], "keep_alive"),
    ):
        capsys.readouterr()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        assert run(["watch", *map(str, arguments)]) == 2, arguments
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
        assert {number: signal.getsignal(number) for number in before} == before
    assert (tmp_path / "file").read_bytes() == b"notes"


# --- faults from the field -----------------------------------------------------------------------------------------------


def rows_of(journal: Path, count: int) -> list[dict[str, object]]:
    """The journal's lines, once there are so many."""
    deadline = time.monotonic() + 60
    while (not journal.exists() or journal.read_bytes().count(b"\n") < count) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [json.loads(line) for line in journal.read_text("utf-8").splitlines()]


def test_what_fails_after_a_verdict_costs_neither_it_nor_the_images_behind(
    line: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, bank, folder = line
    journal, overlays, maps = tmp_path / "journal", tmp_path / "overlays", tmp_path / "maps"
    names = ["検査画像" * 20 + ".png", "x" * 251 + ".bmp", "folder.png", "file.png/in.png", os.fsdecode(b"M\xfcller.png"),
             "new\nline.png", "z.png"]  # fmt: skip
    (overlays / "folder.png").mkdir(parents=True)
    (overlays / "file.png").write_bytes(b"")
    data = cv2.imencode(".png", part(1))[1].tobytes()
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        os.utime(folder / name, (1_790_000_000 + i, 1_790_000_000 + i))
    running = Running(model, bank, folder, "--journal", journal, "--overlays", overlays, "--maps", maps)
    try:
        rows = rows_of(journal, len(names))
    finally:
        assert running.end(signal.SIGTERM) == 0
    assert [row["name"] for row in rows] == names
    assert all(row["verdict"] == "ok" for row in rows)
    assert running.out.read().count("\n") == len(names) + 1  # one line each, and the count
    err = running.err.read()
    assert err.count("could not be written") == 2 and "Traceback" not in err
    assert {p.name for p in maps.rglob("*.npy")} == {Path(name).stem + ".npy" for name in names}
    assert len([p for p in overlays.rglob("*.png") if p.is_file()]) == len(names) - 1  # the empty file is one of them


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_output_that_cannot_be_written_stops_no_inspection(line: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, bank, folder = line
    for i in range(3):
        drop(folder / f"{i}.png", i)
    with open("/dev/full", "w") as full:
        running = Running(model, bank, folder, "--json", "--journal", tmp_path / "journal", out=full)
        rows = rows_of(tmp_path / "journal", 3)
        running.end(signal.SIGTERM)
    assert [row["verdict"] for row in rows] == ["ok"] * 3
    err = running.err.read()
    assert (
        "the output could not be written: No space left on device; inspection goes on" in err and "Traceback" not in err
    )


def test_names_that_differ_in_the_ending_alone_have_overlays_of_their_own(
    line: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, bank, folder = line
    journal, overlays = tmp_path / "journal", tmp_path / "overlays"
    drop(folder / "p1.png", 1)
    running = Running(model, bank, folder, "--journal", journal, "--overlays", overlays)
    try:
        rows_of(journal, 1)
        drop(folder / "p1.bmp", 2)
        rows_of(journal, 2)
        drop(folder / "p1.png", 3)
        rows_of(journal, 3)
    finally:
        assert running.end(signal.SIGTERM) == 0
    assert sorted(p.name for p in overlays.iterdir()) == ["p1.bmp.png", "p1.png"]
    assert "differ in the ending alone" in running.err.read()


def test_an_image_of_the_same_size_and_date_is_inspected_after_a_restart_too(
    line: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, bank, folder = line
    journal, latest = tmp_path / "journal", folder / "latest.bmp"

    def copy(seed: int) -> None:
        drop(tmp_path / "camera.bmp", seed)
        os.utime(tmp_path / "camera.bmp", (1_790_000_000, 1_790_000_000))
        shutil.copy2(tmp_path / "camera.bmp", latest)

    copy(1)
    running = Running(model, bank, folder, "--journal", journal)
    try:
        rows_of(journal, 1)
        copy(2)
        rows_of(journal, 2)
    finally:
        running.process.kill()
        running.process.wait(60)
    copy(3)
    running = Running(model, bank, folder, "--journal", journal)
    try:
        rows = rows_of(journal, 3)
        time.sleep(1)
    finally:
        assert running.end(signal.SIGTERM) == 0
    assert len({row["sha256"] for row in rows}) == len(rows) == journal.read_bytes().count(b"\n") == 3
    assert len({(row["bytes"], row["modified_ns"]) for row in rows}) == 1


def test_a_second_watch_on_one_journal_is_refused(
    line: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, bank, folder = line
    command = [model, bank, folder, "--journal", tmp_path / "journal"]
    running = Running(*command)
    try:
        assert "watching" in running.err.readline()
        capsys.readouterr()
        assert run(["watch", *map(str, command)]) == 2
        assert "is in use by another `visionad watch`" in capsys.readouterr().err
    finally:
        running.process.kill()  # which leaves no lock behind
        running.process.wait(60)
    running = Running(*command)
    assert "watching" in running.err.readline()
    assert running.end(signal.SIGTERM) == 0


def test_a_poison_image_ends_no_watch(
    line: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image for which something unforeseen happens is noted. If it happens to the next one too, a restart may help."""
    model, bank, folder = line
    for i in range(5):
        drop(folder / f"{i}.png", i)
        os.utime(folder / f"{i}.png", (1_790_000_000 + i, 1_790_000_000 + i))
    real, poison = Inspector.inspect_files, {"1.png", "3.png", "4.png"}

    def inspect(self: Inspector, paths: list[Path], **options: Any) -> Any:
        if paths[0].name in poison:
            raise MemoryError
        return real(self, paths, **options)

    monkeypatch.setattr(Inspector, "inspect_files", inspect)
    command = ["watch", str(model), str(bank), str(folder), "--journal", str(tmp_path / "journal")]
    assert run(command) == 2
    rows = rows_of(tmp_path / "journal", 4)
    assert [row["name"] for row in rows] == ["0.png", "1.png", "2.png", "3.png"]
    assert [bool(row.get("error")) for row in rows] == [False, True, False, True]
    assert "1.png: could not be inspected: MemoryError" in capsys.readouterr().err


def test_a_journal_of_days_goes_on_after_a_kill(line: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, bank, folder = line
    journal = tmp_path / "journal.jsonl"
    command = [model, bank, folder, "--journal", journal, "--journal-days", "2"]
    for i in range(3):
        drop(folder / f"{i}.png", i)
    running = Running(*command)
    rows_of(journal, 3)
    running.process.kill()
    running.process.wait(60)
    os.utime(journal, (1_790_000_000, 1_790_000_000))  # it was long ago
    drop(folder / "3.png", 3)
    running = Running(*command)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("journal-*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [row["name"] for row in rows_of(journal, 1)] == ["3.png"]
    finally:
        assert running.end(signal.SIGTERM) == 0
    (old,) = tmp_path.glob("journal-*.jsonl")
    assert old.read_bytes().count(b"\n") == 3  # those images still lie there
    running = Running(*command)
    assert "passing over 4 of the 4 images there" in running.err.readline()
    assert running.end(signal.SIGTERM) == 0
