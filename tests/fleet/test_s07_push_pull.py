"""S7: push and pull over a folder, plain HTTP and S3: what is pulled is what was pushed, and little is moved."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.errors import VisionADError
from visionad_runtime.fleet.storage import open_storage
from visionad_runtime.fleet.store.minisign import SecretKey, generate
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import NamedRevisions, parse_target

from tests.data import part
from tests.fleet.components import module
from tests.fleet.stores import PlainServer, digest, plain_server, pull


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    module("cryptography")
    return generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_s7_what_is_pulled_is_what_was_pushed(root: str, station: Path, tmp_path: Path, key: SecretKey) -> None:
    target = parse_target(f"{root}/line3")
    first = push_bank(station, target, key)
    assert (first.revision, first.is_new) == (1, True)
    assert push_bank(station, target, key)[:2] == (1, False)
    other = tmp_path / "other"
    assert pull(f"{root}/line3", other, key.public) == digest(station)
    again = pull_bank(target, other, PullOptions([key.public]))
    assert (again.is_new, again.bytes) == (False, 0)


def test_s7_one_enrollment_moves_one_support(
    root: str, station: Path, tiny_model: Path, tmp_path: Path, key: SecretKey
) -> None:
    target, other = parse_target(f"{root}/line3"), tmp_path / "other"
    whole = push_bank(station, target, key).bytes
    pull(f"{root}/line3", other, key.public)
    with Inspector.open(tiny_model, station, threads=1) as inspector:
        inspector.enroll("disc", [part(300)])
    second = push_bank(station, target, key)
    assert second.revision == 2 and second.bytes < whole / 5
    pulled = pull_bank(target, other, PullOptions([key.public]))
    assert (pulled.bytes, digest(other)) == (second.bytes, digest(station))


def test_s7_a_push_brings_back_what_the_store_lost(root: str, station: Path, tmp_path: Path, key: SecretKey) -> None:
    target, storage = parse_target(f"{root}/line3"), open_storage(root)
    push_bank(station, target, key)
    lost = storage.list("blobs")[0]
    storage.delete(f"blobs/{lost}")
    with pytest.raises(VisionADError, match="push it again"):
        pull(f"{root}/line3", tmp_path / "other", key.public)
    assert push_bank(station, target, key).bytes > 0
    assert pull(f"{root}/line3", tmp_path / "other", key.public) == digest(station)


def test_s7_eight_pushes_at_once_have_one_winner(root: str, station: Path, tmp_path: Path, key: SecretKey) -> None:
    push_bank(station, parse_target(f"{root}/line3"), key)
    names = NamedRevisions(parse_target(f"{root}/line3"))
    won = []

    def create(number: int) -> None:
        try:
            open_storage(root).create("names/line3/000002.json", bytes([number]) * 1000)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert names.storage.read("names/line3/000002.json") == bytes(won) * 1000


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, PlainServer]]:
    with plain_server(tmp_path / "store") as server:
        yield f"http://127.0.0.1:{server.server_port}", server


def test_s7_a_plain_web_server_is_enough_to_pull(
    web: tuple[str, PlainServer], station: Path, tmp_path: Path, key: SecretKey
) -> None:
    url, server = web
    sent = push_bank(station, parse_target(f"{tmp_path}/store/line3"), key).bytes
    assert pull(f"{url}/line3", tmp_path / "other", key.public) == digest(station)
    assert server.sent < sent + 65536
    server.sent = 0
    pull(f"{url}/line3", tmp_path / "other", key.public)
    assert server.sent < 32768
    with pytest.raises(VisionADError, match="read only"):
        push_bank(tmp_path / "other", parse_target(f"{url}/line4"), key)
