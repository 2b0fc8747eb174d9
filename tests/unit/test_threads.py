"""Threads of the search: every piece once, errors raised where they belong, no thread left waiting."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from visionad_runtime import _threads as workers

pytestmark = pytest.mark.serial  # affinity and threads that must run at the same time


@pytest.mark.parametrize("count", [0, 1, 5, 200])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_piece_is_worked_once(count: int, threads: int) -> None:
    done: list[int] = []
    workers.parallel_for(done.append, range(count), threads)
    assert sorted(done) == list(range(count))


def test_one_piece_wakes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise AssertionError("a thread was woken")

    monkeypatch.setattr(workers, "_worker_pool", none)
    done: list[int] = []
    workers.parallel_for(done.append, iter([3]), 7)
    assert done == [3]


def test_other_threads_do_take_part() -> None:
    seen, both = set[int](), threading.Barrier(2, timeout=30)

    def work(_: int) -> None:
        both.wait()  # would break if one thread did all the pieces
        seen.add(threading.get_ident())

    workers.parallel_for(work, range(2), 2)
    assert len(seen) == 2 and threading.get_ident() in seen


@pytest.mark.parametrize("mine", [True, False])
def test_an_error_is_raised_after_the_others_are_done(mine: bool) -> None:
    caller, both, late = threading.get_ident(), threading.Barrier(2, timeout=30), list[int]()

    def work(piece: int) -> None:
        both.wait()
        if (threading.get_ident() == caller) is mine:
            raise MemoryError(str(piece))
        time.sleep(0.05)
        late.append(piece)

    with pytest.raises(MemoryError):
        workers.parallel_for(work, range(2), 2)
    assert len(late) == 1
    workers.parallel_for(late.append, range(3), 2)  # and the threads live on
    assert len(late) == 4


def test_many_callers_share_the_threads() -> None:
    def call(caller: int) -> list[int]:
        done: list[int] = []
        for _ in range(50):
            workers.parallel_for(done.append, range(caller, caller + 4), 3)
        return sorted(done)

    with ThreadPoolExecutor(8) as callers:
        for caller, done in enumerate(callers.map(call, range(8))):
            assert done == sorted(list(range(caller, caller + 4)) * 50)


@pytest.mark.skipif(sys.platform != "linux", reason="no affinity to read here")
def test_the_callers_core_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads may run wherever the caller may but on its core; where it has only one, they stay as they are."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one core")
    assert workers._current_cpu() in allowed
    ready, masks = threading.Barrier(2, timeout=30), list[tuple[int, set[int]]]()

    def work(_: int) -> None:
        ready.wait()
        masks.append((threading.get_native_id(), os.sched_getaffinity(0)))

    def mask_of_another() -> set[int]:
        masks.clear()
        workers.parallel_for(work, range(2), 2)
        return next(mask for thread, mask in masks if thread != threading.get_native_id())

    mask_of_another()  # the thread is there
    for core in sorted(allowed)[:2]:
        monkeypatch.setattr(workers, "_current_cpu", lambda core=core: core)
        assert mask_of_another() == allowed - {core}
    try:
        os.sched_setaffinity(0, {core})
        assert mask_of_another() == allowed - {core}
    finally:
        os.sched_setaffinity(0, allowed)


def nice() -> int:
    """Of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_background_work_is_done_in_order(caplog: pytest.LogCaptureFixture) -> None:
    done, caller, release, priority = list[int](), threading.get_ident(), threading.Event(), nice()

    def work(number: int) -> None:
        assert threading.get_ident() != caller and threading.current_thread().daemon
        if number == 0:
            assert release.wait(30)
        if number == 2:
            raise OSError("no space")
        if sys.platform == "linux":
            assert nice() == min(19, priority + workers.BACKGROUND_NICENESS)
        done.append(number)

    for i in range(5):
        workers.submit_background(lambda i=i: work(i))  # type: ignore[misc]
    assert done == []  # nobody waits
    release.set()
    workers.drain_background()
    assert done == [0, 1, 3, 4]
    assert "background work failed" in caplog.text and "no space" in caplog.text
    assert nice() == priority


def test_background_work_where_priorities_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    workers._background_queue.cache_clear()
    done: list[int] = []
    workers.submit_background(lambda: done.append(1))
    workers.drain_background()
    assert done == [1]
    workers._background_queue.cache_clear()


def test_a_process_does_not_wait_for_background_work() -> None:
    code = (
        "import time; from visionad_runtime import _threads as workers; "
        "workers.submit_background(lambda: time.sleep(300)); time.sleep(0.05)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_has_threads_of_its_own() -> None:
    workers.parallel_for(lambda _: None, range(4), 2)
    workers.drain_background()
    child = os.fork()
    if not child:
        done: list[int] = []
        workers.parallel_for(done.append, range(4), 2)
        workers.submit_background(lambda: done.append(4))
        workers.drain_background()
        os._exit(0 if len(done) == 5 else 1)
    assert os.waitpid(child, 0)[1] == 0
