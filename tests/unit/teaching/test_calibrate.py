"""No image counts twice in a promise, wherever it lies and however it is stored."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import pytest
from visionad_runtime import Inspector
from visionad_runtime.errors import BankError
from visionad_runtime.formats.manifest import BankManifest, ClassEntry, read_manifest, to_json
from visionad_runtime.pipeline.calibration import other_scores, recorded_scores
from visionad_runtime.teaching.calibrate import calibrate_class

from tests.data import part


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return save(tmp_path / "images", ".png")


@pytest.fixture
def copies(images: list[Path], tmp_path: Path) -> list[Path]:
    """The same images: one under another path, one in another file format as well."""
    folder = tmp_path / "copies"
    save(folder, ".bmp")
    return [Path(shutil.copy(images[0], folder)), *(folder / f"{i}.bmp" for i in range(1, 4))]


def save(folder: Path, suffix: str) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{i}{suffix}" for i in range(4)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), part(10 + i))
    return paths


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Inspector:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll("disc", [part(0)])
    return inspector


def entry_of(inspector: Inspector) -> ClassEntry:
    assert inspector.bank is not None
    return inspector.bank.classes["disc"].entry


def origins(inspector: Inspector) -> list[str]:
    return sorted(score.origin for score in recorded_scores(entry_of(inspector)))


def test_a_copy_of_a_confirmed_part_is_that_part(inspector: Inspector, images: list[Path], copies: list[Path]) -> None:
    inspector.confirm_files("disc", images)
    assert calibrate_class(inspector, "disc", copies, 0.2).record.method == "held-out"
    assert origins(inspector) == ["held-out"] * 4
    calibrate_class(inspector, "disc", copies[:1])
    assert origins(inspector) == ["held-out"]


def test_a_confirmed_part_is_no_other_image_of_the_calibration(
    inspector: Inspector, images: list[Path], copies: list[Path]
) -> None:
    calibrate_class(inspector, "disc", images, 0.2)
    inspector.confirm_files("disc", copies[:2])
    assert origins(inspector) == ["confirmed"] * 2 + ["held-out"] * 2


def test_a_copy_of_a_confirmed_part_is_not_confirmed_again(
    inspector: Inspector, images: list[Path], copies: list[Path]
) -> None:
    inspector.confirm_files("disc", images)
    for again in copies:
        with pytest.raises(BankError, match="was confirmed before"):
            inspector.confirm_files("disc", [again])
    with pytest.raises(BankError, match="was confirmed before"):
        inspector.confirm("disc", [part(10)])


@pytest.mark.parametrize("how", ["confirmed", "held-out"])
def test_a_part_that_is_enrolled_later_counts_as_a_support(
    inspector: Inspector, images: list[Path], copies: list[Path], how: str
) -> None:
    if how == "confirmed":
        inspector.confirm_files("disc", images)
    else:
        calibrate_class(inspector, "disc", images, 0.2)
    inspector.enroll_files("disc", copies[:2])
    assert origins(inspector) == sorted([how] * 2 + ["leave-one-out"] * 3)
    calibrate_class(inspector, "disc")
    assert origins(inspector) == sorted(([how] * 2) + ["leave-one-out"] * 3)


def test_another_image_under_the_same_path_is_another_image(inspector: Inspector, images: list[Path]) -> None:
    inspector.confirm_files("disc", images)
    cv2.imwrite(str(images[0]), part(99))
    calibrate_class(inspector, "disc", images[:1])
    assert origins(inspector) == ["confirmed"] * 4 + ["held-out"]


def test_what_an_earlier_release_recorded_is_told_apart_too(
    inspector: Inspector, images: list[Path], copies: list[Path]
) -> None:
    inspector.enroll_files("disc", images[:1])
    inspector.confirm_files("disc", images[1:3])
    entry = entry_of(inspector)
    assert entry.calibration is not None
    old = entry.model_copy(
        update={"calibration": entry.calibration.model_copy(update={"digests": None, "pixels": None})}
    )
    assert recorded_scores(old) == recorded_scores(entry)  # from the records of supports and confirmed parts
    held_out = recorded_scores(entry)[1]._replace(origin="held-out", sha256=None, pixels=None)
    assert other_scores([held_out], [held_out]) == []  # by its path, for want of a digest
    assert other_scores([held_out], recorded_scores(entry)[2:]) == [held_out]


def test_fields_that_an_earlier_release_lacks_are_left_out(inspector: Inspector, images: list[Path]) -> None:
    inspector.confirm_files("disc", images[:2])
    assert inspector.bank is not None
    manifest = read_manifest(inspector.bank.folder, BankManifest)
    assert manifest.classes["disc"] == entry_of(inspector)
    entry = entry_of(inspector)
    assert entry.calibration is not None and entry.confirmations is not None
    old = entry.model_copy(
        update={
            "calibration": entry.calibration.model_copy(update={"digests": None, "pixels": None}),
            "confirmations": tuple(one.model_copy(update={"pixels": None}) for one in entry.confirmations),
        }
    )
    written = to_json(old)
    assert b'"digests"' not in written and written.count(b'"pixels"') == len(entry.images)
    assert ClassEntry.model_validate_json(written) == old
