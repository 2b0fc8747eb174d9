"""Images that arrive in a folder: each handed over once it is whole, and again when it is written again."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import pytest
from visionad_runtime import VisionADError
from visionad_runtime.images.discover import ImageFile
from visionad_runtime.images.scan import Listing
from visionad_runtime.station.watch import folder_source
from visionad_runtime.station.watch.detected import DetectedFile, FileStamp
from visionad_runtime.station.watch.folder_source import FolderSource


def detected(name: str, size: int = 5, modified: int = 7) -> DetectedFile:
    return DetectedFile(ImageFile(Path("/in", name), Path(name)), FileStamp(size, modified))


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
        self, done: Callable[[Collection[DetectedFile]], Iterable[DetectedFile]] = all_old, settle: float = 0.2
    ) -> FolderSource:
        return FolderSource(self.folder, done, settle, self.wait, lambda: self.now)

    def watch_without(self, *exclude: str) -> FolderSource:
        return FolderSource(self.folder, all_old, 0.2, self.wait, lambda: self.now, exclude)

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
        if (name == "broken.png" or len(tries[name]) < 3) and not arrivals.retry(one):
            given_up.append(name)
    assert given_up == ["broken.png"]
    assert len(tries["locked.png"]) == 3
    times = tries["broken.png"]
    assert 5 <= len(times) <= 8 and times[-1] - times[0] >= folder_source.RETRY_TIMEOUT - 0.3
    assert not arrivals.retry(detected("none.png"))
    # One that has gone before it was read is said at once.
    world.at(21, lambda: world.write("gone.png"))
    world.until = 25
    for one in arrivals:
        one.image.path.unlink()
        assert not arrivals.retry(one)


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
    arrivals, looks, real = world.watch(), list[float](), folder_source.scan

    def slow(folder: Path, endings: frozenset[str], exclude: Iterable[str]) -> Listing:
        looks.append(world.now)
        world.now += 0.5  # on a slow share
        return real(folder, endings, exclude)

    monkeypatch.setattr(folder_source, "scan", slow)
    assert world.seen(arrivals, 20) == []
    assert all(b - a > 2.49 for a, b in itertools.pairwise(looks)) and len(looks) > 5


# --- written again ------------------------------------------------------------------------------------------------------


def test_another_content_with_the_same_size_and_date_is_a_new_image(world: World) -> None:
    arrivals = world.watch(none_old)
    world.at(1, lambda: world.write("latest.bmp", b"good", written=0))
    world.at(2, lambda: world.write("latest.bmp", b"rust", written=0))
    world.at(3, lambda: world.write("latest.bmp", b"rust", written=0))  # nothing new
    world.at(4, lambda: (world.folder / "latest.bmp").chmod(0o600))  # nor this
    world.at(5, lambda: world.write(".t", b"good", written=0))
    world.at(5, lambda: (world.folder / ".t").rename(world.folder / "latest.bmp"))
    found = world.seen(arrivals, 8)
    assert [name for _, name in found] == ["latest.bmp"] * 3
    assert [int(when) for when, _ in found] == [1, 2, 5]


def test_what_was_passed_over_at_the_start_is_new_when_it_is_written_again(world: World) -> None:
    world.write("latest.bmp", b"good", written=0)
    arrivals = world.watch()
    world.at(1, lambda: world.write("latest.bmp", b"rust", written=0))
    assert [name for _, name in world.seen(arrivals, 3)] == ["latest.bmp"]


@pytest.mark.parametrize("resolution", [0, 2_000_000_000])
def test_a_coarse_clock_is_not_trusted(world: World, monkeypatch: pytest.MonkeyPatch, resolution: int) -> None:
    real = FileStamp.of

    def coarse(status: os.stat_result) -> FileStamp:
        stamp = real(status)
        changed = stamp.modified_ns // resolution * resolution if resolution else 0  # FAT; Windows
        return stamp._replace(modified_ns=stamp.modified_ns // 2_000_000_000, changed_ns=changed)

    monkeypatch.setattr(FileStamp, "of", coarse)
    arrivals = world.watch()
    for i in range(6):
        world.at(1 + i * 0.7, lambda i=i: world.write("latest.bmp", b"%04d" % i))  # type: ignore[misc]
    assert [name for _, name in world.seen(arrivals, 12)] == ["latest.bmp"] * 6


def test_what_changes_before_its_turn_is_waited_for(world: World) -> None:
    """Other images were inspected for seconds since it was found whole."""
    arrivals, seen = world.watch(none_old), []
    for name in ("a.png", "b.png"):
        world.at(1, lambda name=name: world.write(name, b"1"))  # type: ignore[misc]
    world.until = 5
    for one in arrivals:
        if not seen:
            world.write("b.png", b"other")
        seen.append((one.image.name.name, one.stamp.bytes))
    assert seen == [("a.png", 1), ("b.png", 5)]


# --- entries that are no images, or cannot be read -----------------------------------------------------------------------


def test_what_is_passed_over_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.write("notes.txt")
    world.write("@eaDir/a.png/SYNOPHOTO_THUMB_SM.jpg")
    world.write("done/b.png")
    arrivals = world.watch_without("done", "*_raw.*")
    world.at(1, lambda: world.write("a.png"))
    world.at(1, lambda: world.write("a_raw.png"))
    world.at(1, lambda: world.write("#recycle/a.png"))
    world.at(2, lambda: world.write("more.txt"))
    world.at(2, lambda: (world.folder / "loop").symlink_to(world.folder))
    assert [name for _, name in world.seen(arrivals, 4)] == ["a.png"]
    assert [r.getMessage().split("passed over ")[1] for r in caplog.records] == [
        "1 of another ending (.txt), 1 system folder (@eaDir), 1 excluded (done)",
        "1 system folder (#recycle), 1 excluded (*_raw.*)",
        "1 linked folder (loop)",
    ]


def test_names_of_any_bytes_work(world: World) -> None:
    names = [os.fsdecode(b"M\xfcller.png"), "new\nline.png", "検" * 83 + "a.png", "tab\t.png", "\u2028.png", "a\\b.png"]
    arrivals = world.watch()
    for name in names:
        world.at(1, lambda name=name: world.write(name))  # type: ignore[misc]
    assert sorted(name for _, name in world.seen(arrivals, 4)) == sorted(names)


def test_a_folder_that_cannot_be_listed_does_not_stop_the_others(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write("day1/old.png")
    arrivals, real, state = world.watch(), os.scandir, {"locked": False}

    def locked(path: Path) -> Iterator[os.DirEntry[str]]:
        if state["locked"] and str(path).endswith("day1"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", locked)
    world.at(1, lambda: state.update(locked=True))
    world.at(2, lambda: world.write("b.png"))
    world.at(3, lambda: state.update(locked=False))
    world.at(4, lambda: world.write("day1/c.png"))
    assert [name for _, name in world.seen(arrivals, 6)] == ["b.png", "day1/c.png"]  # and not the old one
    assert [r.getMessage() for r in caplog.records] == [
        f"folder {world.folder / 'day1'} cannot be listed: Permission denied; the others go on"
    ]


def test_pipes_and_links_to_nowhere_block_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    arrivals = world.watch()
    world.at(1, lambda: os.mkfifo(world.folder / "pipe.png"))
    world.at(1, lambda: (world.folder / "loop.png").symlink_to("loop.png"))
    world.at(1, lambda: (world.folder / "none.png").symlink_to("nowhere"))
    world.at(2, lambda: world.write("a.png"))
    assert [name for _, name in world.seen(arrivals, 20)] == ["a.png", "pipe.png"]  # reading says what it is
    assert sorted(r.getMessage().rpartition("/")[2] for r in caplog.records) == [
        "loop.png: cannot be read: Too many levels of symbolic links",
        "none.png: cannot be read: No such file or directory",
    ]


def test_dates_that_no_clock_shows_are_taken(world: World) -> None:
    arrivals = world.watch()
    for name, written in (("future.png", 40e9), ("past.png", -3e9), ("now.png", 1)):
        world.at(1, lambda name=name, written=written: world.write(name, written=written))  # type: ignore[misc]
    assert [name for _, name in world.seen(arrivals, 3)] == ["past.png", "now.png", "future.png"]


def test_a_full_folder_asks_a_part_of_the_files_for_their_stamps(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_source, "MAX_STAMPS", 10)
    monkeypatch.setattr(folder_source, "MANY_IMAGES", 50)
    for i in range(60):
        world.write(f"{i}.png")
    arrivals, asked, real = world.watch(), [], FolderSource._stamp

    def counted(self: FolderSource, name: str) -> FileStamp | None:
        asked.append((world.now, name))
        return real(self, name)

    monkeypatch.setattr(FolderSource, "_stamp", counted)
    world.at(1, lambda: world.write("new.png"))
    world.at(2, lambda: world.write("7.png", b"other"))
    assert [name for _, name in world.seen(arrivals, 5)] == ["new.png", "7.png"]
    looks = [len(list(group)) for _, group in itertools.groupby(asked, lambda one: one[0])]
    assert max(looks) <= 15
    assert ["holds 60 images" in r.getMessage() for r in caplog.records] == [True]
