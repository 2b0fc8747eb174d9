"""Kept tokens and distances: the same bits as without, and no more work than what is new."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save
from visionad_runtime import Inspector
from visionad_runtime.bank.memory_bank import MemoryBank
from visionad_runtime.bank.store import Bank
from visionad_runtime.formats.roi import make_spec, parse_roi
from visionad_runtime.pipeline.bank_search import bank_search
from visionad_runtime.preprocess import encoding_names
from visionad_runtime.teaching import kept_pipeline, replay
from visionad_runtime.teaching.kept_images import FileIndex, image_digest, pixels_of
from visionad_runtime.teaching.kept_pipeline import KeptPipeline
from visionad_runtime.teaching.kept_tokens import KeptTokensEngine

from tests.data import near_ties, part, patches, unit

VIEWS = ("original", "flip", "clamp")
BLOCKS = encoding_names(VIEWS)
NAMES = ["a" * 64, "b" * 64, "c" * 64]
"""Of the queries in the three views."""


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Iterator[Inspector]:
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as opened:
        yield opened


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each search that a pipeline makes."""
    made, nearest = list[int](), kept_pipeline.nearest

    def counted(tokens: Any, rows: Any, **options: Any) -> Any:
        made.append(len(getattr(rows, "rows", rows)))
        return nearest(tokens, rows, **options)

    monkeypatch.setattr(kept_pipeline, "nearest", counted)
    return made


def pipeline_of(inspector: Inspector, folder: Path) -> KeptPipeline:
    identity = inspector.manifest.identity
    engine = KeptTokensEngine(inspector.engine, folder, inspector.digest, identity)
    return KeptPipeline(engine, identity, inspector.scoring, threads=1)


@pytest.mark.parametrize("kind", [unit, patches, near_ties])
@pytest.mark.parametrize("with_defects", [False, True])
@pytest.mark.parametrize("tiles", [1, 2])
def test_distances_have_the_bits_of_one_search(
    inspector: Inspector, tmp_path: Path, kind: Any, with_defects: bool, tiles: int
) -> None:
    features = kind(0, len(BLOCKS) * 3 * tiles * 36, 16).reshape(len(BLOCKS), 3 * tiles, 36, 16)
    defects = kind(1, len(BLOCKS) * 5, 16).reshape(len(BLOCKS), 5, 16) if with_defects else None
    bank = MemoryBank("x", "image", tiles, BLOCKS, features, defects)
    for view in VIEWS:
        near = bank.rows(view)[:5] if defects is None else bank.rows_with_defects(view)[-5:]
        queries = np.concatenate([kind(2, 30, 16), near])
        expected = bank_search(bank, threads=1)(view, queries)
        for _ in range(2):  # computed, then read
            got = pipeline_of(inspector, tmp_path / "tokens")._search(bank, NAMES)(view, queries)
            np.testing.assert_array_equal(got, expected, strict=True)


def test_a_new_support_alone_is_searched(inspector: Inspector, tmp_path: Path, searches: list[int]) -> None:
    features = unit(0, len(BLOCKS) * 4 * 36, 16).reshape(len(BLOCKS), 4, 36, 16)
    queries, rows = unit(1, 30, 16), 6 * 36
    three, four, others = (
        MemoryBank("x", "image", 1, BLOCKS, np.ascontiguousarray(features[:, kept]))
        for kept in ([0, 1, 2], [3, 1, 0, 2], [3, 1])
    )
    for bank, expected in ((three, [rows] * 3), (three, []), (four, [rows]), (others, [])):
        searches.clear()
        got = pipeline_of(inspector, tmp_path / "tokens")._search(bank, NAMES)("flip", queries)
        assert searches == expected
        np.testing.assert_array_equal(got, bank_search(bank, threads=1)("flip", queries))


