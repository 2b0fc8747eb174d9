"""S9: what is damaged, replayed or signed by another key is refused with one line, and the old version stays in force."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.history import undo, verify
from visionad_runtime.cli.main import run
from visionad_runtime.errors import VisionADError
from visionad_runtime.fleet.store.minisign import generate, read_secret, sign
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import parse_target
from visionad_runtime.formats.manifest import BankManifest, read_manifest

from tests.data import part
from tests.fleet.components import module, note, program, releases


class Fleet:
    """A store at revision 2, a station at revision 1, and the pusher's bank."""

    def __init__(self, folder: Path, bank: Path, model: Path) -> None:
        self.folder, self.pusher, self.model = folder, bank, model
        self.store, self.station = folder / "store", folder / "line" / "bank"
        self.key = generate(folder / "visionad.key", folder / "visionad.pub")
        self.target = parse_target(f"{self.store}/line")
        push_bank(bank, self.target, self.key)
        pull_bank(self.target, self.station, PullOptions([self.key.public]))
        with Inspector.open(model, bank, threads=1) as inspector:
            inspector.enroll("disc", [part(300)])
        push_bank(bank, self.target, self.key)

    def pull(self, *arguments: object) -> int:
        pub = () if "--pub" in arguments else ("--pub", self.folder / "visionad.pub")
        return run([str(a) for a in ("bank", "pull", self.target.url, self.station, *pub, *arguments)])

    @property
    def names(self) -> Path:
        return self.store / "names" / "line"


@pytest.fixture
def fleet(tmp_path: Path, station: Path, tiny_model: Path) -> Fleet:
    module("cryptography")
    return Fleet(tmp_path, station, tiny_model)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def new_blob(fleet: Fleet) -> Path:
    files = [json.loads((fleet.names / f"00000{n}.json").read_text())["files"] for n in (1, 2)]
    one = next(
        blob["sha256"] for name, blob in files[1].items() if name not in files[0] and name.startswith("supports")
    )
    return fleet.store / "blobs" / one[:2] / one


def flip_blob(fleet: Fleet) -> None:
    flip(new_blob(fleet))


def lose_blob(fleet: Fleet) -> None:
    new_blob(fleet).unlink()


def change_envelope(fleet: Fleet) -> None:
    path = fleet.names / "000002.json"
    path.write_text(path.read_text().replace('"who": "', '"who": "x'))


def flip_signature(fleet: Fleet) -> None:
    for path in (fleet.names / "signatures").iterdir():
        flip(path)


def sign_with_another_key(fleet: Fleet) -> None:
    other = generate(fleet.folder / "other.key", fleet.folder / "other.pub")
    for path in (fleet.names / "signatures").iterdir():
        path.write_bytes(sign((fleet.names / "000002.json").read_bytes(), other, "x"))


def offer_an_old_revision(fleet: Fleet) -> None:
    assert fleet.pull() == 0
    (fleet.names / "000002.json").unlink()


def rewrite_history(fleet: Fleet) -> None:
    """Whoever has the key writes another second revision after it was seen."""
    assert fleet.pull() == 0
    facts = json.loads((fleet.names / "000002.json").read_text()) | {"who": "somebody else"}
    data = json.dumps(facts).encode()
    (fleet.names / "000002.json").write_bytes(data)
    from visionad_runtime.formats.files import sha256_bytes

    (fleet.names / "signatures" / f"{sha256_bytes(data)}.minisig").write_bytes(sign(data, fleet.key, "x"))


