"""The worker's inbox: what is taken at once, what waits, and the end of the front."""

from __future__ import annotations

import multiprocessing
import threading

import pytest
from visionad_runtime.station.worker.inbox import Inbox


def test_a_message_is_taken_at_once_while_others_wait() -> None:
    here, there = multiprocessing.Pipe()
    pushed: list[tuple[int, str]] = []
    came = threading.Event()

    def push(number: int, name: str) -> None:
        pushed.append((number, name))
        came.set()

    inbox = Inbox(there, {"push": push})
    inbox.start()
    here.send(("judge", 1))
    here.send(("judge", 2))
    here.send(("push", 7, "top"))
    assert came.wait(10)  # nobody has asked for the two that wait
    assert pushed == [(7, "top")] and not inbox.is_empty
    assert [inbox.get(), inbox.get()] == [("judge", 1), ("judge", 2)] and inbox.is_empty


def test_the_end_of_the_front_comes_after_what_it_said() -> None:
    here, there = multiprocessing.Pipe()
    inbox = Inbox(there, {})
    inbox.start()
    here.send(("judge", 1))
    here.close()
    assert inbox.get() == ("judge", 1)
    with pytest.raises(EOFError):
        inbox.get()


def test_a_fault_beside_the_judging_ends_the_worker() -> None:
    here, there = multiprocessing.Pipe()

    def push() -> None:
        raise KeyError("top")

    inbox = Inbox(there, {"push": push})
    inbox.start()
    here.send(("push",))
    with pytest.raises(KeyError):
        inbox.get()
