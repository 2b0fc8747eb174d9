"""The engine cache: a key that changes when and only when it must, and no way to be given half an engine or somebody else's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.engine.tensorrt.api import PORTABLE, LogCollector, TensorRT
from visionad_runtime.engine.tensorrt.builder import engine_key
from visionad_runtime.engine.tensorrt.cache import KEEP, EngineCache, EngineNotFoundError, digest
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import ModelManifest, read_manifest

from tests.fakes.gpu import FakeDevice

PARTS: dict[str, Any] = {"backend": "tensorrt", "builder": "10.3.0", "gpu": "Orin", "profile": [1, 3, 3]}
PLAN = bytes(range(256)) * 40


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    (tmp_path / "model").mkdir()
    return EngineCache(tmp_path / "model")


def keep(cache: EngineCache, parts: dict[str, Any] = PARTS, plan: bytes = PLAN) -> Path:
    return cache.store(parts, plan, {"layers": 3}, "a log\n").folder


def test_an_engine_comes_back_as_it_was(cache: EngineCache) -> None:
    folder = keep(cache)
    entry = cache.find(dict(reversed(PARTS.items())))
    assert (entry.folder, entry.plan.read_bytes(), entry.built["layers"]) == (folder, PLAN, 3)
    assert cache.folder.name == "model.engines" and not any((cache.folder.parent / "model").iterdir())
    assert sorted(p.name for p in cache.folder.iterdir()) == [digest(PARTS)]
    assert (folder / "build.log").read_text() == "a log\n"
    assert cache.has_engine_for("tensorrt") and not cache.has_engine_for("tensorrt-rtx")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(*[st.dictionaries(st.text(max_size=3), json_values, max_size=4)] * 2)
def test_equal_parts_and_only_they_have_equal_keys(a: dict[str, Any], b: dict[str, Any]) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (digest(a) == digest(b)) == same
    assert digest(dict(reversed(a.items()))) == digest(a)


def api(backend: str = "tensorrt", version: str = "10.3.0") -> TensorRT:
    return TensorRT(backend, None, version, None, LogCollector())


def gpu(**changes: Any) -> Any:
    FakeDevice.reset()
    FakeDevice.gpu |= changes
    return FakeDevice()


def key(manifest: ModelManifest, api: TensorRT | None = None, device: Any = None, capability: str = "8.9") -> str:
    return digest(engine_key(api or globals()["api"](), manifest, device or gpu(), capability))


@pytest.fixture
def manifest(tiny_model: Path) -> ModelManifest:
    return read_manifest(tiny_model, ModelManifest)


def test_the_key_changes_with_all_that_decides_an_engine(manifest: ModelManifest) -> None:
    def but(**changes: Any) -> ModelManifest:
        return manifest.model_copy(update=changes)

    files = manifest.files
    keys = [
        key(manifest),
        key(but(files={**files, "backbone.onnx": "0" * 64})),
        key(but(files={**files, "backbone.onnx.data": "0" * 64})),  # weights beside the graph
        key(but(files={**files, "backbone.onnx.data": "1" * 64})),
        key(but(precision="fp16")),
        key(but(views=("original",))),
        key(manifest, api(version="10.4.0")),
        key(manifest, api("tensorrt-rtx")),
        key(manifest, device=gpu(name="NVIDIA L40")),
        key(manifest, device=gpu(total_memory=4 << 30)),  # less scratch memory for its kernels
        key(manifest, capability="8.6"),
    ]
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_nothing_else(manifest: ModelManifest) -> None:
    def but(**changes: Any) -> ModelManifest:
        return manifest.model_copy(update=changes)

    files = manifest.files
    for other in (
        but(files={**files, "golden.safetensors": "0" * 64}),
        but(files=dict(reversed(files.items()))),
        but(tools={}),
        but(weights=manifest.weights.model_copy(update={"source": "elsewhere"})),
    ):
        assert key(other) == key(manifest)
    assert key(manifest, device=gpu(driver="13.2")) == key(manifest)
    assert key(manifest, device=gpu(total_memory=16 << 30)) == key(manifest, device=gpu(total_memory=80 << 30))
    rtx = api("tensorrt-rtx")  # an engine for any GPU does not depend on the one that is here
    assert key(manifest, rtx, gpu(name="A"), PORTABLE) == key(
        manifest, rtx, gpu(name="B", total_memory=1 << 32), PORTABLE
    )
    assert digest(engine_key(rtx, manifest, None, PORTABLE)) == key(manifest, rtx, gpu(), PORTABLE)


def test_another_gpu_or_version_is_refused_with_what_differs(cache: EngineCache) -> None:
    with pytest.raises(EngineNotFoundError, match="no engine has been built"):
        cache.find(PARTS)
    keep(cache)
    with pytest.raises(
        EngineNotFoundError, match=r"something else \(builder 10\.3\.0, here 10\.8\.0; gpu Orin, here NVIDIA L4\)"
    ):
        cache.find({**PARTS, "builder": "10.8.0", "gpu": "NVIDIA L4"})
    with pytest.raises(EngineNotFoundError, match="no engine has been built"):
        cache.find({**PARTS, "backend": "tensorrt-rtx"})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """By hand, what is noted of the build."""
    facts = json.loads((folder / "engine.json").read_text())
    change(facts["built"])
    (folder / "engine.json").write_text(json.dumps(facts))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: flip(f / "engine.plan"), "damaged: expected sha256"),
        (lambda f: os.truncate(f / "engine.plan", 100), "damaged: expected 10240 bytes, got 100"),
        (lambda f: (f / "engine.plan").unlink(), "cannot be read"),
        (lambda f: (f / "engine.json").unlink(), "cannot be read"),
        (lambda f: os.truncate(f / "engine.json", 50), r"engine\.json is damaged"),
        (lambda f: (f / "engine.json").write_text("[]"), r"engine\.json is damaged"),
        (lambda f: (f / "engine.json").write_text("[" * 100_000), r"engine\.json is damaged"),
        (lambda f: (f / "engine.json").write_text('{"format": 3}'), "expected format 2, got 3"),
        (lambda f: edit(f, lambda built: built.pop("layers")), "its facts do not have their sha256"),
        (lambda f: edit(f, lambda built: built.update(layers="3")), "its facts do not have their sha256"),
        (lambda f: edit(f, lambda built: built.clear()), "its facts do not have their sha256"),
    ],
    ids=[
        "a bit",
        "truncated",
        "no plan",
        "no json",
        "half a json",
        "other json",
        "nested json",
        "newer",
        "lacks",
        "type",
        "none",
    ],
)
def test_damage_is_found_and_mended_by_the_next_build(cache: EngineCache, harm: Any, said: str) -> None:
    harm(keep(cache))
    with pytest.raises(EngineNotFoundError, match=said):
        cache.find(PARTS)
    keep(cache)
    assert cache.find(PARTS).plan.read_bytes() == PLAN
    assert [p.name for p in cache.folder.iterdir()] == [digest(PARTS)]


def test_a_foreign_engine_put_in_its_place_is_refused(cache: EngineCache) -> None:
    other = {**PARTS, "gpu": "NVIDIA L4"}
    shutil.move(keep(cache, other), cache.folder / digest(PARTS))
    with pytest.raises(EngineNotFoundError, match=r"for something else \(gpu NVIDIA L4, here Orin\)"):
        cache.find(PARTS)


def test_a_read_only_or_full_disk_is_one_line(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VisionADError, match="No space left"):
        keep(cache)
    assert list(cache.folder.iterdir()) == []


def test_a_file_in_the_place_of_the_cache_is_said(cache: EngineCache) -> None:
    cache.folder.write_text("mine")
    with pytest.raises(VisionADError, match="expected a folder for engines, got a file; move it away"):
        cache.store(PARTS, b"plan", {}, "")
    assert cache.folder.read_text() == "mine"


def test_old_entries_go_and_used_ones_stay(cache: EngineCache) -> None:
    for i in range(KEEP):
        folder = keep(cache, {**PARTS, "n": i})
        os.utime(folder / "engine.json", (i, i))
    cache.find({**PARTS, "n": 0})  # used just now
    old = cache.folder / ".abandoned.tmp"
    old.mkdir()
    os.utime(old, (0, 0))
    young = cache.folder / ".0123.1.99.tmp"
    young.mkdir()
    keep(cache, {**PARTS, "n": KEEP})
    left = {e.key["n"] for e in cache._entries()}
    assert left == set(range(KEEP + 1)) - {1}
    assert young.exists() and not old.exists()


STORE = """
import os, signal, sys
from pathlib import Path
from visionad_runtime.engine.tensorrt import cache
folder, moment, mark = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
seen = 0
def touches(event, args):  # dies right before the n-th time it touches the engines' folder in any way
    global seen
    if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.utime") and ".engines" in str(args[:2]):
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(touches)
parts = {"backend": "tensorrt", "builder": "10.3.0", "gpu": "Orin", "profile": [1, 3, 3]}
entry = cache.EngineCache(folder).store(parts, mark * 100000, {"mark": mark.decode()}, "log")
assert entry.plan.read_bytes() == entry.built["mark"].encode() * 100000
"""


def child(cache: EngineCache, moment: int, mark: str = "x") -> subprocess.Popen[bytes]:
    model = cache.folder.parent / "model"
    return subprocess.Popen([sys.executable, "-c", STORE, str(model), str(moment), mark])


def test_a_kill_at_any_moment_leaves_all_or_nothing(cache: EngineCache) -> None:
    killed = 0
    for moment in range(1, 60):
        ended = child(cache, moment).wait()
        killed += ended == -9
        assert ended in (0, -9)
        try:
            entry = cache.find(PARTS)
        except EngineNotFoundError as miss:
            assert "no engine has been built" in str(miss)  # nothing that could be taken for one
        else:
            assert entry.plan.read_bytes() == b"x" * 100000
            shutil.rmtree(entry.folder)
        if ended == 0:
            break
    assert killed >= 8 and ended == 0


def test_many_processes_build_at_once_and_agree(cache: EngineCache) -> None:
    children = [child(cache, -1, mark) for mark in "abcd"]
    assert [c.wait() for c in children] == [0, 0, 0, 0]
    entry = cache.find(PARTS)
    assert entry.plan.read_bytes() == entry.built["mark"].encode() * 100000
    assert [p.name for p in cache.folder.iterdir()] == [digest(PARTS)]
