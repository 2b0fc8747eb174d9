"""S10: a real service inspects while pulls commit revisions: every answer names a bank that was in force then, and none fails."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from visionad_runtime.bank.store import Bank
from visionad_runtime.fleet.store.minisign import generate
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import parse_target

from tests.data import part
from tests.fleet.components import module, note
from tests.fleet.servers import png, serving

REVISIONS, CLIENTS = 50, 2


def test_s10_every_answer_names_a_bank_that_was_in_force(tiny_model: Path, station: Path, tmp_path: Path) -> None:
    module("cryptography")
    pytest.importorskip("fastapi", reason="serving takes the serve extra")
    key = generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")
    target, line = parse_target(f"{tmp_path / 'store'}/line"), tmp_path / "line"
    push_bank(station, target, key)
    # Digest → its place, the moment before which it was not in force, and the moment after which it was not.
    in_force = {pull_bank(target, line, PullOptions([key.public])).digest: [0.0, float("inf")]}
    stop, failures = threading.Event(), list[object]()
    named: list[tuple[str, float, float, float]] = []

    with serving(tiny_model, line) as service:

        def inspect() -> None:
            body = png(part(1))
            while not stop.is_set():
                asked = time.monotonic()
                try:
                    status, answer = service.ask("POST", "/inspect?class=disc", body)
                    result = json.loads(answer)
                    assert status == 200, result
                    named.append((result["bank"], result["score"], asked, time.monotonic()))
                except Exception as exc:
                    failures.append(exc)

        threads = [threading.Thread(target=inspect) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            pusher = Bank.open(station)
            for turn in range(REVISIONS):
                limit = 0.5 + turn / 1000
                pusher.update("disc", f"t{turn}", lambda held, v=limit: held.entry.model_copy(update={"threshold": v}))
                push_bank(station, target, key)
                before, begun = next(reversed(in_force)), time.monotonic()
                in_force[pull_bank(target, line, PullOptions([key.public])).digest] = [begun, float("inf")]
                in_force[before][1] = time.monotonic()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert failures == []
    assert len(in_force) == REVISIONS + 1
    wrong = [one for one in named if one[0] not in in_force]
    wrong += [one for one in named if one[0] in in_force and not overlaps(one[2:], in_force[one[0]])]
    assert wrong == []
    seen = {bank for bank, *_ in named}
    assert len(seen) > 3
    assert len({score for _, score, *_ in named}) == 1, "a threshold changes no score"
    figures = {"revisions": REVISIONS, "answers": len(named), "banks_named": len(seen)}
    note("S10", **figures, failed=len(failures), wrong=len(wrong))


def overlaps(answer: tuple[float, ...], force: list[float]) -> bool:
    """Return whether a bank was in force at some moment between question and answer."""
    return answer[0] <= force[1] and answer[1] >= force[0]
