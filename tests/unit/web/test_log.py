"""The log of the service is bounded, whatever is logged."""

from __future__ import annotations

import logging

import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

from visionad_runtime.web.log import MAX_MESSAGES, PERIOD, RateLimit, bounded_log


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord("visionad.web", logging.WARNING, "", 0, message, arguments, None)


def test_a_message_is_written_once_a_minute_with_a_count() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    assert [limit.filter(record("cannot accept: %s", i)) for i in range(1000)] == [True] + [False] * 999
    assert limit.filter(record("something else"))
    clock.now += PERIOD
    again = record("cannot accept: %s", 7)
    assert limit.filter(again)
    assert again.getMessage() == "cannot accept: 7 (999 more since the last such line)"
    clock.now += PERIOD
    quiet = record("cannot accept: %s", 7)
    assert limit.filter(quiet) and quiet.getMessage() == "cannot accept: 7"


def test_many_different_messages_are_bounded() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    for _ in range(3):
        assert (
            sum(limit.filter(record("%s", f"message {chr(0x4E00 + i)}")) for i in range(10 * MAX_MESSAGES))
            <= MAX_MESSAGES
        )
        clock.now += PERIOD


def test_messages_that_never_come_again_silence_no_other_one() -> None:
    clock = Clock()
    limit = RateLimit(clock)
    for i in range(2 * MAX_MESSAGES):
        for _ in range(2):
            limit.filter(record("%s", f"cannot take part {chr(0x4E00 + i)}"))
    assert not limit.filter(record("out of files"))
    clock.now += PERIOD
    assert limit.filter(record("out of files"))
    last = record("%s", f"cannot take part {chr(0x4E00 + MAX_MESSAGES - 1)}")
    assert limit.filter(last) and last.getMessage().endswith("(1 more since the last such line)")
    new = [limit.filter(record("%s", f"no place for {chr(0x4E00 + i)}")) for i in range(2 * MAX_MESSAGES)]
    assert new == [True] * (MAX_MESSAGES - 2) + [False] * (MAX_MESSAGES + 2)


def test_libraries_are_heard_without_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    with bounded_log(), caplog.at_level(logging.WARNING):
        for _ in range(100):
            logging.getLogger("asyncio").error("out of %s", "files", exc_info=OSError("no"))
            logging.getLogger("uvicorn.error").warning("Invalid request")
    assert [(r.name, r.getMessage(), r.exc_info) for r in caplog.records if r.name == "visionad.web"] == [
        ("visionad.web", "asyncio: out of files", None),
        ("visionad.web", "uvicorn.error: Invalid request", None),
    ]
    assert all(type(handler).__name__ != "_Forward" for handler in logging.getLogger().handlers)