def test_results_of_known_images_are_neither_prepared_nor_encoded(
    inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, searches: list[int]
) -> None:
    inspector.enroll("disc", [part(number) for number in range(2)])
    inspector.enroll("grid", [part(number, kind="grid") for number in range(2)])
    images = [part(9), part(9, defect=True), part(3, kind="grid"), cv2.cvtColor(part(8), cv2.COLOR_BGR2GRAY)]
    expected = [untimed(inspector.inspect(image, color="rgb")) for image in images]
    assert inspector.bank is not None
    for known in (False, True):
        if known:
            monkeypatch.setattr(KeptPipeline, "_prepare", lambda *_: pytest.fail("it was prepared again"))
        pipeline = pipeline_of(inspector, tmp_path / "tokens")
        searches.clear()
        with inspector.with_bank(inspector.bank, inspector.scoring, pipeline._kept, pipeline) as other:
            got = [untimed(result) for result in other.inspect_batch(images, color="rgb")]
        assert got == expected
        assert (pipeline._kept.computed, len(searches)) == ((0, 0) if known else (12, 24))


def untimed(result: Any) -> dict[str, Any]:
    return {name: value for name, value in result.to_dict("x").items() if name != "timings_ms"}


def test_images_that_differ_in_shape_alone_are_told_apart(inspector: Inspector, tmp_path: Path) -> None:
    image = np.arange(64 * 96 * 3, dtype=np.uint64).astype(np.uint8).reshape(64, 96, 3)
    other = image.reshape(96, 64, 3)
    inspector.enroll("x", [image])
    pipeline = pipeline_of(inspector, tmp_path / "tokens")
    assert inspector.bank is not None
    with inspector.with_bank(inspector.bank, inspector.scoring, pipeline._kept, pipeline) as kept:
        for one in (image, other, image):
            assert kept.inspect(one).score == inspector.inspect(one).score
    assert inspector.inspect(image).score != inspector.inspect(other).score


def test_damaged_files_cost_time_only(inspector: Inspector, tmp_path: Path, searches: list[int]) -> None:
    inspector.enroll("disc", [part(number) for number in range(2)])
    assert inspector.bank is not None
    expected = inspector.inspect(part(9)).score
    folder = tmp_path / "tokens"

    def inspected() -> KeptPipeline:
        assert inspector.bank is not None
        pipeline = pipeline_of(inspector, folder)
        searches.clear()
        with inspector.with_bank(inspector.bank, inspector.scoring, pipeline._kept, pipeline) as other:
            assert other.inspect(part(9)).score == expected
        return pipeline

    inspected()
    (names,) = (folder / "images").rglob("*.txt")
    text, distances = names.read_text(), sorted((folder / "distances").rglob("*.safetensors"))
    assert len(text.splitlines()) == len(distances) == 3
    for damaged in (text[:-1], text[:100], "../" + text[3:], "", "\n\n"):
        names.write_text(damaged)
        assert inspected()._kept.computed == 0 and not searches
        assert names.read_text() == text
    names.write_bytes(b"\xff" * 10)
    inspected()
    for path in distances:
        path.write_bytes(path.read_bytes()[:50])
    inspected()
    assert len(searches) == 6  # two supports in three views
    inspected()
    assert not searches
    next(path for path in folder.glob("??/*.safetensors")).write_bytes(b"")
    assert inspected()._kept.computed == 1


def test_tokens_that_are_computed_again_drop_their_distances(inspector: Inspector, tmp_path: Path) -> None:
    """Another machine may have computed the older ones, with other bits."""
    inspector.enroll("disc", [part(number) for number in range(2)])
    assert inspector.bank is not None
    folder, scores = tmp_path / "tokens", []
    for step in ("first", "other distances", "tokens again"):
        if step == "other distances":
            for path in (folder / "distances").rglob("*.safetensors"):
                path.write_bytes(save({name: d + np.float32(0.25) for name, d in load(path.read_bytes()).items()}))
        if step == "tokens again":
            for path in folder.glob("??/*.safetensors"):
                path.write_bytes(b"")
        pipeline = pipeline_of(inspector, folder)
        with inspector.with_bank(inspector.bank, inspector.scoring, pipeline._kept, pipeline) as other:
            scores.append(other.inspect(part(9)).score)
    assert scores[0] == scores[2] == inspector.inspect(part(9)).score
    assert scores[1] > scores[0] + 0.2


