"""``visionad watch`` as a process: each image inspected once it is whole, none lost to a restart or to another image."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
from visionad_runtime.cli.main import run

from tests.data import part


class Running:
    """``visionad watch`` as a process of its own."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from visionad_runtime.cli.entry import main; main()",
                "watch",
                *map(str, arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        self.out, self.err = self.process.stdout, self.process.stderr

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
    assert running.out.read().splitlines()[-1].endswith("unknown")  # the count; nothing is calibrated
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
        ([model, bank, folder, "--keep-alive", "0"], "keep_alive"),
    ):
        capsys.readouterr()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        assert run(["watch", *map(str, arguments)]) == 2, arguments
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
        assert {number: signal.getsignal(number) for number in before} == before
    assert (tmp_path / "file").read_bytes() == b"notes"
