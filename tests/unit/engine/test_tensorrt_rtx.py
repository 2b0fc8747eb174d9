"""NVIDIA's real parser and builder, TensorRT-RTX, without a GPU: what we ask for is what it builds, in every precision.

ViT-S; the slow tests take ViT-B, and ViT-L once: minutes more, and 8 GB of memory and disk. Weights are random.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.engine.tensorrt.api import load_api
from visionad_runtime.engine.tensorrt.builder import build, engine_key
from visionad_runtime.engine.tensorrt.cache import EngineCache, EngineNotFoundError
from visionad_runtime.errors import ModelError
from visionad_runtime.formats.files import sha256_file
from visionad_runtime.formats.manifest import MANIFEST, ModelManifest, read_manifest, to_json

from tests import cache

trt: Any = pytest.importorskip("tensorrt_rtx", reason="takes the rtx extra (Linux x86-64)")
timm = pytest.importorskip("timm", reason="takes the export extra")

CASES = [
    ("small", "fp16"),
    ("small", "fp32"),
    ("small", "bf16"),
    ("base", "fp32"),
    ("base", "bf16"),
    ("base", "fp16"),
    ("large", "bf16"),
]
"""Sizes and precisions. A ViT-L is other than a ViT-B in depth and size only: one precision shows it."""
BLOCKS = {"small": 10, "base": 10, "large": 19}
"""Transformer blocks up to the last layer that is used: as many attentions."""


def lowered(model: Path, out: Path, precision: str) -> ModelManifest:
    """A model folder with its graph typed as `export --precision` types it."""
    import onnx_ir
    from visionad_export.graph.precision import lower, save_onnx

    shutil.copytree(model, out)
    proto = onnx_ir.load(model / "backbone.onnx")
    lower(proto, precision)
    (out / "backbone.onnx").unlink()
    (out / "backbone.onnx.data").unlink(missing_ok=True)
    save_onnx(proto, out / "backbone.onnx", 1_500_000_000)
    manifest = read_manifest(out, ModelManifest)
    files = {p.name: sha256_file(p) for p in out.iterdir() if p.name != MANIFEST}
    manifest = manifest.model_copy(update={"precision": precision, "files": files})
    (out / MANIFEST).write_bytes(to_json(manifest))
    return manifest


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """models(size, precision): a model folder with random weights and what its manifest says. Made once each."""
    from visionad_export.exporter import export_model

    root = tmp_path_factory.mktemp("models")
    made: dict[tuple[str, str], tuple[Path, ModelManifest]] = {}

    def make(size: str, precision: str = "fp32") -> tuple[Path, ModelManifest]:
        if (size, precision) in made:
            return made[size, precision]
        out = root / f"{size}-{precision}"
        if precision == "fp32":

            def export(folder: Path) -> None:
                from safetensors.torch import save_file

                net = timm.create_model(f"vit_{size}_patch14_reg4_dinov2.lvd142m", pretrained=False)
                save_file(net.state_dict(), root / f"{size}.safetensors")
                export_model(f"dinov2_vit{size[0]}14_reg", folder / "model", weights=root / f"{size}.safetensors")

            if size == "small":
                shutil.copytree(cache.get(f"random {size}", export) / "model", out)  # engines lie beside a model
            else:  # gigabytes: not kept
                out.mkdir()
                export(out)
                out = out / "model"
            made[size, precision] = out, read_manifest(out, ModelManifest)
        else:  # the graph that `export` would write, without its minutes of emulation
            made[size, precision] = out, lowered(make(size)[0], out, precision)
        return made[size, precision]

    return make


def room_for(size: str, folder: Path) -> None:
    """Skip ViT-L where it would end in an out-of-memory kill or a full disk."""
    if size != "large":
        return
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if Path("/proc/meminfo").exists():  # counts what the system would give up, too
        lines = Path("/proc/meminfo").read_text().splitlines()
        memory = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
    disk = shutil.disk_usage(folder).free
    if min(memory, disk) < 8.5e9:
        pytest.skip(f"ViT-L takes 8.5 GB of memory and of disk; found {memory / 1e9:.1f} and {disk / 1e9:.1f} GB")


@pytest.mark.slow(group="tensorrt-rtx")
@pytest.mark.parametrize(("size", "precision"), CASES)
def test_what_is_built_is_what_was_asked_for(models: Any, size: str, precision: str, tmp_path: Path) -> None:
    room_for(size, tmp_path)
    models(size)
    model, manifest = models(size, precision)
    steps: list[None] = []
    entry, fresh = build(model, manifest, "tensorrt-rtx", step=lambda: steps.append(None))
    built = entry.built
    assert fresh and len(steps) == 100
    others = {t: n for t, n in built["graph"].items() if t != precision}
    assert {
        t: n for t, n in built["matrix_types"].items() if t != precision
    } == others  # the convolution that reads images
    assert built["matrix_types"][precision] >= 4 * BLOCKS[size]
    assert built["attentions"] == BLOCKS[size]
    assert built["fused_attention"] == (0 if precision == "fp32" else BLOCKS[size])
    assert built["tf32_kernels"] == 0
    assert built["memory"]["weights_bytes"] > 30e6 and built["memory"]["activation_bytes"] > 1e6
    assert entry.plan.stat().st_size > built["memory"]["weights_bytes"]
    # inputs, outputs, types and profile were read back while building; a wrong one is an error there
    log = (entry.folder / "build.log").read_text()
    assert f"precision    {precision}" in log and "Building engine (" in log and "VERBOSE" not in log
    assert not build(model, manifest, "tensorrt-rtx")[1]
    if size == "large":  # 1.2 GB an engine
        shutil.rmtree(entry.folder.parent)


@pytest.mark.slow(group="tensorrt-rtx")
def test_other_views_take_another_engine(models: Any) -> None:
    models("small")
    model, manifest = models("small", "fp16")
    usual, grown, alone = (
        build(model, manifest.model_copy(update={"views": views}), "tensorrt-rtx")[0]
        for views in (manifest.views, ("original", "flip"), ("original",))
    )
    assert len({usual.folder, grown.folder, alone.folder}) == 3
    assert alone.key["profile"] == [1, 1, 1]  # nothing is dynamic then


def test_the_readback_is_of_the_engine_itself(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the profile or the tensors not the model's, the build would fail."""
    from visionad_runtime.engine.tensorrt import builder

    model, manifest = models("small")
    right = builder._check_listed_io
    monkeypatch.setattr(builder, "_check_listed_io", lambda found, m, profile: right(found, m, [1, 2, 2]))
    with pytest.raises(ModelError, match=r"the engine's tensors are not the model's"):
        build(model, manifest, "tensorrt-rtx", "8.6")
    assert [e.key["capability"] for e in EngineCache(model)._entries() if e.key["capability"] == "8.6"] == []