def test_a_file_is_decoded_once(tmp_path: Path) -> None:
    decoded = list[str]()

    def image(data: bytes, depth: int | None = None) -> NDArray[np.uint8]:
        def decode() -> NDArray[np.uint8]:
            decoded.append(data.decode())
            return pixels[data.decode()]

        return FileIndex(tmp_path / "files", depth).image(data, decode)

    pixels = {"color": part(1), "gray": part(2)[:, :, 0].copy()}
    for name, expected in pixels.items():
        for known in (False, True):
            decoded.clear()
            found = image(name.encode())
            assert found.shape == expected.shape and found.dtype == np.uint8
            assert image_digest(found) == image_digest(expected) and (not decoded) == known
            np.testing.assert_array_equal(pixels_of(found), expected)
            assert decoded == [name]
    decoded.clear()
    image(b"color", 12)
    assert decoded == ["color"]  # pixels depend on the depth
    for damaged in (
        "",
        "96 128 3",
        "96 128 4 " + "a" * 40,
        "0 5 " + "a" * 40,
        "96 128 3 " + "a" * 39,
        "x 2 " + "a" * 40,
    ):
        for path in (tmp_path / "files").rglob("*.txt"):
            path.write_text(damaged)
        decoded.clear()
        assert image_digest(image(b"color")) == image_digest(part(1)) and decoded == ["color"]
    assert image_digest(part(1)) != image_digest(part(2)) != image_digest(part(2).reshape(128, 96, 3))


@pytest.mark.parametrize("tiles", ["", "@2x2"])
def test_a_second_replay_decodes_nothing_but_tiles(
    inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiles: str
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        cv2.imwrite(str(path), part(20 + number, defect=number % 2 == 0))
    roi = make_spec([parse_roi(f"all=0,0,128,96{tiles}")], (128, 96)) if tiles else None
    inspector.enroll("disc", [part(number) for number in range(3)], roi=roi)
    lines = [json.dumps(one.result.to_dict(str(one.path))) for one in inspector.inspect_files(paths) if one.result]
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    decoded, decode = list[Path](), replay.decode.decode
    monkeypatch.setattr(
        replay.decode, "decode", lambda data, path, depth: (decoded.append(path), decode(data, path, depth))[1]
    )
    for known in (False, True):
        decoded.clear()
        one = replay.Replay(inspector, tmp_path / "bank", tokens=tmp_path / "tokens")
        assert [item.difference for item in one.run(tmp_path / "records.jsonl")] == [None] * 4
        assert one.tokens is not None and (one.tokens.computed == 0) == known
        one.close()
        assert sorted(decoded) == ([] if known and not tiles else paths)


def test_a_folder_that_cannot_be_written_changes_no_result(inspector: Inspector, tmp_path: Path) -> None:
    inspector.enroll("disc", [part(number) for number in range(2)])
    folder = tmp_path / "tokens"
    folder.mkdir()
    for name in ("images", "distances"):
        (folder / name).write_text("no folder")
    pipeline = pipeline_of(inspector, folder)
    assert inspector.bank is not None
    with inspector.with_bank(inspector.bank, inspector.scoring, pipeline._kept, pipeline) as other:
        assert other.inspect(part(9)).score == inspector.inspect(part(9)).score


def test_tiles_keep_their_distances(inspector: Inspector, tmp_path: Path, searches: list[int]) -> None:
    spec = make_spec([parse_roi("all=0,0,128,96@2x2")], (128, 96))
    inspector.enroll("disc", [part(number) for number in range(2)], roi=spec)
    inspector.enroll("grid", [part(number, kind="grid") for number in range(2)])
    expected = [untimed(inspector.inspect(image)) for image in (part(9), part(3, kind="grid"))]
    for known in (False, True):
        bank = Bank.open(tmp_path / "bank")
        pipeline = pipeline_of(inspector, tmp_path / "tokens")
        searches.clear()
        with inspector.with_bank(bank, inspector.scoring, pipeline._kept, pipeline) as other:
            got = [untimed(other.inspect(image)) for image in (part(9), part(3, kind="grid"))]
        assert got == expected
        assert (pipeline._kept.computed == 0) == known and bool(searches) != known
