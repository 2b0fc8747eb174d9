"""Replay: equal bits over many bank versions, and every kind of difference found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.store import Bank
from visionad_runtime.cli.main import run
from visionad_runtime.cli.results import ResultWriter
from visionad_runtime.errors import BankError
from visionad_runtime.formats.files import sha256_bytes
from visionad_runtime.formats.roi import make_spec, parse_roi
from visionad_runtime.station.judging.judge import Judge
from visionad_runtime.station.watch.arrivals import ArrivalLoop
from visionad_runtime.station.watch.folder_source import FolderSource
from visionad_runtime.station.watch.journal import Journal
from visionad_runtime.teaching.replay import Replay, Replayed, Target, compare

from tests.data import part, slow

Line = dict[str, Any]


@pytest.fixture(scope="module")
def line(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bank of several versions, images, and a journal of 40 lines over these versions. Read only."""
    return make_line(tiny_model, tmp_path_factory.mktemp("line"), versions=4, lines=40)


def make_line(model: Path, folder: Path, versions: int, lines: int) -> Path:
    """Enroll one support a version and inspect images in between, some of them with a defect, some routed."""
    images = folder / "images"
    images.mkdir()
    paths = []
    for i in range(12):
        image = part(100 + i, defect=i % 3 == 0)
        paths.append(images / f"{i:03d}.png")
        cv2.imwrite(str(paths[-1]), image)
    records = []
    with Inspector.open(model, folder / "bank", threads=1) as inspector:
        inspector.enroll("grid", [part(0, kind="grid"), part(1, kind="grid")])
        for version in range(versions - 1):
            inspector.enroll("disc", [part(version)])
            count = lines * (version + 1) // (versions - 1) - len(records)
            for i in range(count):
                path = paths[(7 * version + i) % len(paths)]
                given = "disc" if i % 2 else None
                (one,) = inspector.inspect_files([path], class_name=given, evidence=i % 4 == 0)
                assert one.result is not None
                records.append(journal_line(path, images, one.result.to_dict(str(path))))
    write(folder / "journal.jsonl", records)
    return folder


def journal_line(path: Path, images: Path, facts: Line) -> Line:
    """Return a line as the journal of `watch` has it."""
    data = path.read_bytes()
    stamp = {"name": path.relative_to(images).as_posix(), "bytes": len(data), "modified_ns": 1, "changed_ns": 2}
    return {**stamp, "sha256": sha256_bytes(data), "time": "2026-11-30T00:00:00.000+00:00", **facts}


def write(path: Path, records: Sequence[Line | str]) -> Path:
    texts = [one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in records]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def read(path: Path) -> list[Line]:
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture
def own(line: Path, tmp_path: Path) -> Path:
    """A copy of the line, whose records name the images of the copy."""
    copy = shutil.copytree(line, tmp_path / "line")
    records = [{**one, "image": str(copy / "images" / one["name"])} for one in read(copy / "journal.jsonl")]
    write(copy / "journal.jsonl", records)
    return copy


@pytest.fixture
def replay(tiny_model: Path) -> Iterator[Callable[..., list[Replayed]]]:
    with Inspector.open(tiny_model, threads=1) as inspector:

        def replayed(folder: Path, **options: Any) -> list[Replayed]:
            one = Replay(inspector, folder / "bank", **options)
            try:
                return list(one.run(folder / "journal.jsonl"))
            finally:
                one.close()

        yield replayed


def test_all_lines_are_equal(line: Path, replay: Callable[..., list[Replayed]]) -> None:
    records = read(line / "journal.jsonl")
    assert {one["verdict"] for one in records} >= {"anomalous", "review"}
    assert {one["bank_version"] for one in records} == {2, 3, 4}
    assert any(one["regions"] and one["regions"][0]["evidence"] for one in records)
    outcomes = replay(line)
    assert [one.line for one in outcomes] == list(range(1, 41))
    assert all(one.difference is None and one.skipped is None for one in outcomes)


