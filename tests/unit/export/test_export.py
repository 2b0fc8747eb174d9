"""Export: ONNX Runtime gives torch's tokens, the folder says what it is, and a failure leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.data import ROOT

pytest.importorskip("torch")
pytest.importorskip("onnx")

import onnxruntime as ort
import timm
import torch
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file
from typer.testing import CliRunner
from visionad_export import exporter
from visionad_export.config import ExportConfig, load_config, parse_layers, parse_views
from visionad_export.describe import describe
from visionad_export.exporter import export_model
from visionad_ref.method import normalise, out_of_distribution_image
from visionad_runtime.errors import ModelError, VisionADError
from visionad_runtime.formats.manifest import ModelManifest, read_manifest
from visionad_runtime.scoring.spec import PAPER, ScoringSpec

from visionad_ref import REGISTRY, VIEWS, Reference

NAME = "deit_tiny_patch16_224"
SMALL = {"resize": 72, "crop": 64, "layers": (0, 1)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, timm-keyed DeiT-Tiny weights."""
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(NAME).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A model folder and its summary."""
    out = tmp_path_factory.mktemp("models") / "new" / "model"
    return out, export_model(NAME, out, weights=weights, **SMALL)


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ONNX file without the seconds it takes to make one."""

    def write_graph(_reference: object, folder: Path, *_: object) -> exporter._Graph:
        (folder / "backbone.onnx").write_bytes(b"onnx")
        return exporter._Graph("fp32", None, {}, exporter.OPSET, 0.0, 4, 4, None)

    monkeypatch.setattr(exporter, "_write_graph", write_graph)


