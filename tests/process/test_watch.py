"""Images that arrive in a folder: each inspected once it is whole, none twice, none lost to a restart."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import cv2
import pytest
from visionad_runtime import VisionADError
from visionad_runtime.cli.main import run
from visionad_runtime.images.discover import ImageFile
from visionad_runtime.station import folder_source
from visionad_runtime.station.folder_source import DetectedFile, FileStamp, FolderSource
from visionad_runtime.station.journal import Journal

from tests.data import part


def all_old(here: Collection[DetectedFile]) -> Collection[DetectedFile]:
    """What lies there at the start is passed over."""
    return here


def none_old(_: Collection[DetectedFile]) -> Collection[DetectedFile]:
    """It is inspected."""
    return ()


class World:
    """A folder, and time that passes only while the watcher waits. ``events`` happen at their times."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.now, self.until = folder, 0.0, 0.0
        self.events: list[tuple[float, Callable[[], object]]] = []

    def at(self, when: float, event: Callable[[], object]) -> None:
        self.events.append((when, event))

    def write(self, name: str, data: bytes = b"x", written: float | None = None) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        ns = int((self.now if written is None else written) * 1e9) + 1_000_000_000
        os.utime(path, ns=(ns, ns))

    def wait(self, seconds: float) -> bool:
        self.now += max(seconds, 0.01)
        for event in [e for e in self.events if e[0] <= self.now]:
            self.events.remove(event)
            event[1]()
        return self.now > self.until

    def watch(
        self, done: Callable[[Collection[DetectedFile]], Collection[DetectedFile]] = all_old, settle: float = 0.2
    ) -> FolderSource:
        return FolderSource(self.folder, done, settle, self.wait, lambda: self.now)

    def seen(self, arrivals: FolderSource, until: float) -> list[tuple[float, str]]:
        """When which image was handed over."""
        self.until = until
        return [(round(self.now, 2), one.image.name.as_posix()) for one in arrivals]


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "in"
    folder.mkdir()
    return World(folder)


def test_a_image_is_handed_over_once_when_it_has_settled(world: World) -> None:
    arrivals = world.watch()
    world.at(1, lambda: world.write("a.png"))
    world.at(2, lambda: world.write("deep/er/b.JPG"))
    for name in (".hidden.png", "notes.txt", "a.png.part", ".hid/c.png"):
        world.at(2.5, lambda name=name: world.write(name))  # type: ignore[misc]
    found = world.seen(arrivals, 6)
    assert [name for _, name in found] == ["a.png", "deep/er/b.JPG"]
    for (when, _), began in zip(found, (1, 2), strict=True):
        assert 0.2 <= when - began < 0.4


def test_a_file_that_grows_is_waited_for(world: World) -> None:
    arrivals = world.watch()
    for i in range(20):
        world.at(1 + i / 10, lambda i=i: world.write("slow.png", b"x" * (i + 1)))  # type: ignore[misc]
        world.at(1 + i / 10, lambda i=i: world.write("same_size.bmp", b"y"))  # type: ignore[misc]
    found = world.seen(arrivals, 5)
    assert sorted(name for _, name in found) == ["same_size.bmp", "slow.png"]
    assert all(when >= 1 + 19 / 10 + 0.2 for when, _ in found)


def test_the_order_is_that_in_which_they_were_written(world: World) -> None:
    arrivals = world.watch()
    for name, written in (("c.png", 0.1), ("a.png", 0.3), ("d.png", 0.2), ("b.png", 0.2)):
        world.at(0.5, lambda name=name, written=written: world.write(name, written=written))  # type: ignore[misc]
    assert [name for _, name in world.seen(arrivals, 2)] == ["c.png", "b.png", "d.png", "a.png"]