@pytest.mark.parametrize(("versions", "lines"), [slow("replay", 20, 1000)])
def test_many_lines_over_many_versions_are_equal(
    tiny_model: Path, tmp_path: Path, replay: Callable[..., list[Replayed]], versions: int, lines: int
) -> None:
    folder = make_line(tiny_model, tmp_path, versions + 1, lines)  # the first version has the class `grid` alone
    assert len({one["bank_version"] for one in read(folder / "journal.jsonl")}) == versions
    outcomes = replay(folder)
    assert len(outcomes) == lines
    assert all(one.difference is None and one.skipped is None for one in outcomes)


def test_the_journal_of_watch_with_evidence(
    tiny_model: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines that `watch` writes while supports are added meanwhile are equal when they are replayed."""
    arriving, journal = tmp_path / "in", tmp_path / "journal.jsonl"
    arriving.mkdir()
    for i in range(6):
        cv2.imwrite(str(arriving / f"{i}.png"), part(60 + i, defect=i % 2 == 0))
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll_files("disc", good[:2])
        stop: list[int] = []

        def pause(_: float) -> bool:
            stop.append(1)
            return len(stop) > 200

        source = FolderSource(arriving, lambda _: (), 0.0, pause)
        output = ResultWriter(True, None, tmp_path / "overlays", arriving, tmp_path / "bank")
        book = Journal(journal, arriving)
        seen: list[str] = []

        def notify(text: str) -> None:
            seen.append(text)

        judge = Judge(inspector, notify, evidence=True)
        loop = ArrivalLoop(judge, source, output, book, "disc", None, notify)
        loop.run(lambda: sum(output.counts.values()) >= 6)
        book.close()
    lines = read(journal)
    assert len(lines) == 6
    assert all(region["evidence"]["support"] for one in lines for region in one["regions"])
    assert any(one["regions"] for one in lines)
    capsys.readouterr()
    assert run(["replay", str(tiny_model), str(tmp_path / "bank"), str(journal)]) == 0
    assert "6 lines replayed: 6 equal, 0 differ" in capsys.readouterr().out


def test_lines_of_earlier_releases(own: Path, replay: Callable[..., list[Replayed]]) -> None:
    new = ("sha256", "changed_ns", "model", "bank", "p_value", "promise", "class_mismatch")
    records = [{k: v for k, v in one.items() if k not in new} for one in read(own / "journal.jsonl")]
    for one in records:
        one["regions"] = [{k: v for k, v in region.items() if k != "evidence"} for region in one["regions"]]
    write(own / "journal.jsonl", records)
    assert all(one.difference is None for one in replay(own))
    records[3]["score"] = float(np.nextafter(records[3]["score"], 1))
    write(own / "journal.jsonl", records)
    differing = [one for one in replay(own) if one.difference is not None]
    assert [(one.line, one.difference.stage) for one in differing if one.difference] == [(4, "score")]


def test_a_changed_image_is_named(own: Path, replay: Callable[..., list[Replayed]]) -> None:
    records = read(own / "journal.jsonl")
    changed, missing = records[0]["name"], records[1]["name"]
    path = own / "images" / changed
    image = cv2.imread(str(path))
    assert image is not None
    image[50, 50, 0] ^= 1
    cv2.imwrite(str(path), image)
    (own / "images" / missing).unlink()
    for record, one in zip(records, replay(own), strict=True):
        if record["name"] in (changed, missing):
            assert one.difference is not None and one.difference.stage == "image"
            assert one.difference.got.startswith("changed" if record["name"] == changed else "missing")
        else:
            assert one.difference is None


def test_images_are_found_elsewhere_by_name(own: Path, tmp_path: Path, replay: Callable[..., list[Replayed]]) -> None:
    moved = tmp_path / "archive"
    (own / "images").rename(moved)
    assert all(one.difference is not None and one.difference.stage == "image" for one in replay(own))
    assert all(one.difference is None for one in replay(own, images=moved))


def test_a_changed_support_is_named(own: Path, replay: Callable[..., list[Replayed]]) -> None:
    bank = Bank.open(own / "bank")
    tokens = bank.classes["disc"].entry.images[1].tokens  # enrolled in version 3
    path = own / "bank" / "supports" / f"{tokens}.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    for record, one in zip(read(own / "journal.jsonl"), replay(own), strict=True):
        if record["bank_version"] < 3:
            assert one.difference is None
        else:
            assert one.difference is not None and one.difference.stage == "bank"
            assert str(tokens) in one.difference.got and "damaged" in one.difference.got


def test_a_changed_threshold_is_named(own: Path, replay: Callable[..., list[Replayed]]) -> None:
    path = own / "bank" / "history" / "000003.json"
    manifest = json.loads(path.read_text())
    manifest["classes"]["disc"]["threshold"] = float(np.nextafter(manifest["classes"]["disc"]["threshold"], 1))
    path.write_text(json.dumps(manifest))
    for record, one in zip(read(own / "journal.jsonl"), replay(own), strict=True):
        if record["bank_version"] == 3:
            assert one.difference is not None
            assert one.difference.stage == ("threshold" if record["threshold"] is not None else "bank")
        else:
            assert one.difference is None


def test_a_bank_with_another_content_is_named(own: Path, replay: Callable[..., list[Replayed]]) -> None:
    """A support is exchanged in the history, with tokens that are whole: the scores differ, and the bank explains it."""
    path = own / "bank" / "history" / "000004.json"
    manifest = json.loads(path.read_text())
    images = manifest["classes"]["disc"]["images"]
    images[0]["tokens"] = manifest["classes"]["grid"]["images"][0]["tokens"]
    path.write_text(json.dumps(manifest))
    (own / "bank" / "manifest.json").write_text(json.dumps(manifest))
    stages = {
        one.difference.stage if one.difference else None
        for record, one in zip(read(own / "journal.jsonl"), replay(own), strict=True)
        if record["bank_version"] == 4
    }
    assert stages == {"bank"}


def test_a_version_that_is_not_kept_is_named(own: Path, replay: Callable[..., list[Replayed]]) -> None:
    (own / "bank" / "history" / "000002.json").unlink()
    differing = [one for one in replay(own) if one.difference]
    assert len(differing) == sum(one["bank_version"] == 2 for one in read(own / "journal.jsonl")) > 0
    assert all(one.difference and one.difference.stage == "bank" for one in differing)
    assert "has no version 2" in str(differing[0].difference)


def test_one_changed_bit_of_a_weight_is_named(
    own: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    graph = model / "backbone.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    assert run(["replay", str(model), str(own / "bank"), str(own / "journal.jsonl"), "--json"]) == 1
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert all(one["stage"] == "model" and "backbone.onnx is damaged" in one["got"] for one in lines[:-1])
    assert lines[-1] == {
        "lines": 40, "same": 0, "differ": 40, "errors": 0, "unreadable": 0, "stages": {"model": 40},
    }  # fmt: skip

    # The same, with a manifest that fits: the digest of the model is another one.
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["files"]["backbone.onnx"] = sha256_bytes(graph.read_bytes())
    (model / "manifest.json").write_text(json.dumps(manifest))
    with pytest.MonkeyPatch.context() as patch:
        # The self-test may refuse it before; what is tested here is the comparison.
        patch.setattr("visionad_runtime.engine.registry.self_test", lambda *_, **__: None, raising=False)
        assert run(["replay", str(model), str(own / "bank"), str(own / "journal.jsonl"), "--json"]) == 1
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert all(one["stage"] == "model" for one in lines[:-1])


def test_every_line_is_counted(own: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = read(own / "journal.jsonl")[:2]
    broken = {"image": "x.png", "error": "x.png is truncated"}
    write(own / "journal.jsonl", [records[0], broken, '{"image": "cut', '["no record"]', "", records[1]])
    assert run(["replay", str(tiny_model), str(own / "bank"), str(own / "journal.jsonl"), "--json"]) == 1
    printed = capsys.readouterr()
    lines = [json.loads(text) for text in printed.out.splitlines()]
    assert [one.get("same") for one in lines] == [True, True, 2]
    assert lines[-1] == {"lines": 6, "same": 2, "differ": 0, "errors": 1, "unreadable": 3, "stages": {}}
    assert printed.err.count("is no record") == 3


def test_flips_of_a_candidate(own: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A draft bank with another threshold for `disc` flips exactly the verdicts that lie between both thresholds."""
    draft = shutil.copytree(own / "bank", own / "draft")
    records = [one for one in read(own / "journal.jsonl") if one["bank_version"] == 4 and one["class"] == "disc"]
    write(own / "journal.jsonl", records)
    scores = sorted(one["score"] for one in records)
    middle = scores[len(scores) // 2]
    bank = Bank.open(draft)

    def raised(current):  # type: ignore[no-untyped-def]
        return current.entry.model_copy(update={"threshold": middle, "review_threshold": None})

    bank.update("disc", "a draft", raised)
    expected = [
        (i, one["verdict"], "anomalous" if one["score"] > middle else "ok")
        for i, one in enumerate(records, 1)
        if (one["verdict"] == "anomalous") != (one["score"] > middle) or one["verdict"] == "review"
    ]
    assert expected
    command = ["replay", str(tiny_model), str(own / "bank"), str(own / "journal.jsonl")]
    assert run([*command, "--candidate", str(draft), "--json"]) == 0
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    flips = [(one["line"], one["expected"]["verdict"], one["got"]["verdict"]) for one in lines[:-1] if not one["same"]]
    assert flips == expected
    assert run([*command, "--candidate", str(draft)]) == 0
    assert f"{len(expected)} verdicts of {len(records)} would flip" in capsys.readouterr().out
    assert run([*command, "--bank-version", "4"]) == 0
    assert f"0 verdicts of {len(records)} would flip" in capsys.readouterr().out
    assert run([*command, "--bank-version", "4", "--candidate", str(draft)]) == 2
    assert run([*command, "--bank-version", "77"]) == 2
    assert "has no version 77" in capsys.readouterr().err


def test_a_candidate_for_images_of_another_size(
    own: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = make_spec([parse_roi("middle=4,4,50,50")], (64, 64))
    with Inspector.open(tiny_model, own / "draft", threads=1) as inspector:
        inspector.enroll("disc", [cv2.resize(part(seed), (64, 64)) for seed in range(2)], roi=spec)
        inspector.enroll("grid", [part(0, kind="grid")])
    records = [one for one in read(own / "journal.jsonl") if one["class_source"] == "given"][:3]
    write(own / "journal.jsonl", records)
    command = ["replay", str(tiny_model), str(own / "bank"), str(own / "journal.jsonl")]
    assert run([*command, "--candidate", str(own / "draft")]) == 1
    printed = capsys.readouterr().out
    assert "0 verdicts of 3 would flip; 3 lines could not be compared (3 image)" in printed
    assert "64x64" in printed or "64 x 64" in printed


def test_kept_tokens_encode_nothing_the_second_time(own: Path, tiny_model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "tokens"
    counts = []
    for _ in range(2):
        with Inspector.open(tiny_model, threads=1) as inspector:
            one = Replay(inspector, own / "bank", tokens=kept)
            assert all(item.difference is None for item in one.run(own / "journal.jsonl"))
            assert one.tokens is not None
            counts.append((one.tokens.computed, one.tokens.reused > 0))
            one.close()
    assert counts == [(12 * 3, True), (0, True)]  # twelve images in three views

    victim = next(kept.glob("??/*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:100])
    with Inspector.open(tiny_model, threads=1) as inspector:
        one = Replay(inspector, own / "bank", tokens=kept)
        assert all(item.difference is None for item in one.run(own / "journal.jsonl"))
        assert one.tokens is not None and one.tokens.computed == 1  # the damaged one
        one.close()
        changed = Replay(inspector, own / "bank", tokens=kept, target=Target(own / "bank", 2))
        assert all(
            item.difference is None or item.difference.stage == "verdict" for item in changed.run(own / "journal.jsonl")
        )
        assert changed.tokens is not None and changed.tokens.computed == 0
        changed.close()


def test_mistakes_of_the_user(own: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["replay", str(tiny_model), str(own / "bank")]
    assert run([*command, str(tmp_path / "none.jsonl")]) == 2
    assert run([*command, str(write(tmp_path / "empty.jsonl", []))]) == 2
    assert run([*command, str(own / "journal.jsonl"), "--images", str(tmp_path / "none")]) == 2
    assert run(["replay", str(tmp_path / "none"), str(own / "bank"), str(own / "journal.jsonl")]) == 2
    assert run(["replay", str(tiny_model), str(tmp_path / "none"), str(own / "journal.jsonl")]) == 2
    (tmp_path / "file").write_text("")
    assert run([*command, str(own / "journal.jsonl"), "--tokens", str(tmp_path / "file")]) == 2
    assert "Traceback" not in capsys.readouterr().err


GOT: Line = {
    "image": "a.png", "class": "disc", "class_source": "given", "class_margin": None, "class_mismatch": None, "score": 0.5,
    "threshold": 0.4, "verdict": "anomalous", "p_value": 0.2, "bank_version": 3, "bank": "b", "model": "m",
    "promise": {"normals": 4, "void": False}, "regions": [{"bbox": [1, 2, 3, 4], "score": 0.6}], "precision": "fp32",
    "backend": "onnxruntime-cpu", "timings_ms": {"total": 1.0},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({}, None),
        ({"timings_ms": {"total": 9.0}}, None),
        ({"promise": {"normals": 4, "void": True}}, None),
        ({"backend": "openvino"}, None),
        ({"backend": "openvino", "score": 0.51}, "backend"),
        ({"precision": "bf16", "score": 0.51}, "precision"),
        ({"class_source": "routed"}, "routing"),
        ({"class_mismatch": "grid"}, "routing"),
        ({"score": float(np.nextafter(0.5, 1))}, "score"),
        ({"threshold": 0.41, "verdict": "ok"}, "threshold"),
        ({"promise": {"normals": 5, "void": False}}, "threshold"),
        ({"p_value": None}, "threshold"),
        ({"verdict": "ok"}, "verdict"),
        ({"regions": []}, "regions"),
        ({"regions": [{"bbox": [1, 2, 3, 5], "score": 0.6}]}, "regions"),
        ({"bank": "c"}, "bank"),
        ({"bank": "c", "score": 0.51}, "bank"),
        ({"bank": "c", "threshold": 0.41}, "threshold"),
    ],
)
def test_the_stage_of_a_difference(changes: Line, stage: str | None) -> None:
    difference = compare({**GOT, **changes}, GOT)
    assert (None if difference is None else difference.stage) == stage


def test_a_candidate_of_another_model_is_refused(own: Path, tiny_model: Path) -> None:
    draft = shutil.copytree(own / "bank", own / "draft")
    manifest = json.loads((draft / "manifest.json").read_text())
    manifest["identity"]["weights_sha256"] = "0" * 64
    (draft / "manifest.json").write_text(json.dumps(manifest))
    with Inspector.open(tiny_model, threads=1) as inspector, pytest.raises(BankError, match="weights_sha256"):
        Replay(inspector, own / "bank", target=Target(draft))
