"""A remembered defect raises the distances of patches near it, and the class is calibrated with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime import BankError, ImageError, Inspector
from visionad_runtime.bank.history import undo, verify
from visionad_runtime.bank.memory_bank import MemoryBank
from visionad_runtime.formats.manifest import KnownDefect
from visionad_runtime.formats.roi import make_spec, parse_roi
from visionad_runtime.pipeline.bank_search import bank_search
from visionad_runtime.pipeline.leave_one_out import leave_one_out
from visionad_runtime.preprocess import apply_pose, encoding_names
from visionad_runtime.search import SearchIndex
from visionad_runtime.teaching.calibrate import calibrate_class
from visionad_runtime.teaching.remember import MAX_CELLS, farthest, marked_cells, posed, remember_file

from tests.data import part, unit

VIEWS = ("original", "flip", "clamp")
BLOCKS = encoding_names(VIEWS)


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Any:
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as opened:
        opened.enroll("disc", [part(number) for number in range(4)])
        yield opened


def entry_of(inspector: Inspector) -> Any:
    assert inspector.bank is not None
    return inspector.bank.classes["disc"].entry


def defect_files(folder: Path, seed: int = 5) -> tuple[Path, Path]:
    """Write a defective image and a mask of what differs from the good one."""
    bad, good = part(seed, defect=True), part(seed)
    image, mask = folder / f"bad{seed}.png", folder / f"mask{seed}.png"
    cv2.imwrite(str(image), bad)
    cv2.imwrite(str(mask), 255 * (np.abs(bad.astype(int) - good).max(axis=2) > 20).astype(np.uint8))
    return image, mask


def slow_distances(queries: NDArray[np.float32], good: NDArray[np.float32], defects: NDArray[np.float32]) -> Any:
    """Return the definition, in float64."""
    near = [1 - (queries.astype(np.float64) @ rows.T.astype(np.float64)).max(axis=1) for rows in (good, defects)]
    return near[0] + 2 * np.maximum(near[0] - near[1], 0)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_search_gives_the_defined_distances(view: Any, indexed: bool) -> None:
    features = unit(0, len(BLOCKS) * 3 * 36, 16).reshape(len(BLOCKS), 3, 36, 16)
    defects = unit(1, len(BLOCKS) * 5, 16).reshape(len(BLOCKS), 5, 16)
    bank = MemoryBank("x", "image", 1, BLOCKS, features, defects)
    plain = MemoryBank("x", "image", 1, BLOCKS, features)
    queries = np.concatenate([unit(2, 30, 16), bank.rows(view)[:3], bank.rows_with_defects(view)[-3:]])
    search = bank_search(bank, SearchIndex() if indexed else None, threads=1)
    remembered = bank.rows_with_defects(view)[len(bank.rows(view)) :]
    assert remembered.shape == (6 * 5, 16)
    expected = slow_distances(queries, bank.rows(view), remembered)
    without = bank_search(plain, threads=1)(view, queries)
    for _ in range(3):  # a bank that is searched again gets an index
        got = search(view, queries)
        np.testing.assert_allclose(got, expected, atol=1e-6)
        assert (got >= without).all() and (got > without + 0.1).any()
        same = slow_distances(queries, bank.rows(view), bank.rows(view)[:1]) == expected
        assert (got[same] == without[same]).all()


def test_the_cells_of_a_region_turn_with_the_pose() -> None:
    side = 5
    numbers = np.arange(side * side, dtype=np.float32).reshape(side, side)
    cells = np.zeros((side, side), bool)
    cells[0, 1] = cells[3, 4] = True
    features = np.stack([apply_pose(numbers, block.removeprefix("clamp/")).reshape(-1, 1) for block in BLOCKS])
    taken = posed(features, BLOCKS, cells)
    assert taken.shape == (len(BLOCKS), 2, 1)
    assert (np.sort(taken[:, :, 0], axis=1) == np.flatnonzero(cells)).all()


def test_the_farthest_cells_are_kept() -> None:
    cells, good = np.zeros((6, 6), bool), np.arange(36, dtype=np.float32).reshape(6, 6)
    cells[2:4] = True
    assert np.flatnonzero(farthest(cells, good)).tolist() == list(range(24 - MAX_CELLS, 24))
    cells[:] = False
    cells[0, 0] = True
    assert (farthest(cells, good) == cells).all()


def test_a_remembered_defect_raises_scores_of_its_like_and_the_threshold_is_computed_with_it(
    inspector: Inspector, tmp_path: Path
) -> None:
    calibrate_class(inspector, "disc", [_written(tmp_path, n) for n in range(20, 26)])
    bad = part(5, defect=True)
    before, good = inspector.inspect(bad, class_name="disc"), inspector.inspect(part(30), class_name="disc")
    remember_file(inspector, "disc", *defect_files(tmp_path))
    after = inspector.inspect(bad, class_name="disc")
    assert after.score > 1.2 * before.score
    assert inspector.inspect(part(30), class_name="disc").score >= good.score
    entry = entry_of(inspector)
    held = inspector.bank.classes["disc"]  # type: ignore[union-attr]
    assert held.rois[0].defects.shape[:2] == (len(held.blocks), entry.defects[0].cells)  # type: ignore[union-attr]
    scores = [s.score for s in leave_one_out(held, inspector.scoring, threads=1)]
    # The held-out scores were taken without the defect: they would make the threshold too low.
    assert entry.calibration.origins == ("leave-one-out",) * 4
    assert list(entry.calibration.scores) == scores
    assert entry.threshold == max(scores)


def test_a_leave_one_out_score_is_that_of_an_inspection_without_the_support(
    inspector: Inspector, tmp_path: Path
) -> None:
    remember_file(inspector, "disc", *defect_files(tmp_path))
    (one,) = leave_one_out(inspector.bank.classes["disc"], inspector.scoring, [1])  # type: ignore[union-attr]
    rgb = np.ascontiguousarray(part(1)[:, :, ::-1])
    ((result, _),) = inspector.trace_batch([rgb], "disc", leave_out=1)
    assert one.score == pytest.approx(result.score, abs=1e-6)


def test_it_is_read_back_bit_for_bit_and_can_be_undone(inspector: Inspector, tiny_model: Path, tmp_path: Path) -> None:
    bad, folder = part(6, defect=True), tmp_path / "bank"
    with Inspector.open(tiny_model, folder, threads=1) as follower:
        before = inspector.inspect(bad, class_name="disc")
        digest = inspector.bank.snapshot.digest  # type: ignore[union-attr]
        for seed in (5, 7):
            remember_file(inspector, "disc", *defect_files(tmp_path, seed))
        assert inspector.bank.snapshot.digest != digest  # type: ignore[union-attr]
        after = inspector.inspect(bad, class_name="disc")
        verify(folder)
        assert follower.refresh()
        with Inspector.open(tiny_model, folder, threads=1) as again:
            for reader in (follower, again):
                result = reader.inspect(bad, class_name="disc")
                assert (result.score, result.threshold) == (after.score, after.threshold)
                assert result.anomaly_map.tobytes() == after.anomaly_map.tobytes()
        inspector.enroll("disc", [part(9)])
        assert len(entry_of(inspector).defects) == 2
        assert inspector.bank.classes["disc"].rois[0].defects is not None  # type: ignore[union-attr]
        for _ in range(3):
            undo(folder)
        follower.refresh()
        assert follower.bank.snapshot.digest == digest  # type: ignore[union-attr]
        assert follower.inspect(bad, class_name="disc").score == before.score


def test_a_damaged_token_file_is_found(inspector: Inspector, tiny_model: Path, tmp_path: Path) -> None:
    remember_file(inspector, "disc", *defect_files(tmp_path))
    file = tmp_path / "bank" / "supports" / f"{entry_of(inspector).defects[0].tokens}.safetensors"
    data = bytearray(file.read_bytes())
    verify(tmp_path / "bank")
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BankError, match="is damaged"):
        verify(tmp_path / "bank")
    with pytest.raises(BankError, match="is damaged"):
        Inspector.open(tiny_model, tmp_path / "bank", threads=1)


def test_what_cannot_be_remembered_is_refused(inspector: Inspector, tmp_path: Path) -> None:
    image, mask = defect_files(tmp_path)
    version = inspector.bank.manifest.version  # type: ignore[union-attr]
    small, black = tmp_path / "small.png", tmp_path / "black.png"
    cv2.imwrite(str(small), np.full((10, 10), 255, np.uint8))
    cv2.imwrite(str(black), np.zeros(part(0).shape[:2], np.uint8))
    with pytest.raises(ImageError, match="the size of its image"):
        remember_file(inspector, "disc", image, small)
    with pytest.raises(ImageError, match="nothing is marked"):
        remember_file(inspector, "disc", image, black)
    enrolled = tmp_path / "enrolled.png"
    cv2.imwrite(str(enrolled), part(0))
    with pytest.raises(BankError, match="enrolled as a good part"):
        remember_file(inspector, "disc", enrolled, mask)
    assert inspector.bank.manifest.version == version  # type: ignore[union-attr]
    remember_file(inspector, "disc", image, mask)
    with pytest.raises(BankError, match="remembered already"):
        remember_file(inspector, "disc", image, mask)
    height, width = part(0).shape[:2]
    roi = make_spec([parse_roi(f"a=10,10,{width - 20},{height - 20}")], (width, height))
    inspector.enroll("boxed", [part(11), part(12)], roi=roi)
    with pytest.raises(BankError, match="has ROIs"):
        remember_file(inspector, "boxed", image, mask)


def test_a_cell_counts_from_a_quarter_under_the_mask(inspector: Inspector) -> None:
    spec, side = inspector.manifest.identity.preprocess, inspector.manifest.identity.grid
    rgb = np.zeros((spec.resize, spec.resize, 3), np.uint8)
    offset, cell = (spec.resize - spec.crop) // 2, spec.crop // side
    mask = np.zeros(rgb.shape[:2], bool)
    mask[offset : offset + cell, offset : offset + cell + cell // 2] = True
    assert np.flatnonzero(marked_cells(mask, rgb, spec, side)).tolist() == [0, 1]
    mask[:] = False
    mask[offset + cell, offset + 2 * cell] = True  # less than a quarter of any
    assert np.flatnonzero(marked_cells(mask, rgb, spec, side)).tolist() == [side + 2]


def _written(folder: Path, number: int) -> Path:
    path = folder / f"good{number}.png"
    cv2.imwrite(str(path), part(number))
    return path


def test_rows_that_are_no_unit_vectors_are_found(inspector: Inspector, tmp_path: Path) -> None:
    bank = inspector.bank
    assert bank is not None
    features = np.full((len(bank.manifest.blocks), 2, bank.manifest.identity.dim), 2, np.float32)

    def entry(current: Any, digest: str) -> Any:
        known = KnownDefect(sha256="0" * 64, source="x", tokens=digest, cells=2, created="2026-11-30T00:00:00+00:00")
        return current.entry.model_copy(update={"defects": (known,)})

    bank.remember("disc", features, entry, change="test")
    assert (entry_of(inspector).threshold, entry_of(inspector).calibration) == (None, None)
    with pytest.raises(BankError, match="not unit vectors"):
        verify(tmp_path / "bank")
    with pytest.raises(BankError, match="expected float32 features"):
        bank.remember("disc", features[:1], entry, change="test")
    features[0, 0, 0] = np.nan
    with pytest.raises(BankError, match="NaN or Inf"):
        bank.remember("disc", features, entry, change="test")