def test_a_image_written_anew_is_a_new_one_and_a_deleted_one_none(world: World) -> None:
    world.write("old.png", b"1")
    world.write("kept.png", b"1")
    arrivals = world.watch()
    assert (arrivals.there, arrivals.passed_over) == (2, 2)
    world.at(1, lambda: world.write("old.png", b"2"))
    world.at(2, lambda: world.write("short.png"))
    world.at(2.1, (world.folder / "short.png").unlink)
    world.at(3, (world.folder / "old.png").unlink)
    world.at(4, lambda: world.write("old.png", b"3"))
    assert [name for _, name in world.seen(arrivals, 6)] == ["old.png", "old.png"]


def test_what_lies_there_is_handed_over_if_it_is_not_done(world: World) -> None:
    world.write("a.png")
    world.write("b.png")
    arrivals = world.watch(none_old)
    assert (arrivals.there, arrivals.passed_over) == (2, 0)
    assert [name for _, name in world.seen(arrivals, 2)] == ["a.png", "b.png"]
    arrivals = world.watch(lambda here: {one for one in here if one.image.name.name == "a.png"})
    assert [name for _, name in world.seen(arrivals, 4)] == ["b.png"]


def test_an_empty_file_may_be_one_that_is_only_opened(world: World) -> None:
    arrivals = world.watch()
    world.at(1, lambda: world.write("opened.png", b""))
    world.at(6, lambda: world.write("opened.png", b"x"))
    world.at(6, lambda: world.write("broken.png", b""))
    found = world.seen(arrivals, 30)
    assert [name for _, name in found] == ["opened.png", "broken.png"]
    assert found[0][0] < 6.4 and found[1][0] > 15


def test_a_image_that_cannot_be_read_is_tried_again_for_a_while(world: World) -> None:
    arrivals = world.watch()
    world.at(1, lambda: world.write("locked.png"))
    world.at(1, lambda: world.write("broken.png"))
    world.until, tries, given_up = 20, dict[str, list[float]](), list[str]()
    for one in arrivals:
        name = one.image.name.name
        tries.setdefault(name, []).append(world.now)
        if (name == "broken.png" or len(tries[name]) < 3) and not arrivals.again(one):
            given_up.append(name)
    assert given_up == ["broken.png"]
    assert len(tries["locked.png"]) == 3
    times = tries["broken.png"]
    assert 5 <= len(times) <= 8 and times[-1] - times[0] >= folder_source.RETRY_TIMEOUT - 0.3
    assert not arrivals.again(arrival("none.png"))
    # One that has gone before it was read is said at once.
    world.at(21, lambda: world.write("gone.png"))
    world.until = 25
    for one in arrivals:
        one.image.path.unlink()
        assert not arrivals.again(one)


def test_a_folder_that_is_away_is_waited_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.write("before.png")
    arrivals = world.watch()
    away = world.folder.with_name("away")
    world.at(1, lambda: world.folder.rename(away))
    world.at(10, lambda: away.rename(world.folder))
    world.at(10.01, lambda: world.write("after.png"))
    assert [name for _, name in world.seen(arrivals, 20)] == ["after.png"]  # and not the other one again
    assert [r.getMessage().split(": ")[0] for r in caplog.records] == [
        f"folder {world.folder} cannot be listed",
        f"folder {world.folder} is back",
    ]
    with pytest.raises(VisionADError, match="cannot be listed"):
        FolderSource(world.folder / "none", all_old, 0.2, world.wait)


