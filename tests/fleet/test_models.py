"""Released models: a lean install starts with one from a plain web server, by its name in a signed index."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.cli.main import run
from visionad_runtime.fleet.store.minisign import generate, sign
from visionad_runtime.fleet.store.push import push_model
from visionad_runtime.fleet.store.revisions import parse_target
from visionad_runtime.formats.model_folder import read_model

from tests.data import ROOT
from tests.fleet.components import module


class Released:
    """A store with a model and its index, behind a web server."""

    def __init__(self, folder: Path, model: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.key = generate(folder / "visionad.key", folder / "visionad.pub")
        self.store = folder / "web"
        push_model(model, parse_target(f"{self.store}/tiny"), self.key)
        self.write_index({"small": "tiny@1"})

    def write_index(self, models: dict[str, str]) -> None:
        data = json.dumps({"models": models}).encode()
        (self.store / "index.json").write_bytes(data)
        (self.store / "index.json.minisig").write_bytes(sign(data, self.key, "index"))

    def pull(self, *arguments: object) -> int:
        common = ("--index", f"{self.url}/index.json", "--pub", self.folder / "visionad.pub")
        return run([str(a) for a in ("model", "pull", *arguments, *common)])


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def released(tmp_path: Path, tiny_model: Path) -> Iterator[Released]:
    module("cryptography")
    (tmp_path / "web").mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path / "web"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Released(tmp_path, tiny_model, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_model_is_pulled_by_its_name(released: Released, tmp_path: Path, tiny_model: Path) -> None:
    assert released.pull("small", tmp_path / "model") == 0
    assert read_model(tmp_path / "model") == read_model(tiny_model)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("model")) == ["model"]
    with Inspector.open(tmp_path / "model", threads=1) as inspector:
        assert inspector.digest == read_model(tiny_model).content_digest()
    assert released.pull("small", tmp_path / "model") == 0


def test_nothing_is_loaded_that_the_lean_install_lacks(released: Released, tmp_path: Path) -> None:
    """Only cryptography is taken beside the lean install, for plain HTTP."""
    script = (
        "import sys\nfor name in ('torch', 'timm', 'onnx', 'fsspec', 'pyarrow', 'ray', 'sqlalchemy'): sys.modules[name] = None\n"
        "from visionad_runtime.cli.main import run\nsys.exit(run(sys.argv[1:]))"
    )
    command = ["model", "pull", "small", str(tmp_path / "model"), "--index", f"{released.url}/index.json"]
    command += ["--pub", str(tmp_path / "visionad.pub")]
    subprocess.run([sys.executable, "-c", script, *command], check=True)


def test_refusals_leave_the_folder(released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert released.pull("large", tmp_path / "model") == 2
    assert "it has small" in capsys.readouterr().err
    (released.store / "index.json").write_bytes(b'{"models": {"small": "http://elsewhere/tiny@1"}}')
    assert released.pull("small", tmp_path / "model") == 2
    assert "changed after key" in capsys.readouterr().err
    released.write_index({"small": "tiny@1"})
    (tmp_path / "model").mkdir()
    (tmp_path / "model/notes.txt").write_text("mine")
    for more in ((), ("--replace",)):
        assert released.pull("small", tmp_path / "model", *more) == 2
        assert (tmp_path / "model/notes.txt").read_text() == "mine"


def test_a_model_is_replaced_whole(released: Released, tmp_path: Path, tiny_model: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "model")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["precision"] = "tf32"
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert released.pull("small", other) == 2
    assert released.pull("small", other, "--replace") == 0
    assert read_model(other) == read_model(tiny_model)
    work = tmp_path / ".model.visionad-pull"
    work.mkdir()
    inode = (other / "manifest.json").stat().st_ino
    other.rename(work / "previous")  # as a kill between the two renames leaves it
    assert released.pull("small", other) == 0
    assert (other / "manifest.json").stat().st_ino == inode and not work.exists()
    assert read_model(other) == read_model(tiny_model)


@pytest.mark.slow(group="export")
def test_the_release_script_makes_such_a_store(tmp_path: Path, tiny_weights: Path) -> None:
    module("cryptography")
    weights = tmp_path / "weights" / "deit_tiny_patch16_224"
    weights.mkdir(parents=True)
    shutil.copy(tiny_weights, weights / "model.safetensors")
    generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")
    command = [ROOT / ".ci/release_models.py", tmp_path / "out", "--key", tmp_path / "visionad.key"]
    command += ["--weights", tmp_path / "weights", "--backbones", "deit_tiny_patch16_224"]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    arguments = ["model", "pull", "deit_tiny_patch16_224", tmp_path / "model", "--index", tmp_path / "out/index.json"]
    assert run([str(a) for a in (*arguments, "--pub", tmp_path / "visionad.pub")]) == 0
    assert read_model(tmp_path / "model").identity.backbone == "deit_tiny_patch16_224"
