"""The log stays small: files of bounded size, the same message at most once a minute."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.station.front import logs
from visionad_runtime.station.front.logs import RepeatFilter, start_logging


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    kept = [
        (logger, list(logger.handlers), logger.level)
        for logger in map(logging.getLogger, (None, "visionad", "visionad.station"))
    ]
    yield
    for logger, handlers, level in kept:
        logger.handlers[:] = handlers
        logger.setLevel(level)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def record(text: str, name: str = "library.of.a.sink") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, "", 0, text, None, None)


def test_the_same_message_passes_once_a_minute() -> None:
    clock = Clock()
    repeat = RepeatFilter(clock)
    assert repeat.filter(record("broken frame")) and not repeat.filter(record("broken frame"))
    assert repeat.filter(record("another")) and repeat.filter(record("broken frame", "other"))
    clock.now += 59.9
    assert not repeat.filter(record("broken frame"))
    clock.now += 0.1
    again = record("broken frame")
    assert repeat.filter(again) and again.left_out == 2  # type: ignore[attr-defined]


def test_messages_that_differ_in_numbers_pass_ten_times_a_minute() -> None:
    clock = Clock()
    repeat = RepeatFilter(clock)
    passed = sum(repeat.filter(record(f"trigger {n} 'SN-{n}' was missed at 0x{n:04x}")) for n in range(5000))
    assert passed == 10
    clock.now += 60
    again = record("trigger 9999 'x' was missed at 0xff")
    assert repeat.filter(again) and again.left_out == 4990  # type: ignore[attr-defined]


def test_its_memory_is_bounded() -> None:
    repeat = RepeatFilter(Clock())
    for number in range(20_000):
        repeat.filter(record("".join(chr(97 + int(digit)) for digit in str(number))))
    assert max(map(len, (repeat._same, repeat._alike, repeat._left_out))) <= logs._MAX_KNOWN + 1


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 2000)
    monkeypatch.setattr(logs, "BACKUPS", 2)
    monkeypatch.setattr(logs, "MAX_ALIKE", 10**9)
    say = start_logging(tmp_path / "logs" / "station.log")
    for number in range(1000):
        say(f"event {number}")
    files = sorted((tmp_path / "logs").iterdir())
    assert [path.name for path in files] == ["station.log", "station.log.1", "station.log.2"]
    assert all(path.stat().st_size <= 2000 for path in files)
    assert (tmp_path / "logs" / "station.log").read_text().splitlines()[-1].endswith("Z INFO event 999")


def test_a_flood_of_a_library_stays_short(tmp_path: Path) -> None:
    start_logging(tmp_path / "station.log")
    for number in range(4315):
        logging.getLogger("library.of.a.sink").error("%s", f"Frame check, could not decode {number}")
    logging.getLogger("visionad").warning("x" * 100_000)
    lines = (tmp_path / "station.log").read_text().splitlines()
    assert len(lines) == 11 and len(lines[-1]) < 9000


def test_without_a_file_it_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    say = start_logging(None)
    say("recipe-prepared: recipe 1")
    say("recipe-prepared: recipe 1")
    logging.getLogger("visionad").warning("slow")
    assert capsys.readouterr().out == "recipe-prepared: recipe 1\nslow\n"


def test_two_processes_have_two_files(tmp_path: Path) -> None:
    start_logging(tmp_path / "station.log", "worker")("hello")
    assert [path.name for path in tmp_path.iterdir()] == ["station-worker.log"]


def test_a_second_call_replaces_the_first(tmp_path: Path) -> None:
    start_logging(tmp_path / "a.log")
    start_logging(tmp_path / "b.log")("hello")
    assert (tmp_path / "a.log").read_text() == "" and "hello" in (tmp_path / "b.log").read_text()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "station.log").mkdir()
    with pytest.raises(VisionADError, match=r"station\.log: cannot be written: Is a directory"):
        start_logging(tmp_path / "station.log")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_stops_nothing() -> None:
    code = (
        "from pathlib import Path; from visionad_runtime.station.front.logs import start_logging\n"
        "say = start_logging(Path('/dev/full')); say('hello'); print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n" and "Traceback" not in done.stderr.partition("Exception ignored")[0]
