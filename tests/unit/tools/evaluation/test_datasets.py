"""Every data set layout, built small; what is missing is counted and named; masks as the published protocol makes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from visionad_runtime.errors import ImageError
from visionad_runtime.tools.evaluation.datasets.base import Box, Dataset, DatasetError, Sample
from visionad_runtime.tools.evaluation.datasets.masks import load_mask
from visionad_runtime.tools.evaluation.datasets.registry import layouts, open_dataset

from tests.data import SHARED


def shared(name: str) -> Path:
    folder = SHARED / "data" / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set VISIONAD_SHARED")
    return folder


def draw(path: Path, value: int = 0, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def touch(*paths: Path) -> None:
    """Files that stand for images: loading a data set decodes none."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def mvtec_class(folder: Path, mask: str = "{}_mask.png") -> Path:
    touch(*(folder / "train/good" / f"{i:03d}.png" for i in (2, 0, 1)))
    touch(*(folder / "test/good" / f"{i:03d}.png" for i in range(2)))
    touch(*(folder / "test/crack" / f"{i:03d}.png" for i in range(3)))
    touch(*(folder / "ground_truth/crack" / mask.format(f"{i:03d}") for i in range(3)))
    return folder


def summary(dataset: Dataset, name: str) -> list[tuple[str, int, str, list[str]]]:
    return [(s.path.name, s.label, s.defect, [m.name for m in s.masks]) for s in dataset.test(name)]


# --- layouts


@pytest.mark.parametrize("name", ["mvtec", "folder", "visa", "loco"])
@pytest.mark.parametrize("mask", ["{}_mask.png", "{}.png", "{}/000.png"])
def test_mvtec_layout(tmp_path: Path, name: str, mask: str) -> None:
    mvtec_class(tmp_path / "b", mask)
    mvtec_class(tmp_path / "a", mask)
    touch(tmp_path / "a/train/good/.hidden.png", tmp_path / "a/train/good/Thumbs.db", tmp_path / "license.txt")
    (tmp_path / "empty").mkdir()
    dataset = open_dataset(name, tmp_path)
    assert dataset.classes == ["a", "b"]
    assert [p.name for p in dataset.train("a")] == ["000.png", "001.png", "002.png"]
    assert dataset.validation("a") == []
    expected_mask = [Path(mask.format(f"{i:03d}")).name for i in range(3)]
    assert summary(dataset, "b") == [
        *((f"{i:03d}.png", 1, "crack", [expected_mask[i]]) for i in range(3)),
        *((f"{i:03d}.png", 0, "good", []) for i in range(2)),
    ]
    assert all(s.class_name == "b" and s.split == "test" and s.has_mask for s in dataset.test("b"))


def test_root_may_be_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mvtec_class(tmp_path / "bolt")
    assert open_dataset("mvtec", tmp_path / "bolt").classes == ["bolt"]
    monkeypatch.chdir(tmp_path / "bolt")
    assert open_dataset("mvtec", Path()).classes == ["bolt"]


def test_folder_without_masks(tmp_path: Path) -> None:
    touch(tmp_path / "nut/train/good/0.jpg", tmp_path / "nut/train/crack/0.jpg")
    touch(tmp_path / "nut/test/good/0.JPG", tmp_path / "nut/test/crack/0.jpg")
    dataset = open_dataset("folder", tmp_path)
    assert len(dataset.train("nut")) == 1
    assert [(s.label, s.has_mask) for s in dataset.test("nut")] == [(1, False), (0, True)]
    with pytest.raises(DatasetError, match="without one it has image metrics only"):
        load_mask(dataset.test("nut")[0], 448, 392)
    with pytest.raises(DatasetError, match=r"1 x folder ground_truth missing \(nut\)"):
        open_dataset("mvtec", tmp_path)


def test_loco_has_several_masks_and_validation(tmp_path: Path) -> None:
    box = tmp_path / "box"
    touch(box / "train/good/000.png", box / "validation/good/000.png", box / "test/good/000.png")
    touch(box / "test/logical_anomalies/000.png", box / "test/structural_anomalies/000.png")
    touch(*(box / "ground_truth/logical_anomalies/000" / f"{i:03d}.png" for i in range(2)))
    touch(box / "ground_truth/structural_anomalies/000/000.png")
    dataset = open_dataset("loco", tmp_path)
    assert len(dataset.validation("box")) == 1
    assert summary(dataset, "box") == [
        ("000.png", 0, "good", []),
        ("000.png", 1, "logical_anomalies", ["000.png", "001.png"]),
        ("000.png", 1, "structural_anomalies", ["000.png"]),
    ]


