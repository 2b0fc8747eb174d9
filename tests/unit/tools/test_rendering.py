from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visionad_runtime.tools.demo.rendering import CLASSES, DEFECTS, UNKNOWN, render, write_dataset

CASES: list[tuple[str, str | None]] = [(name, defect) for name in CLASSES for defect in DEFECTS[name]]
GOOD: list[tuple[str, str | None]] = [(name, None) for name in (*CLASSES, UNKNOWN)]
SMALL = 160


@pytest.mark.parametrize("class_name", [*CLASSES, UNKNOWN])
def test_good_image(class_name: str) -> None:
    image, mask = render(class_name, seed=3, size=SMALL)
    assert image.shape == (SMALL, SMALL, 3) and image.dtype == np.uint8
    assert mask.shape == (SMALL, SMALL) and mask.dtype == np.bool_
    assert not mask.any()
    assert image.std() > 20  # something is there


@pytest.mark.parametrize(("class_name", "defect"), GOOD + CASES)
def test_equal_arguments_give_equal_bytes(class_name: str, defect: str | None) -> None:
    first, again = (render(class_name, 5, defect, SMALL) for _ in range(2))
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tobytes() == again[1].tobytes()
    assert (render(class_name, 6, defect, SMALL)[0] != first[0]).any()


@pytest.mark.parametrize(("class_name", "defect"), CASES)
def test_mask_is_exactly_where_the_defect_changes_the_image(class_name: str, defect: str) -> None:
    good, _ = render(class_name, 11, size=SMALL)
    bad, mask = render(class_name, 11, defect, SMALL)
    np.testing.assert_array_equal(mask, (good != bad).any(axis=2))
    np.testing.assert_array_equal(good[~mask], bad[~mask])
    assert np.abs(good.astype(int) - bad)[mask].max() > 40  # a person can see it


@pytest.mark.parametrize(("class_name", "defect"), CASES)
def test_every_seed_gives_a_local_defect_inside_the_usual_crop(class_name: str, defect: str) -> None:
    for seed in range(6):
        _, mask = render(class_name, seed, defect, SMALL)
        assert 0.0005 < mask.mean() < 0.10, seed
        margin = SMALL // 14
        assert mask[margin:-margin, margin:-margin].sum() > 0.8 * mask.sum(), seed


@pytest.mark.parametrize(
    ("class_name", "defect", "said"),
    [
        ("bolt", None, "no part named 'bolt'"),
        ("gear", "missing_tablet", "gear has no defect"),  # another class's
        (UNKNOWN, "scratch", "unknown has no defect"),
    ],
)
def test_wrong_names_are_refused(class_name: str, defect: str | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        render(class_name, 0, defect)


def test_dataset_is_an_mvtec_tree(tmp_path: Path) -> None:
    write_dataset(tmp_path / "a", train=1, good=1, per_defect=1)
    write_dataset(tmp_path / "b", train=1, good=1, per_defect=1)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.png"))
    wanted = []
    for name in CLASSES:
        wanted += [Path(name, "train/good/000.png"), Path(name, "test/good/000.png")]
        wanted += [Path(name, "test", defect, "000.png") for defect in DEFECTS[name]]
        wanted += [Path(name, "ground_truth", defect, "000_mask.png") for defect in DEFECTS[name]]
    assert files == sorted(wanted)
    contents = [(tmp_path / "a" / file).read_bytes() for file in files]
    assert contents == [(tmp_path / "b" / file).read_bytes() for file in files]
    assert len(set(contents)) == len(contents)  # no test image is a training image
    mask = np.asarray(
        Image.open(tmp_path / "a" / CLASSES[0] / "ground_truth" / DEFECTS[CLASSES[0]][0] / "000_mask.png")
    )
    assert set(np.unique(mask)) == {0, 255}
