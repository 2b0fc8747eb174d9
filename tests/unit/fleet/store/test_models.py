"""Pulls of models: settings of the scoring count, an old revision is refused, and a user's folders stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.model_folder import read_model

pytest.importorskip("cryptography", reason="push and pull take the fleet extra")

from visionad_runtime.fleet.store.minisign import SecretKey, generate
from visionad_runtime.fleet.store.models import PulledModel, pull_model
from visionad_runtime.fleet.store.push import push_model
from visionad_runtime.fleet.store.revisions import Target, parse_target


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    return generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")


@pytest.fixture
def target(tmp_path: Path, own_model: Path, key: SecretKey) -> Target:
    where = parse_target(f"{tmp_path}/store/tiny")
    push_model(own_model, where, key)
    return where


def pull(target: Target, folder: Path, key: SecretKey, *, replace: bool = False) -> PulledModel:
    return pull_model(target, folder, [key.public], replace=replace, step=lambda: None)


def change(model: Path, **fields: object) -> None:
    facts = json.loads((model / "manifest.json").read_text()) | fields
    (model / "manifest.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("fields", [{"views": ["original"]}, {"top_share": 0.02}, {"rarity": True}])
def test_other_scoring_is_another_model(
    fields: dict[str, object], own_model: Path, target: Target, tmp_path: Path, key: SecretKey
) -> None:
    pull(target, tmp_path / "m", key)
    change(own_model, **fields)
    push_model(own_model, target, key)
    with pytest.raises(VisionADError, match="--replace"):
        pull(target, tmp_path / "m", key)
    assert pull(target, tmp_path / "m", key, replace=True).is_new
    assert read_model(tmp_path / "m") == read_model(own_model)


def test_an_old_model_is_not_replayed(own_model: Path, target: Target, tmp_path: Path, key: SecretKey) -> None:
    change(own_model, top_share=0.02)
    push_model(own_model, target, key)
    pull(target, tmp_path / "m", key)
    newest = tmp_path / "store/names/tiny/000002.json"
    hidden = newest.rename(tmp_path / "hidden.json")
    for replace in (False, True):
        with pytest.raises(VisionADError, match="an old model may be replayed"):
            pull(target, tmp_path / "m", key, replace=replace)
    assert pull(target._replace(revision=1), tmp_path / "m", key, replace=True).is_new
    with pytest.raises(VisionADError, match="may be replayed"):
        pull(target, tmp_path / "m", key)
    hidden.rename(newest)
    assert pull(target, tmp_path / "m", key, replace=True).revision == 2


def test_folders_of_the_user_stay(own_model: Path, target: Target, tmp_path: Path, key: SecretKey) -> None:
    pull(target, tmp_path / "m", key)
    for name in ("m.previous", "m.incoming"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").write_text("mine")
    change(own_model, top_share=0.02)
    push_model(own_model, target, key)
    pull(target, tmp_path / "m", key, replace=True)
    assert not pull(target, tmp_path / "m", key).is_new
    shutil.rmtree(tmp_path / "m")
    pull(target, tmp_path / "m", key)
    for name in ("m.previous", "m.incoming"):
        assert (tmp_path / name / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.glob("*m*") if path.is_dir()) == ["m", "m.incoming", "m.previous"]


def test_a_push_brings_back_what_the_store_lost(
    own_model: Path, target: Target, tmp_path: Path, key: SecretKey
) -> None:
    min(path for path in (tmp_path / "store/blobs").rglob("*") if path.is_file()).unlink()
    assert push_model(own_model, target, key).bytes > 0
    assert pull(target, tmp_path / "m", key).is_new
