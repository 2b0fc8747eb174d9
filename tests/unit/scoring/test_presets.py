"""Presets: the files there are, what a faulty one is told, how one is chosen at export and at opening, and the guide."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime import VisionADError, _release
from visionad_runtime.cli.main import run
from visionad_runtime.formats.manifest import ModelManifest, read_manifest
from visionad_runtime.inspector import Inspector
from visionad_runtime.scoring import catalog
from visionad_runtime.scoring.preset import load_preset, scoring_for
from visionad_runtime.scoring.spec import PAPER, ScoringSpec

from tests.data import ROOT

GUIDE = ROOT / "docs" / "guides" / "add-a-preset.md"
ONE_VIEW = """about = "one view, any image size"
[scoring]
views = ["original"]
top_fraction = 0.002
self_similarity = false
"""


@pytest.fixture
def one_view(tmp_path: Path) -> Path:
    path = tmp_path / "one-view.toml"
    path.write_text(ONE_VIEW)
    return path


def test_the_presets_there_are() -> None:
    assert catalog.preset_names() == ["full-image", "full-image-weighted", "paper"]
    assert load_preset("paper").scoring == PAPER
    assert load_preset("full-image").scoring == ScoringSpec(("original",), 0.002)
    weighted = load_preset("full-image-weighted")
    assert weighted.scoring == ScoringSpec(("original",), 0.002, self_similarity=True)
    size = weighted.size("vit", 13)  # nothing is cropped, so both sides are rounded
    assert size is not None and (size.resize, size.crop) == (442, 442)
    size = load_preset("paper").size("vit", 16)
    assert size is not None and (size.resize, size.crop) == (448, 384)


def test_every_preset_has_a_row_in_the_docs() -> None:
    text = GUIDE.with_name("presets.md").read_text()
    for name in catalog.preset_names():
        assert f"| `{name}`" in text


@pytest.mark.parametrize("old", _release.PRESETS)
def test_old_names_are_accepted_with_a_notice(old: str, caplog: pytest.LogCaptureFixture) -> None:
    name, until = _release.PRESETS[old]
    logging.getLogger("visionad").setLevel(logging.WARNING)
    assert load_preset(old) == load_preset(name)
    assert f"preset {old} is now called {name}; release {until} drops the old name" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about =", "is not TOML"),
        ('about = "x"', "scoring: Field required"),
        (ONE_VIEW.replace("0.002", "0"), "scoring.top_fraction: Input should be greater than 0"),
        (ONE_VIEW.replace("0.002", '"all"'), "scoring.top_fraction: Input should be a valid number"),
        (ONE_VIEW.replace('"original"', '"blur"'), "scoring.views.0: Input should be 'original', 'flip' or 'clamp'"),
        (ONE_VIEW.replace('["original"]', '["flip", "flip"]'), "views flip,flip: expected some of"),
        (ONE_VIEW + "rarity = true", "scoring.rarity: Extra inputs are not permitted"),
        (ONE_VIEW + "[preprocess.vit]\nresize = 8\ncrop = 16", "crop 16 is larger than resize 8"),
        (ONE_VIEW + "[preprocess.cnn]\nresize = 8\ncrop = 8", "preprocess.cnn"),
    ],
)
def test_a_faulty_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(VisionADError, match=re.escape(message)) as told:
        load_preset(str(path))
    assert str(path) in str(told.value)


def test_a_preset_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        VisionADError, match=r"preset 'best': expected full-image, full-image-weighted, paper, or the path"
    ):
        load_preset("best")
    with pytest.raises(VisionADError, match=r"none.toml cannot be read: No such file"):
        load_preset(str(tmp_path / "none.toml"))


def test_a_preset_is_chosen_when_opening(
    tiny_model: Path, good: list[Path], one_view: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bank serves both scorings; a threshold holds for its own."""
    bank = tmp_path / "bank"
    model, images = str(tiny_model), [str(p) for p in good]
    common = [model, str(bank), *images[1:], "--class", "disc"]
    assert run(["bank", "add", model, str(bank), "--class", "disc", images[0]]) == 0
    own = ["--preset", str(one_view)]
    for given, other in (([], own), (own, [])):
        assert run(["calibrate", *common, "--max-false-reject", "0.25", *given]) == 0
        assert run(["predict", *common, *given, "--json"]) == 0
        said = capsys.readouterr()
        assert said.err == ""
        own_rows = [json.loads(line) for line in said.out.splitlines() if line.startswith("{")]
        assert {row["verdict"] for row in own_rows} == {"ok"}
        assert run(["predict", *common, *other, "--json"]) == 0
        said = capsys.readouterr()
        assert "its threshold was calibrated with views" in said.err and "over 0.002 of the map" in said.err
        rows = [json.loads(line) for line in said.out.splitlines()]
        assert {row["verdict"] for row in rows} == {"unknown"}
    with Inspector.open(tiny_model, bank, preset=str(one_view), threads=1) as inspector:
        assert inspector.scoring == ScoringSpec(("original",), 0.002)
        (one,) = inspector.inspect_files([good[1]], class_name="disc")
    assert one.result is not None and one.result.score == own_rows[0]["score"]
    with Inspector.open(tiny_model, bank, preset=str(one_view), views="flip,clamp", threads=1) as inspector:
        assert inspector.scoring == ScoringSpec(("flip", "clamp"), 0.002)  # views given beside a preset win