def test_a_share_that_is_not_mounted_is_no_empty_folder(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.write("before.png")
    arrivals, share = world.watch(), world.folder.with_name("share")
    mounted = {"device": 7}
    monkeypatch.setattr(folder_source, "file_system", lambda _: mounted["device"])

    def away() -> None:
        world.folder.rename(share)
        world.folder.mkdir()
        mounted["device"] = 8

    def back() -> None:
        world.folder.rmdir()
        share.rename(world.folder)
        mounted["device"] = 9  # another number, as for network shares

    world.at(1, away)
    world.at(10, back)
    world.at(12, lambda: world.write("after.png"))
    assert [name for _, name in world.seen(arrivals, 20)] == ["after.png"]
    assert ["not mounted" in r.getMessage() for r in caplog.records] == [True, False]
    # The same file system, emptied, is just that.
    world.at(21, lambda: [path.unlink() for path in world.folder.iterdir()])
    world.at(22, lambda: world.write("before.png"))
    assert [name for _, name in world.seen(arrivals, 30)] == ["before.png"]
    assert len(caplog.records) == 2


def test_a_folder_below_that_vanishes_is_no_trouble(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.write("day1/a.png")
    arrivals = world.watch()
    real, state = os.scandir, {"on": False}

    def gone(path: str) -> Iterator[os.DirEntry[str]]:
        if state["on"] and str(path).endswith("day1"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return real(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", gone)
        world.at(1, lambda: state.update(on=True))
        world.at(1.5, lambda: world.write("b.png"))
        assert [name for _, name in world.seen(arrivals, 3)] == ["b.png"]
    assert not caplog.records


def test_looking_takes_a_fifth_of_the_time_at_most(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    arrivals, looks, real = world.watch(), list[float](), folder_source.walk

    def slow(folder: Path) -> list[Path]:
        looks.append(world.now)
        world.now += 0.5  # on a slow share
        return real(folder)

    monkeypatch.setattr(folder_source, "walk", slow)
    assert world.seen(arrivals, 20) == []
    assert all(b - a > 2.49 for a, b in itertools.pairwise(looks)) and len(looks) > 5


# --- journal ---------------------------------------------------------------------------------------------------------


def arrival(name: str, size: int = 5, modified: int = 7) -> DetectedFile:
    return DetectedFile(ImageFile(Path("/in", name), Path(name)), FileStamp(size, modified))


def test_a_journal_knows_what_it_was_told(tmp_path: Path) -> None:
    path, ones = tmp_path / "deep" / "journal.jsonl", [arrival("a.png"), arrival("sub/ü b.png"), arrival("\udcff.png")]
    journal = Journal(path)
    assert journal.noted(ones) == set()
    for one in ones:
        journal.add(one, {"verdict": "ok"})
    journal.close()
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [set(row) for row in rows] == [{"name", "bytes", "modified_ns", "time", "verdict"}] * 3
    again = Journal(path)
    others = [arrival("a.png", size=6), arrival("a.png", modified=8), arrival("c.png")]
    assert again.noted([*others, *ones]) == set(ones)
    again.add(others[2], {})
    again.close()
    assert Journal(path).noted([*others, *ones]) == {*ones, others[2]}


@pytest.mark.parametrize("cut", range(1, 60, 7))
@pytest.mark.parametrize("nuls", [0, 40])
def test_a_line_that_was_cut_off_is_taken_out(tmp_path: Path, cut: int, nuls: int) -> None:
    path, one, two = tmp_path / "journal", arrival("a.png"), arrival("b.png")
    journal = Journal(path)
    journal.add(one, {})
    whole = path.stat().st_size
    journal.add(two, {})
    journal.close()
    path.write_bytes(path.read_bytes()[: whole + cut] + b"\0" * nuls)
    again = Journal(path)
    assert again.noted([one, two]) == {one}
    assert path.stat().st_size == whole
    again.add(two, {})
    again.close()
    assert Journal(path).noted([one, two]) == {one, two}


@pytest.mark.parametrize(
    "content", [b"notes", b"notes\n", b'{"a": 1}\n', b'{"a": 1}', b"[1]\n", b"\x89PNG\r\n\x1a\n\0", b"3\n"]
)
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(VisionADError, match="line 1: expected a line of"):
        Journal(path).noted([arrival("a.png")])
    assert path.read_bytes() == content


def test_a_journal_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VisionADError, match="cannot be used"):
        Journal(tmp_path)
    journal = Journal(tmp_path / "journal")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VisionADError, match="No space left"):
        journal.add(arrival("a.png"), {})
    journal.close()


# --- the command -----------------------------------------------------------------------------------------------------


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