@pytest.mark.parametrize("truth", ["test_public/ground_truth/bad", "ground_truth/bad"])
def test_mvtec_ad2(tmp_path: Path, truth: str) -> None:
    can = tmp_path / "can"
    touch(can / "train/good/000_regular.png", can / "validation/good/000_regular.png")
    touch(can / "test_public/good/000_regular.png", can / "test_public/bad/000_regular.png")
    touch(can / truth / "000_regular_mask.png", can / "test_private/000_regular.png")
    dataset = open_dataset("mvtec-ad2", tmp_path)
    assert summary(dataset, "can") == [
        ("000_regular.png", 1, "bad", ["000_regular_mask.png"]),
        ("000_regular.png", 0, "good", []),
    ]
    assert len(dataset.validation("can")) == 1


VISA_ROWS = [
    "candle,train,normal,candle/Data/Images/Normal/0002.JPG,",
    "candle,train,normal,candle/Data/Images/Normal/0000.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
]


def visa(root: Path, rows: list[str], header: str = "object,split,label,image,mask") -> None:
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join([header, *rows]), "utf-8")
    for row in rows:
        touch(*(root / cell for cell in row.split(",") if "/" in cell))


def test_visa_raw(tmp_path: Path) -> None:
    visa(tmp_path, VISA_ROWS)
    dataset = open_dataset("visa", tmp_path)
    assert [p.name for p in dataset.train("candle")] == ["0000.JPG", "0002.JPG"]
    assert summary(dataset, "candle") == [("000.JPG", 1, "anomaly", ["000.png"]), ("0001.JPG", 0, "good", [])]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("candle,train,anomaly,a/0.JPG,a/0.png", "1 x defect among train images .1cls.csv line 6"),
        ("candle,test,anomaly,a/0.JPG,", "1 x row without its mask"),
        ("candle,tset,normal,a/0.JPG,", "1 x row not understood"),
        ("candle,test", "1 x row not understood"),
        ("fryum,test,normal,a/0.JPG,", "1 x class without train images .fryum."),
    ],
)
def test_visa_bad_rows(tmp_path: Path, row: str, message: str) -> None:
    visa(tmp_path, [*VISA_ROWS, row])
    with pytest.raises(DatasetError, match=message):
        open_dataset("visa", tmp_path)


def test_lists_that_are_no_text_are_named(tmp_path: Path) -> None:
    table = tmp_path / "split_csv/1cls.csv"
    visa(tmp_path, [])
    table.write_bytes(table.read_bytes() + b"\ncaf\xe9,train,normal,a.png,\n")  # saved by a spreadsheet as Latin-1
    with pytest.raises(DatasetError, match=r"1cls\.csv: expected text in UTF-8, got .* at byte \d+; save it as UTF-8"):
        open_dataset("visa", tmp_path)
    table.write_text("object,split,label,image,mask\n" + "x" * 200_000 + ",train,normal,a.png,\n")
    with pytest.raises(DatasetError, match=r"1cls\.csv: expected CSV, got an error after line 1: field larger"):
        open_dataset("visa", tmp_path)
    base = deeppcb(tmp_path / "pcb")
    for path in (base / "group007/007_not/007001.txt", base / "test.txt"):
        path.write_bytes(b"\xff")
        with pytest.raises(DatasetError, match=f"{path.name}: expected text in UTF-8"):
            open_dataset("deeppcb", tmp_path / "pcb")


def test_visa_other_columns(tmp_path: Path) -> None:
    visa(tmp_path, VISA_ROWS, "object,split,label,photo,mask")
    with pytest.raises(DatasetError, match="no column image"):
        open_dataset("visa", tmp_path)


def real_iad(root: Path, nested: bool = False, size: str = "1024") -> dict[str, list[dict[str, str | None]]]:
    def entry(kind: str, number: int, mask: bool = False) -> dict[str, str | None]:
        path = f"{kind}/S{number:04d}/usb_{number:04d}_{kind}_C1.jpg"
        files = [path, path.replace(".jpg", ".png")] if mask else [path]
        touch(*(root / f"realiad_{size}" / "usb" / file for file in files))
        return {"category": "usb", "anomaly_class": kind, "image_path": path, "mask_path": files[1] if mask else None}

    lists: dict[str, list[dict[str, str | None]]] = {
        "train": [entry("OK", 2), entry("OK", 1)],
        "test": [entry("OK", 3), entry("QS", 4, mask=True)],
    }
    folder = root / "realiad_jsons" / ("realiad_jsons" if nested else "")
    folder.mkdir(parents=True)
    content = {"meta": {"normal_class": "OK", "prefix": "usb/"}, **lists}
    (folder / "usb.json").write_text(json.dumps(content), "utf-8")
    return lists