def test_folder_is_complete_and_describes_itself(exported: tuple[Path, dict], weights: Path) -> None:
    out, summary = exported
    assert sorted(path.name for path in out.iterdir()) == ["backbone.onnx", "golden.safetensors", "manifest.json"]
    assert list(out.parent.iterdir()) == [out]
    manifest = read_manifest(out, ModelManifest)
    sums = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in manifest.files}
    assert manifest.files == sums
    assert sorted(sums) == ["backbone.onnx", "golden.safetensors"]
    identity = manifest.identity
    assert identity.weights_sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (identity.layers, identity.patch, identity.grid, identity.dim) == ((0, 1), 16, 4, 192)
    assert (identity.pos_embed, identity.class_token_dim) == ("bicubic-offset-0.1", 192)
    assert manifest.weights.source == str(weights)
    assert manifest.views == ("original", "flip", "clamp")
    assert set(manifest.tools) == {"python", "torch", "timm", "onnx", "onnxruntime", "numpy", "pillow"}
    assert json.loads(json.dumps(summary))["identity"] == identity.digest()
    assert summary["max_error"] <= exporter.TOLERANCE
    assert summary["bytes"] == sum(path.stat().st_size for path in out.iterdir())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnxruntime_gives_torchs_tokens(exported: tuple[Path, dict], weights: Path, batch: int) -> None:
    images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
    wanted = Reference.load(NAME, weights, **SMALL).encode(images)
    session = ort.InferenceSession(exported[0] / "backbone.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["patch_tokens", "class_token"], {"images": images.numpy()})
    for ours, theirs in zip(found, wanted, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-5


def test_graph_has_a_dynamic_batch_and_no_local_paths(exported: tuple[Path, dict]) -> None:
    out = exported[0] / "backbone.onnx"
    session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [("images", "tensor(float)", [3, 64, 64])]
    assert isinstance(session.get_inputs()[0].shape[0], str)
    assert {o.name: o.shape[1:] for o in session.get_outputs()} == {"patch_tokens": [16, 192], "class_token": [192]}
    assert b".py" not in out.read_bytes()


def test_blocks_after_the_last_layer_are_left_out(exported: tuple[Path, dict]) -> None:
    block = 12 * 192 * 192 * 4
    assert 2 * block < (exported[0] / "backbone.onnx").stat().st_size < 3.5 * block


def test_golden_tensors_are_the_references(exported: tuple[Path, dict], weights: Path) -> None:
    golden = load_file(exported[0] / "golden.safetensors")
    assert np.array_equal(golden["image"], np.asarray(out_of_distribution_image(64)))
    reference = Reference.load(NAME, weights, **SMALL)
    patches, token = reference.encode(normalise(Image.fromarray(golden["image"]), reference.spec)[None])
    assert np.allclose(golden["patch_tokens"], patches[0], atol=1e-6)
    assert np.allclose(golden["class_token"], token[0], atol=1e-6)


def test_the_stranger_is_the_same_everywhere() -> None:
    image = np.asarray(out_of_distribution_image(392))
    assert (image.shape, image.dtype) == ((392, 392, 3), np.uint8)
    assert hashlib.sha256(image.tobytes()).hexdigest() == GOLDEN_SHA256
    assert len(np.unique(image)) == 256


GOLDEN_SHA256 = "24292457bd8e8316188119439e36ed1091b4f2cad0dd770d1b5eccd8038f8e7e"


@pytest.mark.slow(group="export")
def test_large_weights_get_a_file_of_their_own(weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    export_model(NAME, out, weights=weights, **SMALL, external_data_limit=1000, class_token="final")
    manifest = read_manifest(out, ModelManifest)
    assert sorted(manifest.files) == ["backbone.onnx", "backbone.onnx.data", "golden.safetensors"]
    assert (out / "backbone.onnx").stat().st_size < 500_000
    moved = out.rename(tmp_path / "moved")
    session = ort.InferenceSession(moved / "backbone.onnx", providers=["CPUExecutionProvider"])
    golden = load_file(moved / "golden.safetensors")
    spec = Reference.load(NAME, weights, **SMALL).spec
    images = normalise(Image.fromarray(golden["image"]), spec)[None].numpy()
    patches, token = session.run(["patch_tokens", "class_token"], {"images": images})
    assert np.abs(patches[0] - golden["patch_tokens"]).max() < 1e-5
    assert np.abs(token[0] - golden["class_token"]).max() < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg"}, "known: dinov2_vits14_reg"),
        ({"crop": 60}, "use 48 or 64"),
        ({"crop": -60}, "use 16"),
        ({"crop": 80}, "crop 80 is larger than resize 72"),
        ({"resize": 8193}, "resize 8193: Input should be less than or equal to 8192"),
        ({"layers": (5, 12)}, "has layers 0-11"),
        ({"class_token": "both"}, "expected fused or final"),
        ({"precision": "int4"}, "expected one of fp32, tf32, bf16, fp16"),
        ({"weights": "nowhere.pth"}, "nowhere.pth does not exist"),
    ],
)
def test_bad_settings_are_told_and_leave_nothing(weights: Path, tmp_path: Path, options: dict, message: str) -> None:
    given = {"backbone": NAME, "weights": weights, **SMALL, **options}
    with pytest.raises(ModelError) as info:
        export_model(given.pop("backbone"), tmp_path / "a" / "model", **given)
    assert message in str(info.value)
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [0.0, 1e30, 1.0], ids=["zero", "overflowing", "integers"])
def test_weights_that_fit_and_see_nothing_are_refused(weights: Path, tmp_path: Path, scale: float) -> None:
    state = {key: torch.from_numpy(value) * scale for key, value in load_file(weights).items()}
    save_file(state if scale != 1 else {k: v.to(torch.int8) for k, v in state.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(
        ModelError, match=r"odd\.safetensors: expected unit tokens that differ where .* give the trained float weights"
    ):
        export_model(NAME, tmp_path / "model", weights=tmp_path / "odd.safetensors", **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["odd.safetensors"]


def test_a_graph_that_differs_is_not_kept(
    exported: tuple[Path, dict], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = (exported[0] / "backbone.onnx").read_bytes()
    monkeypatch.setattr(exporter, "_write_onnx", lambda _backbone, path, _limit: path.write_bytes(graph))
    with pytest.raises(ModelError, match="differs from torch by"):
        export_model(NAME, tmp_path / "model", weights=weights, **{**SMALL, "layers": (0, 1, 2)})
    assert list(tmp_path.iterdir()) == []


def test_an_older_model_folder_is_replaced(no_export: None, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    out.mkdir()  # an empty folder is as good as none
    first = export_model(NAME, out, weights=weights, **SMALL)
    second = export_model(NAME, out, weights=weights, **{**SMALL, "layers": (1,)})
    assert first["identity"] != second["identity"]
    assert read_manifest(out, ModelManifest).identity.layers == (1,)
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.skipif(os.name == "nt", reason="making links takes rights there")
def test_a_link_to_a_model_folder_stays_a_link(no_export: None, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to("model")
    for layers in ((0, 1), (1,)):  # first it names nothing yet
        export_model(NAME, tmp_path / "current", weights=weights, **{**SMALL, "layers": layers})
        assert read_manifest(tmp_path / "model", ModelManifest).identity.layers == layers
    assert (tmp_path / "current").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "model"]


def test_a_failure_keeps_the_older_model_folder(
    no_export: None, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    export_model(NAME, out, weights=weights, **SMALL)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporter, "checked_json", full)
    with pytest.raises(ModelError, match="No space left on device; nothing was changed"):
        export_model(NAME, out, weights=weights, **{**SMALL, "layers": (1,)})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_what_is_no_model_folder_is_not_touched(no_export: None, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"a")
    (tmp_path / "file").write_bytes(b"b")
    for name in ("photos", "file"):
        with pytest.raises(ModelError, match="exists and is not a model folder"):
            export_model(NAME, tmp_path / name, weights=weights, **SMALL)
    out = tmp_path / "model"
    export_model(NAME, out, weights=weights, **SMALL)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"also holds notes\.txt"):
        export_model(NAME, out, weights=weights, **SMALL)
    assert (tmp_path / "photos" / "a.png").read_bytes() == b"a"
    assert (out / "notes.txt").read_text() == "mine"


# --- config and command line ---------------------------------------------------------------------------------------


def test_layers_and_views_as_text() -> None:
    assert parse_layers("4-18") == tuple(range(4, 19))
    assert parse_layers(" 5 ") == (5,)
    for wrong in ("", "9-2", "a-b", "1-", "-3", "1,2"):
        with pytest.raises(ModelError, match="expected A-B"):
            parse_layers(wrong)
    assert parse_views("original, flip") == ("original", "flip")


def test_configs_in_the_repository_fit_their_backbones() -> None:
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(paths) >= 3
    for path in paths:
        config = load_config(path)
        spec = REGISTRY[config.backbone or ""]
        assert (config.crop or spec.crop) % spec.patch == 0
        assert set(config.views or VIEWS) <= set(VIEWS)
        assert parse_layers(config.layers or "0")


def test_config_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text, message in (
        ("bakcbone: x", "bakcbone.*known settings: backbone"),
        ("crop: wide", "crop"),
        ("layers: true", "layers"),
        ("[1, 2]", "the file"),
        ("a: [", "not YAML"),
        ("[" * 5000, "not YAML"),
    ):
        path.write_text(text)
        with pytest.raises(ModelError, match=message):
            load_config(path)
    with pytest.raises(ModelError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    path.write_text("")
    assert load_config(path) == ExportConfig()
    path.write_text("layers: 3")  # a number to YAML
    assert load_config(path).layers == "3"


def test_presets_fit_every_backbone() -> None:
    for name, spec in REGISTRY.items():
        full = ExportConfig(backbone=name, preset="full-image").resolved()
        side = {"vit": 448, "pyramid": 288}[spec.kind]
        assert (full.resize, full.crop, full.scoring()) == (side, side, ScoringSpec(("original",), 0.002))
        assert side % spec.patch == 0
        weighted = ExportConfig(backbone=name, preset="full-image-weighted").resolved()
        assert weighted == full.override(preset="full-image-weighted", self_similarity=True)
        plain = ExportConfig(backbone=name, preset="full-image-weighted", self_similarity=False)
        assert plain.resolved().scoring() == full.scoring()
        paper = ExportConfig(backbone=name, preset="paper").resolved()  # the backbones' own defaults
        assert (paper.resize, paper.crop, paper.scoring()) == (spec.resize, spec.crop, PAPER)
    mixed = ExportConfig(backbone="dinov2_vits14_reg", preset="full-image", crop=392, top_fraction=0.01).resolved()
    assert (mixed.resize, mixed.crop, mixed.views, mixed.top_fraction) == (448, 392, ("original",), 0.01)
    assert ExportConfig(backbone="timm:resnet18", preset="full-image").resolved().crop == 288
    for wrong in (
        {"backbone": NAME, "preset": "best"},
        {"preset": "full-image"},
        {"backbone": "timm:nothing", "preset": "full-image"},
    ):
        with pytest.raises(VisionADError):
            ExportConfig(**wrong).resolved()


def test_settings_by_their_older_names(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("backbone: deit_tiny_patch16_224\ntop_share: 0.002\nrarity: true\n")
    found = load_config(path)
    assert found == ExportConfig(backbone=NAME, top_fraction=0.002, self_similarity=True)
    assert found.arguments() == {"scoring": ScoringSpec(top_fraction=0.002, self_similarity=True)}


def test_command_line_wins_over_config(no_export: None, weights: Path, tmp_path: Path) -> None:
    import typer
    from visionad_runtime.cli.commands.export import export_command

    app = typer.Typer()
    app.command()(export_command)
    config = tmp_path / "c.yaml"
    config.write_text(
        f"backbone: {NAME}\nweights: {weights.name}\nresize: 72\ncrop: 64\nlayers: 0-3\nviews: [original]\n"
    )
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    args = ["--config", str(config), "--layers", "1-2", "--views", "original,clamp", "--out", str(tmp_path / "m")]
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.output)
    assert (summary["layers"], summary["views"], summary["crop"]) == ([1, 2], ["original", "clamp"], 64)
    assert json.loads((tmp_path / "m" / "manifest.json").read_bytes())["format"] == "visionad-model"
    text = describe(summary)
    assert "leaves the outer 21.0% of the image uninspected; --resize 64 --crop 64 inspects all of it" in text
    assert "uninspected" not in describe({**summary, "dropped_area": 0.0})
    assert isinstance(CliRunner().invoke(app, ["--out", str(tmp_path / "n")]).exception, VisionADError)
