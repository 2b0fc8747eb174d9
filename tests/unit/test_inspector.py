"""The chain as users call it: same result however it is called, live enrollment, self-test, calibration."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime import BankError, ImageError, Inspector, ModelError, VisionADError
from visionad_runtime import _threads as workers
from visionad_runtime._threads import available_cpus
from visionad_runtime.bank.store import Bank
from visionad_runtime.formats.files import sha256_file
from visionad_runtime.pipeline.host import HostPipeline
from visionad_runtime.pipeline.opening import open_engine
from visionad_runtime.result import Result
from visionad_runtime.search import IndexState, PrunedIndex, native
from visionad_runtime.teaching.calibrate import calibrate_class

from tests.data import part


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Inspector:
    opened = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    opened.enroll("disc", [part(0), part(1)])
    opened.enroll("grid", [part(0, kind="grid")])
    return opened


def same(a: Result, b: Result) -> bool:
    """Bit for bit, timings aside."""
    return a.to_dict("") | {"timings_ms": 0} == b.to_dict("") | {"timings_ms": 0} and np.array_equal(
        a.anomaly_map, b.anomaly_map
    )


def test_the_class_of_a_part_is_named_alike_in_every_method(inspector: Inspector, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), part(40))
    cv2.imwrite(str(tmp_path / "b.png"), part(41))
    first = inspector.enroll(class_name="disc", images=[part(42)])
    versions = [
        inspector.enroll_files(class_name="disc", paths=[tmp_path / "a.png"]),
        inspector.confirm(class_name="disc", images=[part(43)], good=True, selection="all"),
        inspector.confirm("disc", [part(44)], True, "accepted"),
        inspector.confirm("disc", [part(45, defect=True)], False),
        inspector.confirm_files("disc", [tmp_path / "b.png"], True, "all"),
    ]
    assert versions == list(range(first + 1, first + 6))
    assert inspector.inspect(part(46), class_name="disc").class_name == "disc"
    confirmed = inspector.bank and inspector.bank.classes["disc"].entry.confirmations
    assert [(c.good, c.selection) for c in confirmed or ()] == [
        (True, "all"), (True, "accepted"), (False, "all"), (True, "all"),
    ]  # fmt: skip


def test_result_does_not_depend_on_batch_or_order(inspector: Inspector) -> None:
    images = [part(i, defect=i % 2 == 1, kind="grid" if i % 3 == 0 else "disc") for i in range(7)]
    alone = [inspector.inspect(p) for p in images]
    for batch in (2, 3, 7):
        together = [r for i in range(0, 7, batch) for r in inspector.inspect_batch(images[i : i + batch])]
        assert all(map(same, alone, together))
    assert all(map(same, reversed(alone), inspector.inspect_batch(images[::-1])))


def test_result_does_not_depend_on_threads(inspector: Inspector, tiny_model: Path) -> None:
    assert inspector.bank is not None
    two = Inspector.open(tiny_model, inspector.bank.folder, threads=2)
    for i in range(4):
        a, b = inspector.inspect(part(i, defect=True)), two.inspect(part(i, defect=True))
        assert abs(a.score - b.score) <= 1e-5
        np.testing.assert_allclose(a.anomaly_map, b.anomaly_map, atol=1e-5)
        assert (a.class_name, a.verdict) == (b.class_name, b.verdict)


def test_more_threads_than_cores_are_not_taken(
    inspector: Inspector, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def note(*args: Any, threads: int | None, **more: Any) -> Any:
        taken.append(threads)
        return open_engine(*args, threads=threads, **more)

    monkeypatch.setattr("visionad_runtime.inspector.inspection.open_engine", note)
    Inspector.open(tiny_model, threads=5000).close()
    assert taken == [available_cpus()]
    with pytest.raises(VisionADError, match="threads 0: expected 1 or more"):
        Inspector.open(tiny_model, threads=0)


def test_many_threads_share_one_inspector(inspector: Inspector) -> None:
    images = [part(i, defect=True) for i in range(6)]
    alone = [inspector.inspect(p) for p in images]
    found: dict[int, Result] = {}

    def work(i: int) -> None:
        found[i] = inspector.inspect(images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(same(alone[i], found[i]) for i in range(6))


def test_colour_orders(inspector: Inspector) -> None:
    bgr = part(3, defect=True)
    assert same(inspector.inspect(bgr), inspector.inspect(np.ascontiguousarray(bgr[:, :, ::-1]), colour="rgb"))
    assert same(inspector.inspect(bgr), inspector.inspect(np.ascontiguousarray(bgr[:, :, ::-1]), color="rgb"))
    grey = bgr[:, :, 0]
    assert same(inspector.inspect(grey), inspector.inspect(np.repeat(grey[:, :, None], 3, axis=2)))


def test_a_grey_support_is_the_same_image_however_it_is_given(tiny_model: Path, tmp_path: Path) -> None:
    grey = part(3)[:, :, 0]
    inspector = Inspector.open(tiny_model, tmp_path / "bank")
    inspector.enroll("disc", [grey])
    for again in (grey, grey[:, :, None], np.repeat(grey[:, :, None], 3, axis=2)):
        with pytest.raises(BankError, match="enrolled already"):
            inspector.enroll("disc", [again])


def test_a_file_and_its_pixels_give_the_same(inspector: Inspector, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "p.png"), part(5, defect=True))
    (one,) = inspector.inspect_files([tmp_path / "p.png"])
    assert one.result is not None
    assert same(one.result, inspector.inspect(part(5, defect=True)))


def test_paths_and_views_may_be_plain_text(inspector: Inspector, tiny_model: Path, good: list[Path]) -> None:
    inspector.enroll_files("text", [str(good[3])])
    (one,) = inspector.inspect_files([str(good[1])], class_name="text")
    assert one.path == good[1] and one.result is not None
    with pytest.raises(VisionADError, match="batch 0: expected 1 image or more"):
        next(inspector.inspect_files(good, batch=0))
    with pytest.raises(ImageError, match="expected a list of image files, got one"):
        next(inspector.inspect_files(str(good[1])))
    with pytest.raises(ImageError, match="expected a list of image files, got one"):
        inspector.enroll_files("text", good[1])  # type: ignore[arg-type]
    with Inspector.open(tiny_model, views="original, clamp", threads=1) as other:
        assert other.views == ("original", "clamp")


def test_an_enrolled_image_has_distance_zero_in_all_poses(inspector: Inspector) -> None:
    for turned in (part(0), part(0)[::-1].copy(), part(0)[:, ::-1].copy()):
        result = inspector.inspect(turned, class_name="disc")
        assert result.anomaly_map.max() < 1e-4  # flips of the image are flips of the resized one up to rounding
    assert inspector.inspect(part(0, defect=True), class_name="disc").score > 0.01


def test_enrollment_is_live_and_on_disk(inspector: Inspector, tiny_model: Path) -> None:
    assert inspector.bank is not None
    before = inspector.inspect(part(9, defect=True), class_name="disc")
    version = inspector.enroll("disc", [part(9, defect=True)])
    after = inspector.inspect(part(9, defect=True), class_name="disc")
    assert (after.score, after.bank_version) == (pytest.approx(0, abs=1e-5), version)
    assert before.score > after.score
    assert same(
        after,
        Inspector.open(tiny_model, inspector.bank.folder, threads=1).inspect(part(9, defect=True), class_name="disc"),
    )


def test_a_failed_enrollment_changes_nothing(inspector: Inspector) -> None:
    assert inspector.bank is not None
    version = inspector.bank.manifest.version
    for bad, error in (
        ([part(7), part(7).astype(np.float32) / 255], ImageError),
        ([part(0)], BankError),  # enrolled already
        ([], BankError),
    ):
        with pytest.raises(error):
            inspector.enroll("disc", bad)
    assert inspector.bank.manifest.version == version


def test_routing_finds_the_class_and_knows_a_stranger(inspector: Inspector) -> None:
    disc, grid = inspector.inspect(part(20)), inspector.inspect(part(20, kind="grid"))
    assert (disc.class_name, disc.class_source, grid.class_name) == ("disc", "routed", "grid")
    assert disc.class_margin is not None and disc.class_margin > 0
    given = inspector.inspect(part(20), class_name="disc")
    assert (given.class_source, given.class_margin) == ("given", None)
    np.testing.assert_array_equal(given.anomaly_map, disc.anomaly_map)


def test_the_golden_image_is_a_stranger(inspector: Inspector, tiny_model: Path) -> None:
    from visionad_runtime.pipeline.self_test import read_golden

    image = read_golden(tiny_model)["image"]
    padded = cv2.copyMakeBorder(
        image, 4, 4, 4, 4, cv2.BORDER_REPLICATE
    )  # 72 x 72: the crop gives the golden image back
    result = inspector.inspect(padded, colour="rgb")
    assert (result.class_name, result.class_source, result.verdict) == (None, "unknown", "unknown")
    assert np.isfinite(result.score)


def test_views_can_be_chosen(inspector: Inspector, tiny_model: Path) -> None:
    assert inspector.bank is not None
    folder = inspector.bank.folder
    maps = [
        Inspector.open(tiny_model, folder, threads=1, views=[v]).inspect(part(4), class_name="disc").anomaly_map
        for v in ("original", "flip", "clamp")
    ]
    whole = inspector.inspect(part(4), class_name="disc").anomaly_map
    np.testing.assert_allclose(sum(maps), whole, atol=1e-6)
    for bad in (["sepia"], [], ["flip", "flip"]):
        with pytest.raises(VisionADError, match="views"):
            Inspector.open(tiny_model, folder, views=bad)


def test_nothing_enrolled_or_unknown_class(tiny_model: Path, tmp_path: Path, inspector: Inspector) -> None:
    with pytest.raises(BankError, match="no class yet"):
        Inspector.open(tiny_model, tmp_path / "new").inspect(part(0))
    with pytest.raises(BankError, match="no class 'nut'; it has 'disc', 'grid'"):
        inspector.inspect(part(0), class_name="nut")
    assert not (tmp_path / "new").exists()


def test_a_class_name_in_composed_or_decomposed_letters(tiny_model: Path, tmp_path: Path, good: list[Path]) -> None:
    decomposed, composed = "Mu\u0308hle", "M\u00fchle"
    with Inspector.open(tiny_model, tmp_path / "named") as inspector:
        inspector.enroll_files(decomposed, good[:2])
        with pytest.raises(BankError, match="enrolled already"):
            inspector.enroll_files(decomposed, good[:1])
        for name in (decomposed, composed):
            assert inspector.inspect(part(0), class_name=name).class_name == composed
            (one,) = inspector.inspect_files(good[:1], class_name=name)
            assert one.result is not None and one.result.class_name == composed
            calibrate_class(inspector, name, good[2:], 0.4)
        assert inspector.bank is not None
        inspector.bank.remove(decomposed)
        assert not inspector.bank.classes


def test_a_flipped_weight_bit_is_caught(tiny_model: Path, tmp_path: Path) -> None:
    """Digest first; and when somebody has fixed the digest up, the golden image."""
    from visionad_runtime.formats.files import sha256_file

    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    onnx = model / "backbone.onnx"
    data = bytearray(onnx.read_bytes())
    block = len(data) // 2 // 4 * 4
    data[block : block + 4000] = np.random.default_rng(0).standard_normal(1000).astype(np.float32).tobytes()
    onnx.write_bytes(data)
    with pytest.raises(ModelError, match=r"backbone\.onnx is damaged"):
        Inspector.open(model)
    manifest = model / "manifest.json"
    manifest.write_text(manifest.read_text().replace(sha256_file(tiny_model / "backbone.onnx"), sha256_file(onnx)))
    with pytest.raises(ModelError, match=r"self-test .* failed|cannot be loaded"):
        Inspector.open(model)


def test_a_truncated_or_missing_model(tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "golden.safetensors").unlink()
    with pytest.raises(ModelError, match="golden"):
        Inspector.open(model)
    manifest = json.loads((model / "manifest.json").read_text())
    del manifest["files"]["golden.safetensors"]
    (model / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"files lacks golden\.safetensors"):
        Inspector.open(model)
    with pytest.raises(ModelError, match="does not exist"):
        Inspector.open(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no manifest\.json"):
        Inspector.open(tmp_path)


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), "x", None]
)
def test_arrays_that_are_no_images(inspector: Inspector, bad: object) -> None:
    with pytest.raises(ImageError):
        inspector.inspect(bad)  # type: ignore[arg-type]


def test_one_image_is_not_taken_for_a_list(inspector: Inspector) -> None:
    for call in (inspector.inspect_batch, lambda images: inspector.enroll("new", images)):
        with pytest.raises(ImageError, match="put it into a list"):
            call(part(0))
    assert inspector.bank is not None and "new" not in inspector.bank.classes
    assert len(inspector.inspect_batch(np.stack([part(0), part(1)]))) == 2


def test_calibration_never_compares_a_image_with_itself(tiny_model: Path, tmp_path: Path, good: list[Path]) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll_files("disc", good[:2])
    done = calibrate_class(inspector, "disc", good, 0.25)
    assert done.record.method == "leave-one-out+held-out"
    fresh = Inspector.open(tiny_model, tmp_path / "without", threads=1)
    fresh.enroll_files("disc", good[1:2])
    expected = fresh.inspect(cv2.imread(str(good[0])), class_name="disc").score
    assert done.record.scores[0] == expected  # support 0 was scored as if it had not been enrolled
    assert min(done.record.scores) > 1e-3
    result = inspector.inspect(part(0, defect=True), class_name="disc")
    assert result.threshold == done.threshold.value == max(done.record.scores)
    assert result.verdict == ("anomalous" if result.score > done.threshold.value else "ok")


def test_a_larger_bank_never_scores_higher(tiny_model: Path, tmp_path: Path, good: list[Path]) -> None:
    """What the guarantee of leave-one-out calibration rests on."""
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll_files("disc", good)
        for seed in range(3):
            rgb = np.ascontiguousarray(part(40 + seed, defect=seed == 1)[:, :, ::-1])
            ((whole, _),) = inspector.trace_batch([rgb], "disc")
            for k in range(len(good)):
                ((less, _),) = inspector.trace_batch([rgb], "disc", leave_out=k)
                assert (less.anomaly_map >= whole.anomaly_map - 1e-6).all() and less.score >= whole.score - 1e-6


def test_the_only_support_is_passed_over(
    tiny_model: Path, tmp_path: Path, good: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll_files("disc", good[:1])
    done = calibrate_class(inspector, "disc", good, 0.25)
    assert (done.skipped, done.record.normals, done.record.method) == ((str(good[0]),), 3, "held-out")
    scored: list[object] = []  # too few, or one twice, is said before minutes of scoring
    monkeypatch.setattr(inspector, "trace_batch", scored.append)
    with pytest.raises(VisionADError, match=r"takes at least 4 good images .* got 3"):
        calibrate_class(inspector, "disc", good, 0.2)
    with pytest.raises(VisionADError, match="same image"):
        calibrate_class(inspector, "disc", [*good, good[1]], 0.2)
    with pytest.raises(VisionADError, match="between 0 and 1"):
        calibrate_class(inspector, "disc", good, 1.5)
    assert not scored


def test_a_threshold_holds_for_its_supports_and_views_only(tiny_model: Path, tmp_path: Path, good: list[Path]) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll_files("disc", good[:1])
    calibrate_class(inspector, "disc", good[1:], 0.25)
    assert inspector.inspect(part(8), class_name="disc").threshold is not None
    one_view = Inspector.open(tiny_model, tmp_path / "bank", threads=1, views=["original"])
    assert one_view.inspect(part(8), class_name="disc").verdict == "unknown"
    inspector.enroll("disc", [part(8)])
    grown = inspector.inspect(part(9), class_name="disc")
    assert (
        grown.promise is not None and grown.promise.normals == 5
    )  # two supports, and the three images held out before


def test_lean_import_brings_no_torch() -> None:
    code = (
        "import sys; import visionad_runtime.cli; from visionad_runtime import Inspector;"
        "heavy = {'torch', 'timm', 'onnx', 'onnxscript', 'sklearn', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_first_image_imports_no_package(tiny_model: Path, good: list[Path], tmp_path: Path) -> None:
    """What is imported then makes the first part wait, mostly the first defect."""
    Inspector.open(tiny_model, tmp_path / "bank").enroll_files("disc", good[:2])
    np.save(tmp_path / "defect.npy", part(7, defect=True))
    code = (
        "import sys; import numpy as np; from visionad_runtime import Inspector;"
        f"inspector = Inspector.open({str(tiny_model)!r}, {str(tmp_path / 'bank')!r});"
        f"image = np.load({str(tmp_path / 'defect.npy')!r}); before = set(sys.modules);"
        "assert inspector.inspect(image).regions;"
        "more = {m.partition('.')[0] for m in set(sys.modules)} - {m.partition('.')[0] for m in before}; assert not more, more"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def inspected(inspector: Inspector, image: NDArray[np.uint8], times: int) -> list[Result]:
    """By the same bank, without an index at first and then with one."""
    found = []
    for _ in range(times):
        found.append(inspector.inspect(image, class_name="disc"))
        workers.drain_background()
    return found


@pytest.mark.skipif(not native.supported_builds(), reason="no build of the search runs on this CPU and system")
def test_a_large_bank_gets_an_index_that_gives_the_same(
    tiny_model: Path, good: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank")
    inspector.enroll_files("disc", good[:3])
    image = part(7, defect=True)
    plain = inspector.inspect(image, class_name="disc")
    monkeypatch.setattr("visionad_runtime.search.pruning.MIN_ROWS", 3 * 6 * 16)
    monkeypatch.setattr("visionad_runtime.search.pruning.MAX_RELATIVE_COST", 1000)
    assert inspector.bank is not None and isinstance(inspector.pipeline, HostPipeline)
    bank, index = inspector.bank.classes["disc"].rois[0], inspector.pipeline.index
    rows = bank.rows("flip")
    done = threading.Event()
    workers.submit_background(lambda: done.wait(60))  # so that no index is built yet
    for state in (IndexState.REQUESTED, IndexState.BUILDING, IndexState.BUILDING):
        assert same(inspector.inspect(image, class_name="disc"), plain)
        assert {index.state(bank, view) for view in inspector.views} == {state}
    assert index.index_for(bank, "flip", rows, rows[:16]) is rows
    done.set()
    workers.drain_background()
    assert {index.state(bank, view) for view in inspector.views} == {IndexState.READY}
    assert all(
        isinstance(index.index_for(bank, view, bank.rows(view), rows[:16]), PrunedIndex) for view in inspector.views
    )
    assert all(same(one, plain) for one in inspected(inspector, image, 3))


def test_a_bank_whose_index_cannot_be_built_is_searched_as_it_is(
    tiny_model: Path, good: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank")
    inspector.enroll_files("disc", good[:1])
    monkeypatch.setattr("visionad_runtime.search.pruning.MIN_ROWS", 1)

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("visionad_runtime.search.pruning.build_index", no_memory)
    found = inspected(inspector, part(7, defect=True), 3)
    assert same(found[0], found[1]) and same(found[0], found[2])


def test_no_threshold_for_supports_that_were_not_scored(tiny_model: Path, tmp_path: Path, good: list[Path]) -> None:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll_files("disc", good[:2])

    def meanwhile() -> None:
        bank = Bank.open(tmp_path / "bank")
        if len(bank.classes["disc"].entry.images) == 2:
            bank.remove("disc", sha256_file(good[0]))

    with pytest.raises(BankError, match="was changed while it was being calibrated"):
        calibrate_class(inspector, "disc", good, 0.25, step=meanwhile)
    assert Bank.open(tmp_path / "bank").classes["disc"].entry.threshold is None
