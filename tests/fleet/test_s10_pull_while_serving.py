"""S10: inspections go on while pulls commit revisions: every result names a bank that was in force, and none fails."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.store import Bank
from visionad_runtime.fleet.store.minisign import generate
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import parse_target

from tests.data import part
from tests.fleet.components import module

REVISIONS = 50


def test_s10_every_answer_names_a_bank_that_was_in_force(tiny_model: Path, station: Path, tmp_path: Path) -> None:
    module("cryptography")
    pytest.importorskip("fastapi", reason="serving takes the serve extra")
    from visionad_runtime.web.queue import UploadedImage
    from visionad_runtime.web.service import InspectionService

    key = generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")
    target, line = parse_target(f"{tmp_path / 'store'}/line"), tmp_path / "line"
    push_bank(station, target, key)
    in_force = {pull_bank(target, line, PullOptions([key.public])).digest}
    stop, failures, named = threading.Event(), [], []

    def inspect() -> None:
        with Inspector.open(tiny_model, line, threads=1) as inspector:
            service = InspectionService(inspector)
            while not stop.is_set():
                try:
                    result = asyncio.run(service.inspect(UploadedImage(part(1), "1.png", b""), "disc"))
                    named.append((result.bank, result.score))
                except Exception as exc:
                    failures.append(exc)
            service.close()

    thread = threading.Thread(target=inspect)
    thread.start()
    try:
        pusher = Bank.open(station)
        for turn in range(REVISIONS):
            limit = 0.5 + turn / 1000
            pusher.update("disc", f"t{turn}", lambda held, v=limit: held.entry.model_copy(update={"threshold": v}))
            push_bank(station, target, key)
            in_force.add(pull_bank(target, line, PullOptions([key.public])).digest)
    finally:
        stop.set()
        thread.join()
    assert failures == []
    assert len(in_force) == REVISIONS + 1
    seen = {bank for bank, _ in named}
    assert seen <= in_force and len(seen) > 3
    assert len({score for _, score in named}) == 1, "a threshold changes no score"
    print(f"S10: {len(named)} results over {REVISIONS} revisions name {len(seen)} banks")