def test_what_a_preset_cannot_change(tiny_model: Path, one_view: Path, tmp_path: Path) -> None:
    manifest = read_manifest(tiny_model, ModelManifest)
    assert scoring_for(manifest, manifest.views) == PAPER
    with pytest.raises(VisionADError) as told:
        Inspector.open(tiny_model, preset="full-image")
    said = str(told.value)
    assert "preset full-image: expected a model with resize 448, crop 448; got deit_tiny_patch16_224" in said
    assert "resize 72, crop 64" in said and "visionad export --preset full-image" in said
    own = tmp_path / "own.toml"
    own.write_text(ONE_VIEW + "[preprocess.vit]\nresize = 224\ncrop = 224\n")
    with pytest.raises(VisionADError, match=f"visionad export --preset {re.escape(str(own))}`"):
        scoring_for(manifest, manifest.views, str(own))
    with pytest.raises(VisionADError, match="expected the views original, got only flip"):
        scoring_for(manifest, ("flip",), str(one_view))
    assert scoring_for(manifest, ("flip",), str(one_view), "flip") == ScoringSpec(("flip",), 0.002)
    weighted = tmp_path / "weighted.toml"
    weighted.write_text(ONE_VIEW.replace("false", "true"))
    with pytest.raises(VisionADError, match="expected a grid of at least 6 patches a side, got 4"):
        Inspector.open(tiny_model, preset=str(weighted))


def test_eval_measures_what_the_preset_says(
    tiny_model: Path, good: list[Path], one_view: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("train/good", "test/good", "test/bad"):
        (tmp_path / "set" / "disc" / folder).mkdir(parents=True)
        for path in good[:2]:
            shutil.copy(path, tmp_path / "set" / "disc" / folder / f"{folder.replace('/', '-')}-{path.name}")
    command = ["eval", str(tiny_model), "--dataset", "folder", "--root", str(tmp_path / "set"), "--shots", "1"]
    for given, expected in (([], PAPER), (["--preset", str(one_view)], ScoringSpec(("original",), 0.002))):
        out = tmp_path / f"{expected.top_fraction}.json"
        assert run([*command, *given, "--json", str(out)]) == 0, capsys.readouterr().err
        found = json.loads(out.read_text())
        assert {k: found[k] for k in ("views", "top_share", "rarity")} == {
            **expected.fields(), "views": list(expected.views)
        }  # fmt: skip


def test_every_command_that_scores_takes_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("export", "predict", "calibrate", "watch", "serve", "eval"):
        assert run([command, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "--preset NAME" in text and "full-image, full-image-weighted, paper" in text


def test_a_new_file_is_a_new_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(catalog.FOLDER, tmp_path / "presets")
    (folder / "one-view.toml").write_text(ONE_VIEW)
    monkeypatch.setattr(catalog, "FOLDER", folder)
    assert "one-view" in catalog.preset_help()
    assert load_preset("one-view").scoring == replace(PAPER, views=("original",), top_fraction=0.002)


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow(group="export")
def test_the_guide_works_as_it_stands(
    tiny_weights: Path,
    good: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its file and its commands, but for the weights, which would be downloaded."""
    monkeypatch.chdir(tmp_path)
    Path("quick.toml").write_text(block("toml"))
    for line in block("bash").splitlines():
        command = line.split()
        assert command.pop(0) == "visionad"
        if command[0] == "export":
            command += ["--weights", str(tiny_weights), "--layers", "0-1"]
        assert run(command) == 0, capsys.readouterr().err
    manifest = read_manifest(Path("model"), ModelManifest)
    assert (manifest.identity.preprocess.resize, manifest.identity.preprocess.crop) == (224, 224)
    assert ScoringSpec.of(manifest) == load_preset("quick.toml").scoring == ScoringSpec(("original",))
    names: dict[str, Any] = {"Inspector": Inspector}
    exec(block("python"), names)
    with names["inspector"] as inspector:
        assert inspector.scoring == ScoringSpec(("original",))
