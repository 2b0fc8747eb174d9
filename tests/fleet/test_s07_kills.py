"""S7: a push or a pull that is killed at any moment leaves the old bank or the new one, always sound, and goes on where it was.

A push sends the file again in which it was killed, so files that are pushed here are smaller than a MiB. A pull goes on inside a
file, so those that are pulled are larger.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.history import verify
from visionad_runtime.fleet.store.minisign import SecretKey, generate
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import NamedRevisions, parse_target

from tests.data import noise
from tests.fleet.components import module, note, releases
from tests.fleet.stores import Forker, Wire, digest, plain_server, pull

KILLS = int(os.environ.get("VISIONAD_STORE_KILLS", "3"))
"""SIGKILLs that hit a push or a pull under way, for each store; `make test-fleet` takes 100."""
SLACK, MIB = 65536, 1 << 20
"""Bytes over the wire beside the missing files: once, and for each kill. S3's requests take 4 kB a file of them."""
COMMAND = "from visionad_runtime.cli.entry import main; main()"


class Store:
    """A store of one kind.

    Attributes:
        root: URL for pushes and checks.
        url: URL for pulls.
        forker: runs what is killed, through the wire that counts.
        count: returns the bytes that went over that wire so far; ``None`` for a folder.
    """

    def __init__(self, kind: str, root: str, url: str, forker: Forker, count: Callable[[], int] | None) -> None:
        self.kind, self.root, self.url, self.forker, self.count = kind, root, url, forker, count
        self.moments = random.Random(kind)

    def versions(self) -> dict[str, str]:
        return releases("cryptography", *(("s3fs", "moto") if self.kind == "s3" else ()))

    def run(self, *arguments: object) -> None:
        """Run the command line through the wire."""
        command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
        subprocess.run(command, check=True, timeout=120, env=self.forker.environment, capture_output=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    module("cryptography")
    folder, kind = tmp_path / "store", request.param
    if kind == "s3":
        root = f"{request.getfixturevalue('s3')}/{tmp_path.name}"
        wire = Wire(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
        forker = Forker("s3", AWS_ENDPOINT_URL=f"http://127.0.0.1:{wire.port}")
        yield Store(kind, root, root, forker, lambda: wire.moved)
        forker.close()
        wire.close()
        return
    forker = Forker()
    if kind == "web":
        with plain_server(folder) as server:
            yield Store(kind, str(folder), f"http://127.0.0.1:{server.server_port}", forker, lambda: server.sent)
    else:
        yield Store(kind, str(folder), str(folder), forker, None)
    forker.close()


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    module("cryptography")
    return generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")


@pytest.fixture
def large(tmp_path: Path) -> Callable[[int, int], list[Path]]:
    """Return a function that writes images of noise, whose files are large: (side, count) → paths."""

    def write(side: int, count: int) -> list[Path]:
        paths = [tmp_path / f"noise{seed}.png" for seed in range(count)]
        for seed, path in enumerate(paths):
            cv2.imwrite(str(path), noise(side, side, seed))
        return paths

    return write


def enroll(model: Path, bank: Path, paths: list[Path]) -> list[int]:
    """Enroll files and keep them; return the sizes of the files that the bank needs and had not before."""
    before = set(bank.rglob("*"))
    with Inspector.open(model, bank, threads=1) as inspector:
        inspector.enroll_files("disc", paths, calibrate=False)
    new = set(bank.rglob("*")) - before
    return [path.stat().st_size for path in new if path.parent.name in ("images", "supports")]


def size_of(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize("store", ["folder", "s3", "web"], indirect=True)
def test_s7_a_pull_that_is_killed_goes_on(
    store: Store,
    station: Path,
    tiny_model: Path,
    tmp_path: Path,
    key: SecretKey,
    large: Callable[[int, int], list[Path]],
) -> None:
    target, pub, first = f"{store.url}/line3", tmp_path / "visionad.pub", tmp_path / "first"
    push_bank(station, parse_target(f"{store.root}/line3"), key)
    old = pull(target, first, key.public)
    sizes = enroll(tiny_model, station, large(1000, 3))
    assert max(sizes) > 2 * MIB
    push_bank(station, parse_target(f"{store.root}/line3"), key)
    new, missing = digest(station), sum(sizes)
    whole = store.forker.run("pull", target, shutil.copytree(first, tmp_path / "whole"), pub)
    kills, turns, over, wire, found = 0, 0, 0, 0, Counter[str]()
    while kills < KILLS:
        bank, turns, before = shutil.copytree(first, tmp_path / f"bank{turns}"), turns + 1, kills
        start, moved = 0 if store.count is None else store.count(), 0
        said = {"killed": True}
        while kills < KILLS and said["killed"]:
            said = store.forker.run("pull", target, bank, pub, store.moments.uniform(0, 1.1 * whole["seconds"]))
            moved += said["moved"]
            kills += said["killed"]
            verify(bank)
            assert digest(bank) in (old, new)
            if said["killed"]:
                found["new" if digest(bank) == new else "old"] += 1
        if said["killed"] and store.count is not None:
            store.run("bank", "pull", target, bank, "--pub", pub)
        elif said["killed"]:
            moved += store.forker.run("pull", target, bank, pub)["moved"]
        verify(bank)
        assert digest(bank) == new
        moved = moved if store.count is None else store.count() - start
        assert moved <= missing + SLACK + (kills - before) * MIB, f"{kills - before} kills"
        wire, over = wire + moved, over + moved - missing
        shutil.rmtree(bank)
    figures = {"kills": kills, "pulls": turns, "missing_bytes": missing * turns, "wire_bytes": wire}
    figures |= {
        "bytes_again_per_kill": round(over / kills),
        "old_after_kill": found["old"],
        "new_after_kill": found["new"],
    }
    note(f"S7 pull {store.kind}", **figures, releases=store.versions())


@pytest.mark.parametrize("store", ["folder", "s3"], indirect=True)
def test_s7_a_push_that_is_killed_is_invisible(
    store: Store,
    station: Path,
    tiny_model: Path,
    tmp_path: Path,
    key: SecretKey,
    large: Callable[[int, int], list[Path]],
) -> None:
    secret, old, images = tmp_path / "visionad.key", digest(station), large(450, 3)
    kills, turns, missing, over, wire, seconds, found = 0, 0, 0, 0, 0, 0.0, Counter[str]()
    while kills < KILLS:
        root = f"{store.root}/{turns}"
        target, bank, before = parse_target(f"{root}/line3"), shutil.copytree(station, tmp_path / f"bank{turns}"), kills
        push_bank(bank, target, key)
        sizes = enroll(tiny_model, bank, images)
        assert max(sizes) < MIB
        new = digest(bank)
        start = size_of(root) if store.count is None else store.count()
        said = {"killed": True}
        while turns and kills < KILLS and said["killed"]:  # the first is not killed: it tells how long a push takes
            said = store.forker.run("push", target.url, bank, secret, store.moments.uniform(0, 1.1 * seconds))
            kills += said["killed"]
            verify(bank)
            assert digest(bank) == new
            numbers = NamedRevisions(target).numbers()
            assert numbers in ([1], [1, 2])
            other = tmp_path / f"other{turns}"
            assert pull(target.url, other, key.public) == (new if len(numbers) == 2 else old)
            shutil.rmtree(other)
            if said["killed"]:
                found["new" if len(numbers) == 2 else "old"] += 1
        if kills == KILLS and said["killed"]:
            store.run("bank", "push", bank, target.url, "--key", secret)
        elif said["killed"]:
            said = store.forker.run("push", target.url, bank, secret)
            seconds = seconds or said["seconds"]
        moved = (size_of(root) if store.count is None else store.count()) - start
        assert moved <= sum(sizes) + SLACK + (kills - before) * MIB, f"{kills - before} kills"
        assert NamedRevisions(target).numbers() == [1, 2]
        assert pull(target.url, tmp_path / f"last{turns}", key.public) == new
        missing, wire, over, turns = missing + sum(sizes), wire + moved, over + moved - sum(sizes), turns + 1
        shutil.rmtree(bank)
        shutil.rmtree(tmp_path / f"last{turns - 1}")
        if store.count is None:
            shutil.rmtree(root)
    figures = {"kills": kills, "pushes": turns, "missing_bytes": missing, "wire_bytes": wire}
    figures |= {
        "bytes_again_per_kill": round(over / kills),
        "old_after_kill": found["old"],
        "new_after_kill": found["new"],
    }
    note(f"S7 push {store.kind}", **figures, releases=store.versions())
