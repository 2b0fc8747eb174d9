"""Golden parts: due at shift start, change-over and restart; one that is judged wrongly stops the station or raises an alarm."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.preflight import problems_of
from visionad_runtime.station.records.records import Records
from visionad_runtime.station.settings import GoldenParts, Shifts, read_station
from visionad_runtime.station.worker.golden import GoldenRun, GoldenSchedule, golden_images

from tests.data import part
from tests.stations import run, until
from tests.unit.station.front.test_front import station_file

__all__ = ["station_file"]
SHIFTS = Shifts(zone="Europe/Berlin")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def schedule(*due: str, last: str | None = None) -> GoldenSchedule:
    settings = GoldenParts(folder=Path("golden"), due=due)
    return GoldenSchedule(settings, SHIFTS, None if last is None else at(last))


RIGHT = [{"image": "good/a.png", "expected": "ok", "got": "ok", "right": True}]
WRONG = [{"image": "bad/b.png", "expected": "anomalous", "got": "ok", "right": False}]


def test_due_at_shift_start() -> None:
    one = schedule("shift", last="2026-11-30T05:10:00")
    assert not one.look(at("2026-11-30T12:59:59"), 1) and one.due == ""
    assert one.look(at("2026-11-30T13:00:00"), 1) and one.due == "shift 2026-11-30 14:00 has begun"
    assert one.may_start and not one.look(at("2026-11-30T13:00:01"), 1)
    one.who = "station"
    assert not one.may_start
    assert one.finished(RIGHT, at("2026-11-30T13:00:02")) and one.due == ""
    assert not one.look(at("2026-11-30T20:59:59"), 1) and one.look(at("2026-11-30T21:00:00"), 1)
    assert schedule("shift").look(at("2026-11-30T12:00:00"), 0)  # never passed


def test_due_after_a_change_of_the_recipe_and_a_restart() -> None:
    one = schedule("recipe")
    one.restarted()
    assert not one.look(at("2026-11-30T12:00:00"), 0)
    assert one.look(at("2026-11-30T12:00:00"), 2) and one.due == "the recipe is now 2"
    assert one.finished(RIGHT, at("2026-11-30T12:00:01"))
    assert not one.look(at("2026-11-30T12:00:00"), 0) and not one.look(at("2026-11-30T12:00:00"), 2)
    assert one.look(at("2026-11-30T12:00:00"), 1)
    other = schedule("restart")
    assert not other.look(at("2026-11-30T12:00:00"), 1) and other.due == ""
    other.restarted()
    assert other.due == "the station has started"


def test_after_a_wrong_one_they_stay_due_and_do_not_start_by_themselves() -> None:
    one = schedule("restart")
    one.restarted()
    assert not one.finished([*RIGHT, *WRONG], at("2026-11-30T12:00:00"))
    assert one.due and not one.may_start and one.facts()["wrong"] == ["bad/b.png: expected anomalous, got ok"]
    one.restarted()
    assert one.may_start


def images(folder: Path, good: list[Any], bad: list[Any]) -> None:
    for word, pixels in (("good", good), ("bad", bad)):
        (folder / word).mkdir(parents=True)
        for number, image in enumerate(pixels):
            cv2.imwrite(str(folder / word / f"{number}.png"), image)


def test_a_recipe_may_have_a_folder_of_its_own(tmp_path: Path) -> None:
    images(tmp_path, [part(1)], [part(2)])
    images(tmp_path / "7", [part(3), part(4)], [part(5)])
    (tmp_path / "7" / "good" / "side").mkdir()
    cv2.imwrite(str(tmp_path / "7" / "good" / "side" / "x.png"), part(6))
    settings = GoldenParts(folder=tmp_path)
    assert [one.name for one in golden_images(settings, 1, ["top"])] == ["good/0.png", "bad/0.png"]
    found = golden_images(settings, 7, ["top", "side"])
    assert [(one.name, one.camera, one.is_good) for one in found] == [
        ("7/good/0.png", "top", True),
        ("7/good/1.png", "top", True),
        ("7/good/side/x.png", "side", True),
        ("7/bad/0.png", "top", False),
    ]
    (tmp_path / "bad" / "0.png").unlink()
    with pytest.raises(VisionADError, match="holds no image"):
        golden_images(settings, 1, ["top"])


@pytest.mark.parametrize(
    ("evaluations", "right"),
    [((1, 2), [True, True]), ((3, 2), [False, True]), ((1, 3), [True, False]), ((1, 1), [True, False])],
)
def test_a_good_one_must_be_ok_and_a_bad_one_anomalous(
    tmp_path: Path, evaluations: tuple[int, int], right: list[bool]
) -> None:
    images(tmp_path, [part(1)], [part(2)])
    (tmp_path / "good" / "zzz.png").write_bytes(b"no image")
    one = GoldenRun(GoldenParts(folder=tmp_path), 1, ["top"])
    answers = iter(evaluations)
    while not one.is_done:
        one.step(lambda camera, rgb: (next(answers), "review"))
    assert [finding["right"] for finding in one.findings] == [right[0], False, right[1]]
    assert "zzz.png" in one.findings[1]["image"] and one.findings[1]["got"]


def test_a_judge_that_fails_is_a_wrong_finding(tmp_path: Path) -> None:
    images(tmp_path, [part(1)], [part(2)])
    one = GoldenRun(GoldenParts(folder=tmp_path), 1, ["top"])

    def fail(camera: str, rgb: Any) -> tuple[int, str]:
        raise RuntimeError("out of luck")

    while not one.is_done:
        one.step(fail)
    assert [(finding["right"], finding["got"]) for finding in one.findings] == [(False, "out of luck")] * 2


def golden_alarms(front: Front) -> list[dict[str, Any]]:
    return [alarm for alarm in front.alarms.active() if alarm["code"] == "golden"]


def with_golden(path: Path, more: str) -> Path:
    path.write_text(path.read_text() + f"checks: {{golden: {{folder: golden, {more}}}}}\n")
    return path


def test_overdue_golden_parts_keep_the_station_from_being_ready(station_file: Path) -> None:
    with_golden(station_file, "due: [restart], overdue: not_ready")
    assert any(
        "golden parts of recipe 7: expected a folder" in line for line in problems_of(read_station(station_file))
    )
    images(station_file.parent / "golden", [part(30), part(31)], [part(32)])  # the bad one has no defect
    assert problems_of(read_station(station_file)) == []
    shown: list[tuple[bool, bool]] = []

    async def play(front: Front) -> None:
        assert "prepare a recipe first" in str(front.run_golden("anna"))
        await until(lambda: golden_alarms(front))
        shown.append((front.state.ready, front.state.check_due))
        assert front.trigger(1, "too early") is None
        (alarm,) = golden_alarms(front)
        assert alarm["text"] == "recipe 7: bad/0.png: expected anomalous, got ok"
        await asyncio.sleep(0.6)
        assert len(_audit(station_file)) == 1  # it does not run again by itself
        cv2.imwrite(str(station_file.parent / "golden" / "bad" / "0.png"), part(32, defect=True))
        assert front.run_golden("anna") is None and front.run_golden("ben") == "they are being judged"
        await until(lambda: front.state.ready)
        assert not front.state.check_due and golden_alarms(front) == []
        assert front.trigger(2, "now") is not None

    run(station_file, play)
    assert shown == [(False, True)]
    rows = _audit(station_file)
    assert [(row["who"], json.loads(row["new"])["wrong"]) for row in rows] == [
        ("station", ["bad/0.png: expected anomalous, got ok"]),
        ("anna", []),
    ]
    records = Records(station_file.parent / "records.sqlite")
    codes = [event["code"] for event in reversed(records.events())]
    records.close()
    assert codes.index("golden-due") < codes.index("golden-failed") < codes.index("golden-passed")


def test_with_an_alarm_only_parts_go_on_beside_golden_ones(station_file: Path) -> None:
    with_golden(station_file, "due: [restart], overdue: alarm")
    images(station_file.parent / "golden", [part(20)] * 30, [part(32, defect=True)])

    async def play(front: Front) -> None:
        await until(lambda: front.state.ready and front.state.check_due)
        assert front.trigger(1, "beside") is not None
        await until(lambda: front.state.offered is not None)
        assert front.state.check_due  # 31 images are not done yet, and the part did not wait for them
        await until(lambda: not front.state.check_due)

    run(station_file, play)
    records = Records(station_file.parent / "records.sqlite")
    (row,) = records.parts()
    records.close()
    assert row["evaluation"] == 1 and _audit(station_file)[0]["who"] == "station"


def _audit(path: Path) -> list[dict[str, Any]]:
    records = Records(path.parent / "records.sqlite")
    rows = [row for row in reversed(records.audit_rows()) if row["what"] == "golden parts"]
    records.close()
    return rows