@pytest.mark.parametrize(("nested", "size"), [(False, "1024"), (True, "512")])
def test_real_iad(tmp_path: Path, nested: bool, size: str) -> None:
    real_iad(tmp_path, nested, size)
    dataset = open_dataset("real-iad", tmp_path)
    assert [p.name for p in dataset.train("usb")] == ["usb_0001_OK_C1.jpg", "usb_0002_OK_C1.jpg"]
    assert summary(dataset, "usb") == [
        ("usb_0004_QS_C1.jpg", 1, "QS", ["usb_0004_QS_C1.png"]),
        ("usb_0003_OK_C1.jpg", 0, "good", []),
    ]


def test_real_iad_bad_lists(tmp_path: Path) -> None:
    lists = real_iad(tmp_path)
    path = tmp_path / "realiad_jsons/usb.json"
    meta = {"normal_class": "OK", "prefix": "usb/"}
    noisy = {"meta": meta, "train": lists["train"] + lists["test"], "test": [{**lists["test"][1], "mask_path": None}]}
    for content, message in (
        (json.dumps(noisy), "1 x defect among train images .*; 1 x entry without its mask"),
        (json.dumps({"meta": meta, "train": []}), "expected a list of Real-IAD .KeyError: 'test'"),
        ("[1]", "expected a list of Real-IAD"),
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        (json.dumps({"meta": meta, "train": [{**lists["train"][0], "category": 1}], "test": []}), "must be text"),
    ):
        path.write_text(content, "utf-8")
        with pytest.raises(DatasetError, match=message):
            open_dataset("real-iad", tmp_path)
    path.unlink()
    with pytest.raises(DatasetError, match=r"expected realiad_jsons/CLASS\.json"):
        open_dataset("real-iad", tmp_path)


def deeppcb(root: Path) -> Path:
    for number in range(4):
        for kind in ("temp", "test"):
            draw(root / f"group007/007/007{number:03d}_{kind}.jpg", 0, (64, 64))
        boxes = root / f"group007/007_not/007{number:03d}.txt"
        boxes.parent.mkdir(exist_ok=True)
        boxes.write_text("10 20 30 40 1\n\n0,0,64,2,6\n", "ascii")
    return root


def test_deeppcb_without_lists(tmp_path: Path) -> None:
    deeppcb(tmp_path / "PCBData")
    dataset = open_dataset("deeppcb", tmp_path)
    assert [p.name for p in dataset.train("group007")] == ["007000_temp.jpg", "007002_temp.jpg"]
    assert [(s.path.name, s.label) for s in dataset.test("group007")] == [
        ("007001_test.jpg", 1), ("007003_test.jpg", 1), ("007001_temp.jpg", 0), ("007003_temp.jpg", 0),
    ]  # fmt: skip
    bad = dataset.test("group007")[0]
    assert bad.boxes == (Box(10, 20, 30, 40), Box(0, 0, 64, 2))
    mask = load_mask(bad, 64, 64, 64)
    assert mask.sum() == 20 * 20 + 64 * 2
    assert mask[20:40, 10:30].all()


def test_deeppcb_with_lists(tmp_path: Path) -> None:
    deeppcb(tmp_path)
    line = "group007/007/007{0:03d}.jpg group007/007_not/007{0:03d}.txt\n"
    (tmp_path / "trainval.txt").write_text(line.format(3), "ascii")
    (tmp_path / "test.txt").write_text(line.format(0) + line.format(1), "ascii")
    with pytest.raises(DatasetError, match=r"1 x pair in neither trainval.txt nor test.txt .*007002_test.jpg"):
        open_dataset("deeppcb", tmp_path)
    (tmp_path / "test.txt").write_text("".join(line.format(i) for i in range(3)), "ascii")
    dataset = open_dataset("deeppcb", tmp_path)
    assert [p.name for p in dataset.train("group007")] == ["007003_temp.jpg"]
    assert len(dataset.test("group007")) == 6


