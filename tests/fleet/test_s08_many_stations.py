"""S8: stations enroll and push in a loop, with a pull on conflict: nothing is lost, and revisions have no gap."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.errors import VisionADError
from visionad_runtime.fleet.store.minisign import generate
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import NamedRevisions, parse_target
from visionad_runtime.formats.manifest import BankManifest, read_manifest

from tests.data import part
from tests.fleet.components import module, note

pytestmark = pytest.mark.slow(group="fleet")

STATIONS, PARTS = 8, 3


@pytest.mark.parametrize("store", ["folder", "s3"])
def test_s8_all_enrolled_images_are_there(
    store: str, request: pytest.FixtureRequest, station: Path, tiny_model: Path, tmp_path: Path
) -> None:
    module("cryptography")
    root = str(tmp_path / "store") if store == "folder" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    key = generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")
    target, options = parse_target(f"{root}/line"), PullOptions([key.public])
    push_bank(station, target, key)
    banks = [tmp_path / f"bank{i}" for i in range(STATIONS)]
    for bank in banks:
        pull_bank(target, bank, options)
    conflicts, failures = [0] * STATIONS, []

    def work(number: int) -> None:
        try:
            for turn in range(PARTS):
                with Inspector.open(tiny_model, banks[number], threads=1) as inspector:
                    inspector.enroll("disc" if number % 2 else f"own{number}", [part(1000 + 10 * number + turn)])
                while True:
                    try:
                        push_bank(banks[number], target, key)
                        break
                    except VisionADError as exc:
                        if "pull first" not in str(exc):
                            raise
                        conflicts[number] += 1
                        pull_bank(target, banks[number], options)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(STATIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    last = tmp_path / "last"
    pull_bank(target, last, options)
    classes = read_manifest(last, BankManifest).classes
    assert len(classes["disc"].images) == 3 + STATIONS // 2 * PARTS
    assert all(len(classes[f"own{number}"].images) == PARTS for number in range(0, STATIONS, 2))
    names = NamedRevisions(target)
    numbers = names.numbers()
    assert numbers == list(range(1, len(numbers) + 1))
    assert [signed.revision.revision for signed in names.log([key.public])] == numbers
    for bank in banks:
        pull_bank(target, bank, options)
    digests = {read_manifest(bank, BankManifest).content_digest() for bank in (*banks, last)}
    assert len(digests) == 1, "all stations agree in the end"
    figures = {
        "stations": STATIONS,
        "enrollments": STATIONS * PARTS,
        "revisions": len(numbers),
        "conflicts": sum(conflicts),
    }
    note(f"S8 {store}", **figures)
    shutil.rmtree(last)
