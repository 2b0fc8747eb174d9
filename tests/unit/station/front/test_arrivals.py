"""A station whose images another program writes into a folder: none is missed, whatever is slow, killed or stopped."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
from collections import Counter
from pathlib import Path

import cv2
import pytest
from visionad_runtime.station.front.cycle import MAX_WAITING
from visionad_runtime.station.front.front import Front

from tests.data import part
from tests.ports import free_port
from tests.stations import EVALUATIONS, rows_of, run, teach, until, write_images, write_station

CAMERA = "  top: {kind: arrivals, path: new, journal: new.jsonl, settle_ms: 30}"
MORE = "trigger: free\ndeadline_ms: 5000\nack_ms: 100\n"


class Line:
    """A station, and a program that writes images into its folder."""

    def __init__(self, model: Path, base: Path, sinks: str = "  - {kind: files, folder: results}") -> None:
        teach(model, base / "bank")
        self.images = write_images(base / "images")
        self.new = base / "new"
        self.new.mkdir()
        self.file = write_station(base, model, CAMERA, sinks, MORE)
        self.written = 0

    def write(self, count: int) -> None:
        """Write the next parts, one of which in five has a defect, each at once."""
        for _ in range(count):
            whole = self.new.with_name("whole.png")
            whole.write_bytes(self.images[self.written % len(self.images)].read_bytes())
            os.utime(whole, ns=(0, 10**18 + self.written * 10**9))
            whole.rename(self.new / f"{self.written:04}.png")
            self.written += 1

    def judged(self) -> list[tuple[int, int]]:
        """Return number of the image and evaluation of each part that has an image."""
        rows = [(row["evaluation"], json.loads(row["cameras"]).get("top", {})) for row in rows_of(self.file)]
        return [(int(Path(top["image"]).stem), evaluation) for evaluation, top in rows if "image" in top]

    def expected(self) -> list[tuple[int, int]]:
        return [(number, EVALUATIONS[number % len(EVALUATIONS)]) for number in range(self.written)]


def test_each_image_is_one_part_in_order_and_a_restart_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    line = Line(tiny_model, tmp_path)
    line.write(12)  # more than results may wait: nobody acknowledges here

    async def until_all_are_judged(front: Front) -> None:
        await until(lambda: front.state.ready)
        line.write(5)
        await until(lambda: front.state.acquisition == line.written and front.state.ready)
        assert front.state.missed == front.state.overrun == 0

    run(line.file, until_all_are_judged)
    assert line.judged() == line.expected()
    assert [row["part"] for row in rows_of(line.file)] == [f"{number:04}" for number in range(line.written)]
    line.write(4)  # while the station is off
    run(line.file, until_all_are_judged)
    assert line.judged() == line.expected()
    assert len((tmp_path / "new.jsonl").read_text().splitlines()) == line.written


def test_images_wait_for_a_line_that_does_not_acknowledge(tiny_model: Path, tmp_path: Path) -> None:
    line = Line(tiny_model, tmp_path, f"  - {{kind: tcp, port: {free_port()}}}")

    async def play(front: Front) -> None:
        await until(lambda: front.state.ready)
        line.write(MAX_WAITING + 3)
        await until(lambda: front.state.waiting == MAX_WAITING)
        await asyncio.sleep(0.5)
        assert front.state.acquisition == MAX_WAITING and front.state.missed == 0
        for _ in range(line.written):
            await until(lambda: front.state.waiting)
            assert front.acknowledge()
        await until(
            lambda: front.state.ready and front.state.acquisition == line.written
        )  # it shows once it is on disk
        assert front.state.missed == 0

    run(line.file, play)
    assert line.judged() == line.expected()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_worker_that_is_killed_loses_no_image(tiny_model: Path, tmp_path: Path) -> None:
    line = Line(tiny_model, tmp_path)
    kills = 3

    async def play(front: Front) -> None:
        for _ in range(kills):
            await until(lambda: front.state.ready)
            line.write(6)
            seen = front.state.acquisition
            await until(lambda seen=seen: front.state.acquisition >= seen + 2)
            pid = front.worker_pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: front.worker_pid not in (None, pid))
        await until(lambda: front.state.ready)
        line.write(1)
        await until(lambda: any(number == line.written - 1 for number, _ in line.judged()), 120)
        assert front.state.missed == 0

    run(line.file, play)
    judged, undecided = line.judged(), len(rows_of(line.file)) - len(line.judged())
    assert {one for one in judged if one not in line.expected()} == set()
    times = Counter(number for number, _ in judged)
    lost, again = line.written - len(times), sum(times.values()) - len(times)
    assert lost <= undecided <= kills, "an image in hand when its worker is killed is a part that is not decidable"
    assert again <= 2 * kills, (
        "or it is inspected again, as the one before may be whose line of the journal was being written"
    )
    assert list(times) == sorted(times), "in order"


def test_a_damaged_image_is_a_part_that_nobody_looked_at(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(tiny_model, tmp_path)
    (line.new / "damaged.png").write_bytes(cv2.imencode(".png", part(1))[1].tobytes()[:300])
    os.utime(line.new / "damaged.png", ns=(0, 0))
    line.write(2)
    said: list[str] = []

    async def play(front: Front) -> None:
        await until(lambda: front.state.missed == 1)
        await until(lambda: front.state.acquisition == line.written and front.state.ready)
        await until(lambda: told(front))
        said.extend(told(front))

    def told(front: Front) -> list[str]:
        return [one["text"] for one in front.records.events() if one["code"] == "frames-lost"]

    run(line.file, play)
    assert line.judged() == line.expected()
    assert len(said) == 1 and "damaged.png" in said[0], "the event names the file"
    assert "damaged.png" in (tmp_path / "new.jsonl").read_text()


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_of_any_bytes_are_recorded_and_delivered(tiny_model: Path, tmp_path: Path) -> None:
    line = Line(tiny_model, tmp_path)
    image = line.images[0].read_bytes()
    names = [b"no \xff utf-8.png", "\u00fc,\"'\n;=1.png".encode(), b"x" * 240 + b".png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(line.new) + b"/" + name)).write_bytes(image)
    Path(os.fsdecode(os.fsencode(line.new) + b"/damaged \xfe.png")).write_bytes(image[:300])
    parts = {r"no \xff utf-8", "\u00fc,\"' ;=1", "x" * 100}

    async def play(front: Front) -> None:
        await until(lambda: front.state.missed == 1 and front.state.acquisition == len(names) and front.state.ready)
        line.write(1)
        await until(lambda: (tmp_path / "results").is_dir() and len(delivered()) == len(names) + 1)

    def delivered() -> list[str]:
        (file,) = (tmp_path / "results").iterdir()
        with file.open(newline="", encoding="utf-8-sig") as text:
            return [row["part"] for row in csv.DictReader(text)]

    run(line.file, play)
    rows = rows_of(line.file)
    assert {row["part"] for row in rows} == set(delivered()) == parts | {"0000"}
    assert all(row["evaluation"] == 1 for row in rows)
    assert len((tmp_path / "new.jsonl").read_text().splitlines()) == len(names) + 2