def test_deeppcb_faults(tmp_path: Path) -> None:
    deeppcb(tmp_path)
    (tmp_path / "group007/007_not/007001.txt").unlink()
    (tmp_path / "group007/007_not/007003.txt").write_text("5 5 5 9 1\n1 2 x 4 1\n", "ascii")
    (tmp_path / "group007/007/007000_temp.jpg").unlink()
    with pytest.raises(DatasetError) as caught:
        open_dataset("deeppcb", tmp_path)
    for part in ("1 x boxes missing", "2 x box not understood", "1 x defect without boxes", "1 x image missing"):
        assert part in str(caught.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(DatasetError, match="expected folders group"):
        open_dataset("deeppcb", tmp_path / "other")


# --- what is wrong is counted and named


def test_faults_of_all_classes_in_one_line(tmp_path: Path) -> None:
    a, b = mvtec_class(tmp_path / "a"), mvtec_class(tmp_path / "b")
    for mask in (a / "ground_truth/crack").iterdir():
        mask.unlink()
    (b / "ground_truth/crack/001_mask.png").unlink()
    (b / "ground_truth/crack/002_mask.png").write_bytes(b"")
    (b / "test/good/000.png").write_bytes(b"")
    (b / "test/dent").mkdir()
    with pytest.raises(DatasetError) as caught:
        open_dataset("folder", tmp_path)  # where there are masks, there must be all
    message = str(caught.value)
    assert "\n" not in message
    assert "4 x mask missing (a/test/crack/000.png, a/test/crack/001.png, a/test/crack/002.png, …)" in message
    assert "1 x mask empty (b/ground_truth/crack/002_mask.png)" in message
    assert "1 x image empty (b/test/good/000.png)" in message
    assert "1 x test folder without images (b/test/dent)" in message


def test_broken_layouts(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="unknown data set 'mnist'; expected one of deeppcb, folder"):
        open_dataset("mnist", tmp_path)
    for name in layouts():
        with pytest.raises(DatasetError, match="expected a folder at"):
            open_dataset(name, tmp_path / "absent")
        with pytest.raises(DatasetError, match="in it"):
            open_dataset(name, tmp_path)
    (tmp_path / "a/train/good").mkdir(parents=True)
    with pytest.raises(DatasetError) as caught:
        open_dataset("folder", tmp_path)
    for part in ("folder test/good missing (a)", "class without train images (a)", "class without test images (a)"):
        assert part in str(caught.value)
    mvtec_class(tmp_path / "b" / "c")
    with pytest.raises(DatasetError, match="has no class 'd'; expected one of c"):
        open_dataset("mvtec", tmp_path / "b").test("d")


def test_listed_files_must_exist(tmp_path: Path) -> None:
    visa(tmp_path, VISA_ROWS)
    (tmp_path / "candle/Data/Images/Normal/0000.JPG").unlink()
    (tmp_path / "candle/Data/Masks/Anomaly/000.png").unlink()
    with pytest.raises(
        DatasetError, match=r"1 x image missing .*Normal/0000.JPG.*; 1 x mask missing .*Anomaly/000.png"
    ):
        open_dataset("visa", tmp_path)


# --- masks


def sample(folder: Path, *masks: np.ndarray, size: tuple[int, int] | None = None) -> Sample:
    paths = []
    for i, mask in enumerate(masks):
        paths.append(folder / f"{i}.png")
        Image.fromarray(mask).save(paths[-1])
    image = draw(folder / "image.jpg", 0, size or masks[0].shape[1::-1])
    return Sample(image, "a", 1, "crack", masks=tuple(paths))


def blobs(height: int, width: int, value: int = 255) -> np.ndarray:
    rng = np.random.default_rng(height)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(6):
        top, left = rng.integers(0, height - 9), rng.integers(0, width - 9)
        mask[top : top + rng.integers(1, height // 3), left : left + rng.integers(1, width // 3)] = value
    return mask


@pytest.mark.parametrize(("height", "width"), [(900, 900), (300, 517), (64, 64)])
@pytest.mark.parametrize(
    ("resize", "crop", "size"), [(448, 392, 256), (448, 384, 256), (449, 392, 256), (224, 224, 250)]
)
def test_mask_equals_torchvision(tmp_path: Path, height: int, width: int, resize: int, crop: int, size: int) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    mask = blobs(height, width)
    chain = transforms.Compose(
        [transforms.Resize((resize, resize)), transforms.CenterCrop(crop), transforms.ToTensor()]
    )
    cropped = chain(Image.fromarray(mask))[None]
    expected = (torch.nn.functional.interpolate(cropped, size=size, mode="nearest")[0, 0] > 0).numpy()
    found = load_mask(sample(tmp_path, mask), resize, crop, size)
    assert found.dtype == np.bool_
    assert expected.any()
    assert np.array_equal(found, expected)


def test_mask_by_hand(tmp_path: Path) -> None:
    """Enlarging 2 × 2 to 4 × 4 mixes (1, 3/4, 1/4, 0): all but the last row and column are touched by the defect."""
    mask = np.array([[255, 0], [0, 0]], np.uint8)
    expected = np.zeros((4, 4), np.bool_)
    expected[:3, :3] = True
    assert np.array_equal(load_mask(sample(tmp_path, mask), 4, 4, 4), expected)
    assert np.array_equal(load_mask(sample(tmp_path, mask), 4, 2, 2), np.ones((2, 2), np.bool_))


def test_mask_values(tmp_path: Path) -> None:
    """255, 253 (LOCO numbers its defects downwards), label maps, palettes, colour: one mask. Soft edges are dropped."""
    drawn = blobs(90, 70)
    expected = load_mask(sample(tmp_path, drawn), 96, 84, 64)
    soft = np.where(drawn, drawn, np.random.default_rng(0).integers(0, 100, drawn.shape)).astype(np.uint8)
    for other in (drawn // 255 * 253, drawn // 255, drawn // 255 * 5, soft, np.dstack([drawn, drawn * 0, drawn * 0])):
        assert np.array_equal(load_mask(sample(tmp_path, other), 96, 84, 64), expected)
    palette = Image.fromarray(drawn // 255).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0])
    one = sample(tmp_path, drawn)
    palette.save(one.masks[0])
    assert np.array_equal(load_mask(one, 96, 84, 64), expected)


def test_masks_are_joined(tmp_path: Path) -> None:
    first, second = blobs(90, 70), blobs(90, 70)[::-1, ::-1].copy()
    joined = load_mask(sample(tmp_path, np.maximum(first, second)), 96, 84, 64)
    assert np.array_equal(load_mask(sample(tmp_path, first, second), 96, 84, 64), joined)


def test_mask_faults(tmp_path: Path) -> None:
    good = Sample(tmp_path / "absent.png", "a", 0)
    assert not load_mask(good, 448, 392).any()
    assert load_mask(good, 448, 392).shape == (256, 256)
    with pytest.raises(DatasetError, match="expected a crop of 1 to 448 pixels, got 449"):
        load_mask(good, 448, 449)
    black = np.zeros((90, 70), np.uint8)
    with pytest.raises(
        DatasetError, match=r"mask .*0\.png marks nothing \(black\), but .*image\.jpg is a defect \(crack\)"
    ):
        load_mask(sample(tmp_path, black, black), 448, 392)
    assert load_mask(sample(tmp_path, black, blobs(90, 70)), 448, 392).any()
    other_size = sample(tmp_path, blobs(90, 70), size=(90, 70))
    with pytest.raises(DatasetError, match=r"expected a mask of .90, 70. pixels.*got .70, 90."):
        load_mask(other_size, 448, 392)
    other_size.masks[0].write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"0\.png"):
        load_mask(other_size, 448, 392)
    other_size.path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"image\.jpg"):
        load_mask(other_size, 448, 392)
    outside = Sample(draw(tmp_path / "p.png"), "a", 1, "bad", boxes=(Box(0, 0, 9, 4),))
    with pytest.raises(DatasetError, match=r"expected a box inside the image of \(8, 8\) pixels"):
        load_mask(outside, 448, 392)


# --- the real thing


@pytest.mark.parametrize(
    ("name", "folder", "train", "good", "bad"),
    [
        ("mvtec", "mvtec_bottle", 24, 20, 63),
        ("mvtec", "magnetic_tile", 30, 40, 60),
        ("folder", "adfi_hazelnut", 50, 25, 15),
        ("deeppcb", "deeppcb", 45, 45, 45),
    ],
)
def test_shared_data(name: str, folder: str, train: int, good: int, bad: int) -> None:
    dataset = open_dataset(name, shared(folder))
    samples = [s for c in dataset.classes for s in dataset.test(c)]
    assert sum(len(dataset.train(c)) for c in dataset.classes) == train
    assert [sum(s.label == label for s in samples) for label in (0, 1)] == [good, bad]
    with_mask = [s for s in samples if s.label and s.has_mask]
    assert len(with_mask) == (0 if folder == "adfi_hazelnut" else bad)
    assert all(load_mask(s, 448, 448).any() for s in with_mask[::7])  # cropped, some tiles' defects are gone
