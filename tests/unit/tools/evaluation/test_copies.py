"""Images that a data set holds twice are counted and named, and a repeated train image counts once."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from visionad_runtime.cli.main import run
from visionad_runtime.errors import VisionADError
from visionad_runtime.tools.evaluation.copies import without_copies
from visionad_runtime.tools.evaluation.datasets.base import ClassData, Dataset, Sample
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset
from visionad_runtime.tools.evaluation.protocol import evaluate

from tests.unit.tools.evaluation.test_evaluation import write_class


def dataset(folder: Path, train: dict[str, bytes], validation: dict[str, bytes], tests: dict[str, bytes]) -> Dataset:
    """A data set of small files. Names of test images with a defect begin with ``bad``."""
    for name, content in (train | validation | tests).items():
        (folder / name).write_bytes(content)
    samples = tuple(Sample(folder / name, "nut", int(name.startswith("bad"))) for name in tests)
    by_class = {"nut": ClassData(tuple(map(folder.joinpath, train)), samples, tuple(map(folder.joinpath, validation)))}
    return Dataset("folder", folder, by_class)


def test_a_sound_set_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = dataset(tmp_path, {"t0": b"aa", "t1": b"ab"}, {"v0": b"ac"}, {"g0": b"ad", "bad0": b"ae"})
    assert without_copies(sound) is sound
    assert not caplog.records


@pytest.mark.parametrize(
    ("train", "validation", "tests", "image", "other", "kind"),
    [
        ({"t0": b"a", "t1": b"a"}, {}, {}, "t1", "t0", "train image that is there twice and counts once"),
        ({"t0": b"a"}, {"v0": b"a"}, {}, "v0", "t0", "validation image that is also a train image"),
        ({"t0": b"a"}, {}, {"g0": b"a"}, "g0", "t0", "good test image that is also a train image"),
        ({"t0": b"a"}, {}, {"bad0": b"a"}, "bad0", "t0", "bad test image that is also a train image"),
        ({}, {"v0": b"a"}, {"g0": b"a"}, "g0", "v0", "good test image that is also a validation image"),
        ({}, {}, {"g0": b"a", "bad0": b"a"}, "bad0", "g0", "bad test image that is also a good test image"),
    ],
)
def test_each_kind_is_named_with_both_files(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    train: dict[str, bytes],
    validation: dict[str, bytes],
    tests: dict[str, bytes],
    image: str,
    other: str,
    kind: str,
) -> None:
    checked = without_copies(dataset(tmp_path, {**train, "t9": b"b"}, validation, tests))
    assert [(c.image.name, c.other.name, c.kind) for c in checked.copies["nut"]] == [(image, other, kind)]
    assert [p.name for p in checked.train("nut")] == [name for name in ("t0", "t9") if name in train or name == "t9"]
    assert [len(checked.validation("nut")), len(checked.test("nut"))] == [len(validation), len(tests)]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"class 'nut': 1 x {kind} ({tmp_path / image} is {tmp_path / other})"


def test_the_json_counts_them_and_stderr_names_them(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disc = write_class(tmp_path / "data", "disc")
    shutil.copy(disc / "train/good/000.png", disc / "test/good/900.png")
    arguments = ["eval", str(tiny_model), "--dataset", "mvtec", "--root", str(tmp_path / "data"), "--shots", "1"]
    assert run([*arguments, "--threads", "1", "--json", str(tmp_path / "found.json")]) == 0
    kind = "good test image that is also a train image"
    assert f"1 x {kind} ({disc / 'test/good/900.png'} is {disc / 'train/good/000.png'})" in capsys.readouterr().err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["copies"] == {"disc": {kind: 1}}
    assert found["results"][0]["good"] == 5  # it is counted all the same


def test_a_row_of_visa_that_is_there_twice_is_one_support(tiny_model: Path, tmp_path: Path) -> None:
    disc = write_class(tmp_path, "disc")
    rows = ["disc,train,normal,disc/train/good/000.png,"] * 2
    rows += [
        "disc,test,normal,disc/test/good/000.png,",
        "disc,test,anomaly,disc/test/scratch/000.png,disc/ground_truth/scratch/000_mask.png",
    ]
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text("\n".join(["object,split,label,image,mask", *rows]))
    assert disc.is_dir()
    with pytest.raises(VisionADError, match="expected 2 shots, but there are 1 images to choose from"):
        evaluate(tiny_model, open_dataset("visa", tmp_path), 2, threads=1)
