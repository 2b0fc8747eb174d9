"""The bank's promises: all or nothing, nothing enrolled is ever lost, refuse what does not fit."""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from visionad_runtime.bank import lock
from visionad_runtime.bank.folder import restorable_versions, support_file, write_support
from visionad_runtime.bank.history import remove_offline, undo, verify
from visionad_runtime.bank.memory_bank import ClassBank, SupportTokens
from visionad_runtime.bank.store import Bank
from visionad_runtime.bank.supports import NewSupport
from visionad_runtime.errors import BankError, VisionADError
from visionad_runtime.formats.manifest import ClassEntry, FeatureIdentity, PreprocessSpec, SupportImage
from visionad_runtime.preprocess import encoding_names

from tests.data import ROOT

VIEWS = ("original", "flip", "clamp")
SPEC = PreprocessSpec(resize=72, crop=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IDENTITY = FeatureIdentity(
    backbone="toy", weights_sha256="ab" * 32, kind="vit", layers=(0, 1), patch=16, grid=2, dim=8,
    class_token="fused", class_token_dim=5, pos_embed="none", preprocess=SPEC,
)  # fmt: skip


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.standard_normal(shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def image(number: int) -> NewSupport:
    """Support image ``number``: record, patch tokens (B, 1, P, D), class tokens (B, Dc)."""
    rng = np.random.default_rng(number)
    blocks = len(encoding_names(VIEWS))
    tokens = SupportTokens((unit(rng, blocks, 1, 4, 8),), unit(rng, blocks, 5))
    return NewSupport(SupportImage(sha256=f"{number:064x}", source=f"{number}.png"), tokens, b"image", ".png")


def add(bank: Bank, name: str, *numbers: int, keep: int | None = None) -> None:
    bank.add(name, list(map(image, numbers)), keep=keep)


def content(bank: Bank) -> dict[str, list[int]]:
    """Class → numbers of its images, after checking that every tensor belongs to its image."""
    for c in bank.classes.values():
        for k, support in enumerate(c.entry.images):
            tokens = image(int(support.sha256, 16)).tokens
            np.testing.assert_array_equal(c.rois[0].features[:, k], tokens.rois[0][:, 0])
            np.testing.assert_array_equal(c.class_tokens[:, k], tokens.class_tokens)
    return {n: [int(i.sha256, 16) for i in c.entry.images] for n, c in bank.classes.items()}


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank.open_or_new(tmp_path / "bank", IDENTITY, VIEWS)


def test_enrolled_images_come_back_from_disk(bank: Bank) -> None:
    add(bank, "bolt", 1, 2)
    add(bank, "nut", 3)
    add(bank, "bolt", 4)
    again = Bank.open(bank.folder, IDENTITY)
    assert content(again) == content(bank) == {"bolt": [1, 2, 4], "nut": [3]}
    assert again.manifest.version == 3
    verify(bank.folder)


def test_view_rows_are_slices_not_copies(bank: Bank) -> None:
    add(bank, "bolt", 1, 2)
    loaded = bank.classes["bolt"].rois[0]
    for view in VIEWS:
        rows = loaded.rows(view)
        assert rows.shape == (6 * 2 * 4, 8)
        assert np.shares_memory(rows, loaded.features)


class BankMachine(RuleBasedStateMachine):
    """Random changes against a plain dictionary; the folder is read anew after every step."""

    @initialize()
    def start(self) -> None:
        import tempfile

        self.root = Path(tempfile.mkdtemp())
        self.bank = Bank.open_or_new(self.root / "bank", IDENTITY, VIEWS)
        self.states: list[dict[str, list[int]]] = []
        self.versions: dict[int, dict[str, list[int]]] = {}
        self.next = 0

    def remember(self) -> None:
        if self.bank.manifest.version:
            self.states.append(content(self.bank))

    @rule(name=st.sampled_from(["bolt", "nut", "Schraube/ä 1", "..\\x"]), count=st.integers(1, 2))
    def add(self, name: str, count: int) -> None:
        self.remember()
        add(self.bank, name, *range(self.next, self.next + count))
        self.next += count

    @precondition(lambda self: self.bank.classes)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.remember()
        name = data.draw(st.sampled_from(sorted(self.bank.classes)))
        images = self.bank.classes[name].entry.images
        one = data.draw(st.sampled_from([i.sha256 for i in images])) if len(images) > 1 else None
        self.bank.remove(name, one)

    @precondition(lambda self: self.states)
    @rule()
    def undo(self) -> None:
        before = self.bank.manifest.version
        undo(self.bank.folder)
        self.bank.refresh()
        assert content(self.bank) == self.states.pop()
        assert self.bank.manifest.version == before + 1

    @precondition(lambda self: self.bank.manifest.version > 1)
    @rule(data=st.data())
    def back_to(self, data: st.DataObject) -> None:
        now = self.bank.manifest.version
        kept = restorable_versions(self.bank.folder)
        assert set(kept) == set(range(1, now + 1))
        version = data.draw(st.sampled_from([v for v in kept if v != now]))
        self.remember()
        undo(self.bank.folder, version)
        self.bank.refresh()
        assert content(self.bank) == self.versions[version]

    @rule()
    def reopen(self) -> None:
        if self.bank.manifest.version:
            self.bank = Bank.open(self.bank.folder, IDENTITY)

    @invariant()
    def disk_is_memory(self) -> None:
        if getattr(self, "bank", None) is not None and self.bank.manifest.version:
            self.versions[self.bank.manifest.version] = content(self.bank)
            assert content(Bank.open(self.bank.folder, IDENTITY)) == content(self.bank)
            for version, expected in self.versions.items():
                assert content(Bank.open(self.bank.folder, IDENTITY, version=version)) == expected
            verify(self.bank.folder)

    def teardown(self) -> None:
        if hasattr(self, "root"):
            shutil.rmtree(self.root)


TestBankMachine = BankMachine.TestCase
TestBankMachine.settings = settings(
    max_examples=25, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_undo_steps_back_one_change_after_another_until_there_is_none(bank: Bank) -> None:
    add(bank, "bolt", 1)
    add(bank, "nut", 2)
    bank.remove("bolt")
    assert list(undo(bank.folder).classes) == ["bolt", "nut"]
    assert list(undo(bank.folder).classes) == ["bolt"]
    with pytest.raises(BankError, match="nothing to undo"):
        undo(bank.folder)


def test_an_undo_too_many_can_be_undone(bank: Bank) -> None:
    add(bank, "bolt", 1)
    add(bank, "nut", 2)
    undo(bank.folder)
    with pytest.raises(BankError, match=r"nothing to undo \(version 3\); --to brings another version back: 1, 2"):
        undo(bank.folder)
    assert content(Bank.open(bank.folder)) == {"bolt": [1]}
    again = undo(bank.folder, 2)
    assert (again.version, again.change) == (4, "undo, back to version 2: add nut: now 1 images")
    assert content(Bank.open(bank.folder)) == {"bolt": [1], "nut": [2]}
    assert undo(bank.folder).version == 5  # takes that back in turn
    assert content(Bank.open(bank.folder)) == {"bolt": [1]}
    (bank.folder / "manifest.json").unlink()
    assert undo(bank.folder, 4).version == 6  # what was lost comes back on the way
    assert content(Bank.open(bank.folder)) == {"bolt": [1], "nut": [2]}
    (bank.folder / "manifest.json").unlink()
    assert undo(bank.folder, 6).version == 6
    for version in (6, 7, 99):
        with pytest.raises(
            BankError, match=f"version {version} cannot be brought back; those that are kept: 1, 2, 3, 4, 5"
        ):
            undo(bank.folder, version)


def test_an_undo_is_named_by_the_change_that_is_in_force_again(bank: Bank) -> None:
    add(bank, "bolt", 1)
    add(bank, "nut", 2)
    bank.remove("bolt")
    assert undo(bank.folder).change == "undo, back to version 2: add nut: now 1 images"
    assert undo(bank.folder).change == "undo, back to version 1: add bolt: now 1 images"  # no "undo undo"
    opened = Bank.open(bank.folder)
    add(opened, "nut", 3)
    assert undo(bank.folder).change == "undo, back to version 1: add bolt: now 1 images"


def test_all_versions_are_kept_unless_a_number_is_set(bank: Bank) -> None:
    for number in range(30):
        add(bank, "bolt", number)
    assert len(list((bank.folder / "history").iterdir())) == len(list((bank.folder / "supports").iterdir())) == 30
    assert content(Bank.open(bank.folder, version=3)) == {"bolt": [0, 1, 2]}
    for number in range(29):
        bank.remove("bolt", f"{number:064x}")
    add(bank, "bolt", 77, keep=5)
    assert sorted(restorable_versions(bank.folder)) == [56, 57, 58, 59, 60]
    assert len(list((bank.folder / "supports").iterdir())) == 1 + 3 + 1  # 29; 26, 27 and 28 of older versions; 77
    undo(bank.folder)
    assert content(Bank.open(bank.folder)) == {"bolt": [29]}
    with pytest.raises(BankError, match="has no version 3; it has 57, 58, 59, 60, 61"):
        Bank.open(bank.folder, version=3)


def test_a_version_that_was_opened_by_number_stays_and_cannot_be_changed(bank: Bank) -> None:
    add(bank, "bolt", 1)
    add(bank, "bolt", 2)
    old = Bank.open(bank.folder, version=1)
    add(bank, "bolt", 3)
    assert not old.refresh()
    assert content(old) == {"bolt": [1]}
    with pytest.raises(BankError, match="was opened at version 1"):
        add(old, "bolt", 4)


def test_a_change_of_one_support_writes_that_support_only(bank: Bank) -> None:
    add(bank, "bolt", *range(64))
    before = {path: path.stat().st_ino for path in bank.folder.rglob("*") if path.is_file()}
    add(bank, "bolt", 99)
    bank.remove("bolt", f"{5:064x}")
    undo(bank.folder)
    new = [p for p in bank.folder.rglob("*") if p.is_file() and before.get(p) != p.stat().st_ino]
    written = sorted(path.relative_to(bank.folder).parts[0] for path in new)
    assert written == ["history", "history", "history", "images", "manifest.json", "supports"]


def test_a_lazy_bank_enrolls_and_removes_without_reading_the_class(bank: Bank) -> None:
    add(bank, "bolt", *range(8))
    for path in (bank.folder / "supports").iterdir():
        _flip_byte(path)  # whoever reads the class is told
    lazy = Bank.open(bank.folder, IDENTITY, lazy=True)
    add(lazy, "bolt", 99)
    lazy.remove("bolt", f"{5:064x}")
    with pytest.raises(BankError, match="damaged"):
        _ = lazy.classes["bolt"].rois


def test_images_are_kept_as_they_were_given(bank: Bank) -> None:
    add(bank, "bolt", 1)
    (support,) = bank.classes["bolt"].entry.images
    assert (bank.folder / "images" / f"{1:064x}.png").read_bytes() == b"image"
    assert support.kept == f"{1:064x}.png"
    (bank.folder / "images" / support.kept).unlink()
    with pytest.raises(BankError, match="the image of a support of class 'bolt' is missing"):
        verify(bank.folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("weights_sha256", "cd" * 32), ("layers", (0, 1, 2)), ("preprocess", SPEC.model_copy(update={"crop": 48}))],
)
def test_a_bank_of_another_model_is_refused_naming_both(bank: Bank, field: str, value: object) -> None:
    add(bank, "bolt", 1)
    other = IDENTITY.model_copy(update={field: value})
    with pytest.raises(BankError) as info:
        Bank.open(bank.folder, other)
    assert IDENTITY.describe() in str(info.value)
    assert other.describe() in str(info.value)
    assert field in str(info.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").write_text("{"), "not JSON"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "not JSON"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda f: (f / "manifest.json").write_text('{"format": "else"}'), "expected format"),
        (
            lambda f: (f / "manifest.json").write_text('{"format": "visionad-bank", "schema_version": 99}'),
            "schema_version",
        ),
        (
            lambda f: (f / "manifest.json").write_text('{"format": "visionad-bank", "schema_version": 1}'),
            "field version",
        ),
        (lambda f: _edit(f, lambda m: m["classes"]["bolt"].update(threshold=float("nan"))), "finite number"),
        (lambda f: _edit(f, lambda m: m["blocks"].reverse()), "expected the blocks of views original"),
        (lambda f: _edit(f, lambda m: m["views"].pop(0)), "expected the blocks of views"),
        (lambda f: next((f / "supports").iterdir()).unlink(), "cannot be read"),
        (lambda f: _flip_byte(next((f / "supports").iterdir())), "damaged"),
        (lambda f: os.truncate(next((f / "supports").iterdir()), 100), "damaged"),
        (lambda f: os.truncate(next((f / "supports").iterdir()), 0), "damaged"),
    ],
)
def test_a_damaged_bank_is_named(bank: Bank, damage: object, message: str) -> None:
    add(bank, "bolt", 1)
    damage(bank.folder)  # type: ignore[operator]
    for read in (lambda: Bank.open(bank.folder, IDENTITY), lambda: verify(bank.folder)):
        with pytest.raises(BankError, match=message) as info:
            read()
        assert "\n" not in str(info.value)
        assert str(bank.folder) in str(info.value)


@pytest.mark.parametrize(
    ("phrase", "bad"),
    [("x", {"map_scale": (0.0, math.inf)}), ("x", {"threshold": math.nan}), ("\ud800", {})],
)
def test_what_no_reader_would_take_is_not_written(bank: Bank, phrase: str, bad: dict[str, object]) -> None:
    add(bank, "bolt", 1)
    before = {path: path.read_bytes() for path in bank.folder.rglob("*.json")}
    with pytest.raises(BankError, match="would be damaged"):
        bank.update("bolt", phrase, lambda held: held.entry.model_copy(update=bad))
    assert {path: path.read_bytes() for path in bank.folder.rglob("*.json")} == before
    add(bank, "bolt", 2)
    verify(bank.folder)
    assert content(Bank.open(bank.folder, IDENTITY)) == {"bolt": [1, 2]}


def test_a_class_that_an_earlier_release_named_by_dots_is_still_there(bank: Bank) -> None:
    add(bank, "bolt", 1)
    with pytest.raises(BankError, match="more than dots"):
        add(bank, "..", 2)
    _edit(bank.folder, lambda m: m["classes"].update({"..": m["classes"].pop("bolt")}))
    again = Bank.open(bank.folder, IDENTITY)
    assert content(again) == {"..": [1]}
    verify(bank.folder)
    again.update("..", "x", lambda held: held.entry)
    add(again, "bolt", 2)
    again.remove("..")
    assert content(Bank.open(bank.folder, IDENTITY)) == {"bolt": [2]}


def support_path(bank: Bank, name: str) -> Path:
    """Token file of a class's newest support."""
    return support_file(bank.folder, bank.classes[name].entry.images[-1].tokens)


def _edit(folder: Path, change: Callable[[Any], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def _flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_manifest_with_an_unknown_field_is_refused(bank: Bank) -> None:
    add(bank, "bolt", 1)
    path = bank.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pickle": "x"}))
    with pytest.raises(BankError, match="field pickle"):
        Bank.open(bank.folder)


def test_undo_repairs_a_damaged_newest_class_file(bank: Bank) -> None:
    add(bank, "bolt", 1)
    add(bank, "bolt", 2)
    _flip_byte(support_path(bank, "bolt"))
    undo(bank.folder)
    assert content(Bank.open(bank.folder)) == {"bolt": [1]}


def test_a_damaged_class_can_be_taken_out_and_enrolled_again(bank: Bank) -> None:
    add(bank, "nut", 1)
    add(bank, "bolt", 2)
    _flip_byte(support_path(bank, "bolt"))
    with pytest.raises(BankError, match="no class 'gear'; it has 'bolt', 'nut'"):
        remove_offline(bank.folder, "gear")
    assert remove_offline(bank.folder, "bolt") == 3
    again = Bank.open(bank.folder)
    add(again, "bolt", 2)
    assert content(Bank.open(bank.folder)) == {"nut": [1], "bolt": [2]}


@pytest.mark.parametrize("name", ["", " ", "a ", "\t", "a\nb", "x" * 101, "a\x00"])
def test_bad_class_names(bank: Bank, name: str) -> None:
    with pytest.raises(BankError, match="class name"):
        add(bank, name, 1)
    assert not (bank.folder / "manifest.json").exists()


def test_the_same_image_twice_is_refused(bank: Bank) -> None:
    add(bank, "bolt", 1)
    for numbers in ((1,), (2, 2)):
        with pytest.raises(BankError, match="enrolled already"):
            add(bank, "bolt", *numbers)
    with pytest.raises(BankError, match="class 'nut': 1\\.png is enrolled already, as bolt"):
        add(bank, "nut", 1)
    assert content(bank) == {"bolt": [1]}


def test_tensors_that_do_not_fit_are_refused(bank: Bank) -> None:
    one = image(1)
    features, tokens = one.tokens.rois[0], one.tokens.class_tokens
    for message, changed in (
        ("expected float32 features", features[:, :, :3]),
        ("expected float32 features", features.astype(np.float64)),
        ("NaN or Inf", np.full_like(features, np.nan)),
    ):
        with pytest.raises(BankError, match=message):
            bank.add("bolt", [one._replace(tokens=SupportTokens((changed,), tokens))])
    with pytest.raises(BankError, match="no image given"):
        bank.add("bolt", [])
    assert not (bank.folder / "manifest.json").exists()


def test_classes_of_format_1_that_no_manifest_names_are_not_built_over(tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "bolt-0123.safetensors").write_bytes(b"x")
    with pytest.raises(BankError, match=r"holds classes \(.*bolt.*\), and neither manifest.json nor history"):
        Bank.open_or_new(tmp_path, IDENTITY, VIEWS)


def test_removing_what_is_not_there(bank: Bank) -> None:
    add(bank, "bolt", 1, 2)
    for name, image, message in (
        ("nut", None, "no class 'nut'; it has 'bolt'"),
        ("bolt", "ffff", "which 0 have"),
        ("bolt", "0000", "which 2 have"),
        ("bolt", "", "4 or more digits"),
    ):
        with pytest.raises(BankError, match=message):
            bank.remove(name, image)
    bank.remove("bolt", f"{1:064x}")
    with pytest.raises(BankError, match="this one image only"):
        bank.remove("bolt", f"{2:064x}")


def test_a_foreign_folder_is_not_taken_for_a_bank(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(BankError, match="not empty and no bank"):
        Bank.open_or_new(tmp_path, IDENTITY, VIEWS)
    with pytest.raises(BankError, match="got a file"):
        Bank.open_or_new(tmp_path / "holiday.jpg", IDENTITY, VIEWS)
    for folder, message in ((tmp_path, "is no bank"), (tmp_path / "none", "does not exist")):
        with pytest.raises(BankError, match=message):
            undo(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("versions", [1, 2])
def test_a_lost_manifest_loses_nothing_enrolled(bank: Bank, versions: int) -> None:
    for i in range(versions):
        add(bank, f"class{i}", i)
    (bank.folder / "manifest.json").unlink()
    add(Bank.open_or_new(bank.folder, IDENTITY, VIEWS), "bolt", 9)
    assert content(Bank.open(bank.folder)) == {**{f"class{i}": [i] for i in range(versions)}, "bolt": [9]}


@pytest.mark.parametrize("damage", ["gone", "cut off", "a wrong field"])
def test_undo_brings_a_lost_manifest_back(bank: Bank, damage: str) -> None:
    add(bank, "bolt", 1)
    add(bank, "nut", 2)
    path = bank.folder / "manifest.json"
    right = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(right[:-20] if damage == "cut off" else right.replace(b'"version": 2', b'"version": "two"'))
    way_out = f"`visionad bank undo {bank.folder}` brings the newest version in its history back"
    with pytest.raises(BankError, match=re.escape(way_out)):
        Bank.open(bank.folder)
    if damage != "gone":
        with pytest.raises(BankError, match=re.escape(way_out)):  # a line that is running is told the same
            add(bank, "gear", 3)
    assert undo(bank.folder).version == 2
    assert path.read_bytes() == right
    assert content(Bank.open(bank.folder)) == {"bolt": [1], "nut": [2]}
    assert undo(bank.folder).version == 3  # and the next one is an undo as ever
    assert content(Bank.open(bank.folder)) == {"bolt": [1]}


def test_a_lost_manifest_whose_newest_version_is_damaged_too(bank: Bank) -> None:
    add(bank, "bolt", 1)
    add(bank, "nut", 2)
    (bank.folder / "manifest.json").unlink()
    (bank.folder / "history" / "notes.json").write_text("{}")  # no version of the bank
    newest = bank.folder / "history" / "000002.json"
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(
        BankError, match=rf"000002\.json is missing or damaged.*, or delete it and `visionad bank undo {bank.folder}`"
    ):
        undo(bank.folder)
    newest.unlink()
    assert undo(bank.folder).version == 1
    assert content(Bank.open(bank.folder)) == {"bolt": [1]}


def test_a_manifest_of_another_release_is_not_taken_for_a_lost_one(bank: Bank) -> None:
    add(bank, "bolt", 1)
    path = bank.folder / "manifest.json"
    newer = {**json.loads(path.read_text()), "schema_version": 99}
    path.write_text(json.dumps(newer))
    with pytest.raises(BankError, match="expected schema_version"):
        undo(bank.folder)
    assert json.loads(path.read_text()) == newer


def test_a_lost_manifest_without_a_history_is_said(bank: Bank) -> None:
    add(bank, "bolt", 1)
    for path in (bank.folder / "manifest.json", *(bank.folder / "history").iterdir()):
        path.unlink()
    with pytest.raises(BankError, match="is no bank: it has no manifest"):
        undo(bank.folder)


CHANGES: dict[str, Callable[[Bank], object]] = {
    "add": lambda bank: add(bank, "nut", 9),
    "replace": lambda bank: bank.replace("bolt", [image(9)], None, change="rebuild"),
    "remove": lambda bank: bank.remove("bolt", f"{1:064x}"),
    "update": lambda bank: bank.update("bolt", "set", lambda held: held.entry),
    "remember": lambda bank: bank.remember(
        "bolt", unit(np.random.default_rng(0), len(bank.manifest.blocks), 1, 8), lambda held, _: held.entry, change="x"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("left", ["no folder", "an empty folder", "a folder with a lock"])
def test_a_bank_whose_folder_is_gone_is_not_begun_anew(bank: Bank, change: str, left: str) -> None:
    """Such as a share that is not mounted: the new folder would name supports that it does not hold."""
    add(bank, "bolt", 1, 2)
    away = bank.folder.rename(bank.folder.with_name("away"))
    if left != "no folder":
        bank.folder.mkdir()
    if left == "a folder with a lock":
        (bank.folder / ".lock").touch()
    before = sorted(bank.folder.parent.rglob("*"))
    with pytest.raises(BankError, match=r"is gone: expected version 1, found no manifest.json.*nothing was changed"):
        CHANGES[change](bank)
    assert sorted(bank.folder.parent.rglob("*")) == before
    assert content(bank) == {"bolt": [1, 2]}  # it judges on
    if left != "no folder":
        shutil.rmtree(bank.folder)
    away.rename(bank.folder)
    CHANGES[change](bank)
    assert Bank.open(bank.folder).manifest == bank.manifest
    verify(bank.folder)


def test_a_bank_that_goes_while_it_is_changed_is_not_begun_anew(bank: Bank) -> None:
    add(bank, "bolt", 1)
    away = bank.folder.with_name("away")

    def calibrate(held: ClassBank, _: ClassEntry | None) -> ClassEntry:
        bank.folder.rename(away)
        return held.entry

    with pytest.raises(BankError, match="is gone"):
        bank.add("bolt", [image(2)], calibrate=calibrate)
    assert not bank.folder.exists()
    with pytest.raises(BankError, match="nothing was changed"):
        write_support(bank.folder, image(3).tokens)
    assert not bank.folder.exists()
    assert content(bank) == {"bolt": [1]} == content(Bank.open(away))


def test_a_version_that_only_the_history_holds_is_not_overwritten(bank: Bank) -> None:
    add(bank, "bolt", 1)
    add(Bank.open(bank.folder), "nut", 2)
    (bank.folder / "manifest.json").unlink()
    with pytest.raises(BankError, match="no history that ends with this version"):
        add(bank, "bolt", 3)
    undo(bank.folder)
    add(bank, "bolt", 3)
    assert content(Bank.open(bank.folder)) == {"bolt": [1, 3], "nut": [2]}


def test_two_writers_lose_nothing(bank: Bank) -> None:
    """Both opened the bank before either wrote: the lock makes the second take over what the first did."""
    banks = [Bank.open_or_new(bank.folder, IDENTITY, VIEWS) for _ in range(4)]
    threads = [threading.Thread(target=add, args=(b, f"class{i}", i)) for i, b in enumerate(banks)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert content(Bank.open(bank.folder)) == {f"class{i}": [i] for i in range(4)}


def test_a_lock_held_too_long_is_said(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    add(bank, "bolt", 1)
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.1)
    with lock.writer_lock(bank.folder), pytest.raises(BankError, match="being changed by another process"):
        add(bank, "bolt", 2)
    assert content(Bank.open(bank.folder)) == {"bolt": [1]}


_WRITER = textwrap.dedent(
    """
    import os, signal, sys
    sys.path[:0] = {paths!r}
    from pathlib import Path
    import test_store as t
    import visionad_runtime.formats.files as a

    # Die at the n-th step that touches the disk: before or after a write, an fsync, a rename.
    def guard(function):
        def step(*args, **kwargs):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return step

    for left in range(40):
        folder, child = Path(sys.argv[1]) / str(left), os.fork()  # importing takes longer than all the rest
        if not child:
            os.fsync = guard(os.fsync)
            Path.replace = guard(Path.replace)
            Path.unlink = guard(Path.unlink)
            bank = t.Bank.open_or_new(folder, t.IDENTITY, t.VIEWS)
            t.add(bank, "bolt", 2)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status)
        if status != -signal.SIGKILL:
            break
    """
)


@pytest.mark.parametrize("fresh", [True, False], ids=["first enrollment", "second enrollment"])
def test_kill_9_at_every_step_leaves_the_bank_before_or_after(tmp_path: Path, fresh: bool) -> None:
    code = _WRITER.format(paths=[str(Path(__file__).parent), str(ROOT)])
    if not fresh:
        for step in range(40):
            add(Bank.open_or_new(tmp_path / str(step), IDENTITY, VIEWS), "bolt", 1)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    *deaths, last = map(int, done.stdout.split())
    assert last == 0, f"the writer never finished: {done.stderr}"
    assert len(deaths) > 5 and set(deaths) == {-signal.SIGKILL}  # several points of death were really tried
    for step in range(len(deaths)):
        folder = tmp_path / str(step)
        before, after = ({}, {"bolt": [2]}) if fresh else ({"bolt": [1]}, {"bolt": [1, 2]})
        survivor = Bank.open_or_new(folder, IDENTITY, VIEWS)
        assert content(survivor) in (before, after)
        add(survivor, "bolt", 9)  # and the bank goes on
        assert content(Bank.open(folder))["bolt"][-1] == 9
        assert not list(folder.rglob("*.tmp")), "leftovers are tidied by the next change"


def test_a_full_disk_changes_nothing(bank: Bank) -> None:
    add(bank, "bolt", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))  # the kernel refuses to let a file grow, as on a full disk
    try:
        with pytest.raises(VisionADError, match="nothing was changed"):
            add(bank, "bolt", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert content(Bank.open(bank.folder)) == content(bank) == {"bolt": [1]}
    add(bank, "bolt", 2)
    assert content(bank) == {"bolt": [1, 2]}