def test_a_float32_graph_is_not_taken_for_half(models: Any) -> None:
    model, manifest = models("small")
    with pytest.raises(ModelError, match=r"expected matrix products in fp16, got \d+ in fp32"):
        build(model, manifest.model_copy(update={"precision": "fp16"}), "tensorrt-rtx")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_turing_takes_an_engine_of_its_own_in_fp16(models: Any, precision: str) -> None:
    models("small")
    model, manifest = models("small", precision)
    if precision == "fp16":
        turing, fresh = build(model, manifest, "tensorrt-rtx", "7.5")
        assert fresh and turing.key["capability"] == "7.5" and "fp16" in turing.built["matrix_types"]
        assert turing.folder != build(model, manifest, "tensorrt-rtx")[0].folder
    else:
        with pytest.raises(ModelError, match="on Turing it computes in fp16 only: `visionad export --precision fp16`"):
            build(model, manifest, "tensorrt-rtx", "7.5")


def test_a_damaged_graph_is_one_line(models: Any, tmp_path: Path) -> None:
    _, manifest = models("small")
    (tmp_path / "backbone.onnx").write_bytes(b"not a graph")
    with pytest.raises(
        ModelError, match=r"backbone\.onnx cannot be read by tensorrt-rtx .*; export it again"
    ) as caught:
        build(tmp_path, manifest, "tensorrt-rtx")
    assert "\n" not in str(caught.value)


def test_the_command_prints_json_alone_on_stdout(models: Any) -> None:
    """TensorRT-RTX writes warnings on stdout by itself; none may get between a command and its reader."""
    model, _ = models("small")
    command = [sys.executable, "-c", "from visionad_runtime.cli.entry import main; main()", "build", str(model)]
    done = subprocess.run(
        [*command, "--backend", "tensorrt-rtx", "--rebuild", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["builder"] == trt.__version__ and facts["self_test"] is None and not done.stderr


def test_an_interrupted_build_stops_and_keeps_nothing(models: Any) -> None:
    """TensorRT calls back into Python while it builds; a Ctrl-C that is raised there would be swallowed."""
    model, manifest = models("small")
    steps: list[int] = []

    def step() -> None:
        if not steps:
            os.kill(os.getpid(), signal.SIGINT)
        steps.append(1)

    with pytest.raises(KeyboardInterrupt):
        build(model, manifest, "tensorrt-rtx", "8.6", step)
    with pytest.raises(EngineNotFoundError):
        EngineCache(model).find(engine_key(load_api("tensorrt-rtx"), manifest, None, "8.6"))