@pytest.mark.parametrize(
    "harm, message",
    [
        (flip_blob, "damaged"),
        (lose_blob, "lacks"),
        (change_envelope, "changed after it was signed"),
        (flip_signature, "signature"),
        (sign_with_another_key, "expected a signature by key"),
        (offer_an_old_revision, "replayed"),
        (rewrite_history, "another one than was seen"),
    ],
)
def test_s9_it_is_refused_and_the_old_version_stays(
    harm: Callable[[Fleet], None], message: str, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(fleet)
    before = read_manifest(fleet.station, BankManifest)
    capsys.readouterr()
    assert fleet.pull() == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and "Traceback" not in said
    assert read_manifest(fleet.station, BankManifest) == before
    verify(fleet.station)


def test_s9_another_key_is_refused(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_manifest(fleet.station, BankManifest)
    generate(fleet.folder / "other.key", fleet.folder / "other.pub")
    assert fleet.pull("--pub", fleet.folder / "other.pub") == 2
    said = capsys.readouterr().err
    assert "expected a signature by key" in said and said.count("\n") == 1
    assert read_manifest(fleet.station, BankManifest) == before
    assert fleet.pull("--pub", fleet.folder / "other.pub", "--pub", fleet.folder / "visionad.pub") == 0


def test_s9_another_models_bank_is_refused(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((fleet.station / "manifest.json").read_text())
    manifest["identity"]["weights_sha256"] = "0" * 64
    (fleet.station / "manifest.json").write_text(json.dumps(manifest))
    before = read_manifest(fleet.station, BankManifest)
    assert fleet.pull() == 2
    said = capsys.readouterr().err
    assert "weights_sha256" in said and said.count("\n") == 1
    assert read_manifest(fleet.station, BankManifest) == before


def golden(folder: Path, *, mixed_up: bool) -> Path:
    for kind, defect in (("good", mixed_up), ("bad", not mixed_up)):
        (folder / "disc" / kind).mkdir(parents=True)
        cv2.imwrite(str(folder / "disc" / kind / "0.png"), part(100) if not defect else part(5, defect=True))
    return folder


def test_s9_known_parts_decide(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_manifest(fleet.station, BankManifest)
    wrong = golden(tmp_path / "wrong", mixed_up=True)
    assert fleet.pull("--check", wrong, "--model", fleet.model) == 2
    said = capsys.readouterr().err
    assert "2 of 2 known parts have another verdict" in said and said.count("\n") == 1
    assert read_manifest(fleet.station, BankManifest) == before
    assert fleet.pull("--check", golden(tmp_path / "right", mixed_up=False), "--model", fleet.model) == 0
    assert read_manifest(fleet.station, BankManifest).version == before.version + 1


def test_s9_minisign_agrees(fleet: Fleet) -> None:
    tool = program("minisign")
    for number in (1, 2):
        envelope = fleet.names / f"00000{number}.json"
        from visionad_runtime.formats.files import sha256_bytes

        signature = fleet.names / "signatures" / f"{sha256_bytes(envelope.read_bytes())}.minisig"
        command = [tool, "-Vm", envelope, "-x", signature, "-p", fleet.folder / "visionad.pub"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "digest" in done.stdout
    flip(envelope)
    assert subprocess.run(command, capture_output=True).returncode != 0
    note("S9", signatures=2, releases=releases("minisign"))


def test_s9_minisign_signs_with_our_key(fleet: Fleet, tmp_path: Path) -> None:
    tool = program("minisign")
    (tmp_path / "file").write_bytes(b"content")
    command = [
        tool,
        "-S",
        "-W",
        "-s",
        tmp_path / "visionad.key",
        "-m",
        tmp_path / "file",
        "-x",
        tmp_path / "file.minisig",
    ]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    from visionad_runtime.fleet.store.minisign import verify as verify_signature

    assert verify_signature(b"content", (tmp_path / "file.minisig").read_bytes(), [fleet.key.public], "file")
    assert read_secret(tmp_path / "visionad.key") == fleet.key


def test_a_rollback_is_a_new_version(fleet: Fleet) -> None:
    first = read_manifest(fleet.station, BankManifest)
    assert fleet.pull() == 0
    options = PullOptions([fleet.key.public])
    back = pull_bank(parse_target(f"{fleet.target.url}@1"), fleet.station, options)
    assert back.digest == first.content_digest() and back.version == first.version + 2
    assert undo(fleet.station).content_digest() == read_manifest(fleet.pusher, BankManifest).content_digest()


def test_both_sides_enrolled_in_one_class(fleet: Fleet) -> None:
    with Inspector.open(fleet.model, fleet.station, threads=1) as inspector:
        inspector.enroll("disc", [part(500)])
        inspector.enroll("grid", [part(501, kind="grid")])
    with pytest.raises(VisionADError, match="pull first"):
        push_bank(fleet.station, fleet.target, fleet.key)
    pulled = pull_bank(fleet.target, fleet.station, PullOptions([fleet.key.public]))
    merged = read_manifest(fleet.station, BankManifest).classes
    assert (len(merged["disc"].images), len(merged["grid"].images)) == (5, 4)
    assert merged["disc"].threshold is None and merged["grid"].threshold is not None
    assert any("thresholds are dropped" in note for note in pulled.notes)
    verify(fleet.station)
    assert push_bank(fleet.station, fleet.target, fleet.key).revision == 3
    shutil.rmtree(fleet.pusher / "nothing", ignore_errors=True)


def test_thresholds_against_thresholds_are_for_a_person(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    from visionad_runtime.bank.store import Bank

    assert fleet.pull() == 0
    for bank, value in ((fleet.pusher, 0.5), (fleet.station, 0.6)):
        Bank.open(bank).update("grid", "t", lambda held, v=value: held.entry.model_copy(update={"threshold": v}))
    push_bank(fleet.pusher, fleet.target, fleet.key)
    assert fleet.pull() == 2
    assert "--take" in capsys.readouterr().err
    assert fleet.pull("--take", "local") == 0
    assert read_manifest(fleet.station, BankManifest).classes["grid"].threshold == 0.6
