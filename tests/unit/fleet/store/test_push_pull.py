"""Banks of other views, files that were lost on either side, and folders that are spelled in several ways."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.history import remove_offline, undo, verify
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import BankManifest, read_manifest

from tests.data import part

pytest.importorskip("cryptography", reason="push and pull take the fleet extra")

from visionad_runtime.fleet.store.minisign import SecretKey, generate
from visionad_runtime.fleet.store.pull import Pulled, PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import parse_target


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    return generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")


@pytest.fixture
def bank(tiny_model: Path, tmp_path: Path) -> Path:
    return filled(tiny_model, tmp_path / "bank")


def filled(model: Path, bank: Path, count: int = 3) -> Path:
    with Inspector.open(model, bank, threads=1) as inspector:
        inspector.enroll("disc", [part(100 + i) for i in range(count)])
    return bank


def content(bank: Path) -> str:
    return read_manifest(bank, BankManifest).content_digest()


def pull(target: str, bank: Path, key: SecretKey, *, discard_local: bool = False) -> Pulled:
    return pull_bank(parse_target(target), bank, PullOptions([key.public], discard_local=discard_local))


def of_one_view(model: Path, folder: Path) -> Path:
    """Return a copy of a model whose banks hold the tokens of one view."""
    shutil.copytree(model, folder)
    facts = json.loads((folder / "manifest.json").read_text()) | {"views": ["original"]}
    (folder / "manifest.json").write_text(json.dumps(facts))
    return folder


def test_banks_of_other_views_are_not_mixed(tiny_model: Path, bank: Path, tmp_path: Path, key: SecretKey) -> None:
    target, other = f"{tmp_path}/store/line", filled(of_one_view(tiny_model, tmp_path / "one"), tmp_path / "other")
    push_bank(bank, parse_target(target), key)
    before = content(other)
    with pytest.raises(VisionADError, match="tokens of views original, revision 1 of original, flip"):
        pull(target, other, key)
    with pytest.raises(VisionADError, match="pull first"):
        push_bank(other, parse_target(target), key)
    assert content(other) == before
    pull(target, other, key, discard_local=True)
    assert content(verify_whole(other)) == content(bank)
    undo(other)
    assert content(verify_whole(other)) == before


def test_an_empty_bank_of_other_views_is_another_bank(
    tiny_model: Path, bank: Path, tmp_path: Path, key: SecretKey
) -> None:
    target, other = f"{tmp_path}/store/line", filled(of_one_view(tiny_model, tmp_path / "one"), tmp_path / "other")
    for one in (bank, other):
        remove_offline(one, "disc")
    push_bank(bank, parse_target(target), key)
    with pytest.raises(VisionADError, match="pull first"):
        push_bank(other, parse_target(target), key)


def verify_whole(bank: Path) -> Path:
    verify(bank)
    return bank


def test_what_verify_refuses_is_not_pushed(bank: Path, tmp_path: Path, key: SecretKey) -> None:
    facts = json.loads((bank / "manifest.json").read_text())
    facts |= {"views": ["original"], "blocks": facts["blocks"][:1]}
    (bank / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(VisionADError):
        verify(bank)
    with pytest.raises(VisionADError):
        push_bank(bank, parse_target(f"{tmp_path}/store/line"), key)
    assert not list((tmp_path / "store").rglob("00*.json"))


@pytest.mark.parametrize("harm", ["missing", "flipped"])
@pytest.mark.parametrize("discard_local", [False, True])
def test_a_pull_mends_the_version_in_force(
    harm: str, discard_local: bool, bank: Path, tmp_path: Path, key: SecretKey
) -> None:
    target, other = f"{tmp_path}/store/line", tmp_path / "other"
    push_bank(bank, parse_target(target), key)
    version = pull(target, other, key).version
    victim = min((other / "supports").iterdir())
    data = victim.read_bytes()
    victim.unlink()
    if harm == "flipped":
        victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    pulled = pull(target, other, key, discard_local=discard_local)
    assert (pulled.is_new, pulled.version, pulled.bytes) == (False, version, len(data))
    assert any("missing or damaged" in note for note in pulled.notes)
    verify(other)
    assert pull(target, other, key).notes == ()


def test_known_parts_are_checked_where_nothing_is_new(
    bank: Path, tiny_model: Path, tmp_path: Path, key: SecretKey
) -> None:
    import cv2

    for kind, defect in (("good", True), ("bad", False)):  # mixed up
        (tmp_path / "golden" / "disc" / kind).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "golden" / "disc" / kind / "0.png"), part(5, defect=defect))
    target, other = parse_target(f"{tmp_path}/store/line"), tmp_path / "other"
    push_bank(bank, target, key)
    pull_bank(target, other, PullOptions([key.public]))
    with pytest.raises(VisionADError, match="2 of 2 known parts have another verdict"):
        pull_bank(target, other, PullOptions([key.public], check=tmp_path / "golden", model=tiny_model))


def test_an_undone_revision_is_said(bank: Path, tiny_model: Path, tmp_path: Path, key: SecretKey) -> None:
    target, other = f"{tmp_path}/store/line", tmp_path / "other"
    push_bank(bank, parse_target(target), key)
    pull(target, other, key)
    with Inspector.open(tiny_model, bank, threads=1) as inspector:
        inspector.enroll("disc", [part(300)])
    push_bank(bank, parse_target(target), key)
    assert pull(target, other, key).notes == ()
    undo(other)
    pulled = pull(target, other, key)
    assert not pulled.is_new and any("was undone" in note for note in pulled.notes)
    assert content(other) != content(bank)


@pytest.mark.parametrize(
    "spelling", ["s/line", "./s/line", "../{here}/s/line", "{full}/s/line", "file://{full}/s/line"]
)
def test_one_store_however_it_is_spelled(
    spelling: str, bank: Path, tiny_model: Path, tmp_path: Path, key: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spelled, other = spelling.format(full=tmp_path, here=tmp_path.name), tmp_path / "other"
    push_bank(bank, parse_target("s/line"), key)
    pull("s/line", other, key)
    remove_offline(other, "disc")
    push_bank(other, parse_target("s/line"), key)
    pull(spelled, bank, key)
    assert "disc" not in read_manifest(bank, BankManifest).classes  # what was removed is not brought back
    (tmp_path / "s/names/line/000002.json").unlink()
    with pytest.raises(VisionADError, match="may be replayed"):
        pull(spelled, other, key)


def test_a_place_of_an_earlier_release_is_known(
    bank: Path, tmp_path: Path, key: SecretKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    push_bank(bank, parse_target("s/line"), key)
    remote = bank / "remote.json"
    facts = json.loads(remote.read_text())
    facts["origins"] = {"./s/line": facts["origins"][f"{tmp_path}/s/line"]}
    remote.write_text(json.dumps(facts))
    assert not push_bank(bank, parse_target("s/line"), key).is_new
    remove_offline(bank, "disc")
    assert push_bank(bank, parse_target(f"{tmp_path}/s/line"), key).revision == 2
    assert list(json.loads(remote.read_text())["origins"]) == [f"{tmp_path}/s/line"]


def test_a_push_brings_back_what_the_store_lost(bank: Path, tmp_path: Path, key: SecretKey) -> None:
    target = f"{tmp_path}/store/line"
    push_bank(bank, parse_target(target), key)
    lost = min(path for path in (tmp_path / "store/blobs").rglob("*") if path.is_file())
    size = lost.stat().st_size
    lost.unlink()
    with pytest.raises(VisionADError, match="push it again"):
        pull(target, tmp_path / "other", key)
    assert push_bank(bank, parse_target(target), key) == (1, False, size)
    pull(target, tmp_path / "other", key)
    verify(tmp_path / "other")


def test_a_new_revision_brings_back_what_the_store_lost(
    bank: Path, tiny_model: Path, tmp_path: Path, key: SecretKey
) -> None:
    target = f"{tmp_path}/store/line"
    push_bank(bank, parse_target(target), key)
    min(path for path in (tmp_path / "store/blobs").rglob("*") if path.is_file()).unlink()
    with Inspector.open(tiny_model, bank, threads=1) as inspector:
        inspector.enroll("disc", [part(300)])
    push_bank(bank, parse_target(target), key)
    pull(target, tmp_path / "other", key)
    verify(tmp_path / "other")
