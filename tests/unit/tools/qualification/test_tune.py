"""`visionad tune`: figures recomputed, early stopping, resumption, recommendation, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.cli.main import run
from visionad_runtime.errors import VisionADError
from visionad_runtime.tools.qualification import tune as tuning
from visionad_runtime.tools.qualification.choice import (
    Candidate,
    Measured,
    accuracy,
    auroc,
    fewer_shots_suffice,
    is_beaten,
    is_hopeless,
    pareto,
    recommend,
    standard_error,
)
from visionad_runtime.tools.qualification.inputs import read_inputs
from visionad_runtime.tools.qualification.tune import Choices, choose_images, tune
from visionad_runtime.tools.qualification.tune_page import tune_page

from tests.data import part


def row(latency: float, merit: float | None, shots: int = 1, spread: float = 0.1, **more: Any) -> Measured:
    candidate = Candidate("m", "", "paper", "onnxruntime-cpu", "fp32", shots)
    return Measured(candidate, "measured", latency, 1.0, merit, merit, spread=spread, **more)


def test_auroc_counts_pairs_and_halves_choose_and_report() -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(0, 1, 55).tolist(), rng.normal(1, 1, 50).tolist()

    def pairs(a: list[float], b: list[float]) -> float:
        return float(np.mean([y > x for x in a for y in b]))

    figures = accuracy(good, bad)
    assert figures["auroc"] == pytest.approx(pairs(good, bad))
    assert figures["auroc_choose"] == pytest.approx(pairs(good[::2], bad[::2]))
    assert figures["auroc_report"] == pytest.approx(pairs(good[1::2], bad[1::2]))
    assert figures["promised"] == pytest.approx(1 / 56)
    assert figures["caught"]["events"] == sum(s > max(good) for s in bad)
    assert "auroc_report" not in accuracy(good[:10], bad)
    assert "auroc" not in accuracy(good, [])


def test_the_standard_error_is_that_of_simulations() -> None:
    rng = np.random.default_rng(0)
    values = [auroc(rng.exponential(1, 15).tolist(), rng.exponential(3, 15).tolist()) for _ in range(400)]
    assert standard_error(float(np.mean(values)), 15, 15) == pytest.approx(np.std(values), rel=0.15)


def test_only_clearly_worse_set_ups_are_hopeless() -> None:
    good, bad = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.15, 0.25, 0.35, 0.45, 0.05, 0.1, 0.2, 0.3]
    assert is_hopeless(good, bad, 1.0)
    assert not is_hopeless(good, bad, None)
    assert not is_hopeless(good, [s + 1 for s in bad], 1.0)
    assert not is_hopeless(good[:3], bad[:3], 1.0)


def test_the_most_accurate_within_the_budget_is_recommended() -> None:
    rows = [row(100, 0.99, 4), row(50, 0.97), row(60, 0.98), row(105, 0.99, 2), row(300, 1.0)]
    assert recommend(rows, 200) == rows[3]  # as fast as the first within a tenth, with fewer shots
    assert recommend(rows, None) == rows[4]
    assert recommend(rows, 55) == rows[1]
    assert recommend(rows, 10) is None
    assert [r.latency_ms for r in pareto(rows)] == [50, 60, 100, 300]
    without_bad = [row(50, None, spread=0.2), row(50, None, spread=0.1)]
    assert recommend(without_bad, None) == without_bad[1]


def test_what_is_slower_than_a_perfect_one_cannot_be_recommended() -> None:
    rows = [row(100, 0.9), row(200, 0.999, 2)]
    assert not is_beaten(1000, rows[:1]) and not is_beaten(1000, []) and not is_beaten(1000, [row(10, None)])
    assert not is_beaten(201, rows) and not is_beaten(229, rows)
    for latency in (231, 400):
        assert is_beaten(latency, rows)
        for merit in (0.5, 0.999, 1.0):
            for shots in (1, 8):
                assert recommend([*rows, row(latency, merit, shots)], None) == rows[1]
    assert recommend([*rows, row(229, 0.999, 1)], None) != rows[1]  # why the limit is no lower


def test_more_shots_of_a_perfect_or_beaten_set_up_are_spared() -> None:
    def candidate(shots: int, preset: str = "paper") -> Candidate:
        return Candidate("m", "", preset, "onnxruntime-cpu", "fp32", shots)

    perfect, beaten = row(100, 0.999, 2), Measured(candidate(2), "beaten", 500.0)
    for rows in ([perfect], [beaten]):
        assert fewer_shots_suffice(candidate(4), rows)
        assert not fewer_shots_suffice(candidate(1), rows) and not fewer_shots_suffice(candidate(2), rows)
        assert not fewer_shots_suffice(candidate(4, "full-image"), rows)
    assert not fewer_shots_suffice(candidate(4), [row(100, 0.99, 2), row(100, None, 2)])
    rows = [perfect, row(90, 0.9, 1)]
    for shots in (4, 8):  # no slower than what they are spared for, whatever their accuracy
        assert recommend([*rows, row(100, 1.0, shots)], None) == perfect


@pytest.fixture(autouse=True)
def nothing_is_beaten(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine any set-up may be slower than another."""
    monkeypatch.setattr(tuning, "is_beaten", lambda *_: False)
    monkeypatch.setattr(tuning, "fewer_shots_suffice", lambda *_: False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    images = {f"train/good/{i}.png": part(i) for i in range(4)}
    images |= {f"test/good/{i}.png": part(20 + i) for i in range(5)}
    images |= {f"test/scratch/{i}.png": part(40 + i, defect=True) for i in range(4)}
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image)
    return folder


@pytest.fixture
def preset(tmp_path: Path) -> str:
    file = tmp_path / "one-view.toml"
    file.write_text('about = "x"\n[scoring]\nviews = ["original"]\ntop_fraction = 0.01\nself_similarity = false\n')
    return str(file)


def measure(root: Path, model: Path, preset: str, out: Path, **more: Any) -> dict[str, Any]:
    train, test = read_inputs(root / "train" / "good"), read_inputs(root / "test" / "good", root / "test")
    choices = Choices({"tiny": model}, [preset], ["onnxruntime-cpu"], shots=(1, 3), **more)
    return tune(choices, choose_images(train.good, test.good, test.bad, choices), out)


def test_scores_are_those_of_inspections(root: Path, tiny_model: Path, preset: str, tmp_path: Path) -> None:
    report = measure(root, tiny_model, preset, tmp_path / "out")
    supports = [root / "train" / "good" / name for name in report["images"]["supports"]]
    good = [*(root / "test" / "good").iterdir(), *(root / "train" / "good").iterdir()]  # those that are left count too
    files = {"good": [f for f in good if f not in supports], "scratch": list((root / "test" / "scratch").iterdir())}
    for shots, measured in zip((1, 3), report["rows"], strict=True):
        with Inspector.open(tiny_model, tmp_path / f"bank{shots}", preset=preset) as inspector:
            inspector.enroll_files("disc", supports[:shots])
            scores = {
                kind: [inspector.inspect(cv2.imread(str(f)), class_name="disc").score for f in paths]
                for kind, paths in files.items()
            }
        pairs = np.mean([b > g for b in scores["scratch"] for g in scores["good"]])
        assert measured["auroc"] == pytest.approx(pairs)
        assert measured["caught"]["events"] == sum(b > max(scores["good"]) for b in scores["scratch"])
        assert measured["promised"] == pytest.approx(1 / 7)
    assert not (tmp_path / "out" / "work").exists()
    page = tune_page(json.loads(json.dumps(report, allow_nan=False)))
    assert report["recommended"]["name"].replace("/", "&#47;") in page or report["recommended"]["name"] in page


def test_a_stopped_run_resumes(
    root: Path, tiny_model: Path, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def stop(*_: Any) -> None:
        done.append(1)
        raise KeyboardInterrupt

    train, test = read_inputs(root / "train" / "good"), read_inputs(root / "test" / "good", root / "test")
    choices = Choices({"tiny": tiny_model}, [preset], ["onnxruntime-cpu"], shots=(1, 3))
    images = choose_images(train.good, test.good, test.bad, choices)
    with pytest.raises(KeyboardInterrupt):
        tune(choices, images, tmp_path / "out", stop)
    first = (tmp_path / "out" / "work.jsonl").read_text()
    assert len(first.splitlines()) == 1
    measured = []
    original = tuning._Bench.measure
    monkeypatch.setattr(tuning._Bench, "measure", lambda *a: measured.append(1) or original(*a))
    report = tune(choices, images, tmp_path / "out")
    assert len(measured) == 1
    assert len(report["rows"]) == 2


def test_what_is_beaten_is_not_scored(
    root: Path, tiny_model: Path, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "is_beaten", lambda _, rows: bool(rows))
    monkeypatch.setattr(tuning, "fewer_shots_suffice", lambda _, rows: any(r.status == "beaten" for r in rows))
    train, test = read_inputs(root / "train" / "good"), read_inputs(root / "test" / "good", root / "test")
    choices = Choices({"tiny": tiny_model}, [preset], ["onnxruntime-cpu"], shots=(1, 2, 3))
    report = tune(choices, choose_images(train.good, test.good, test.bad, choices), tmp_path / "out")
    assert [r["status"] for r in report["rows"]] == ["measured", "beaten", "beaten"]
    assert [r["auroc"] is None for r in report["rows"]] == [False, True, True]
    assert [r["latency_ms"] is None for r in report["rows"]] == [False, False, True]  # more shots are no faster
    assert report["recommended"]["name"] == report["rows"][0]["name"]
    assert "beaten" in tune_page(json.loads(json.dumps(report, allow_nan=False)))


def test_backends_of_one_precision_share_the_scores(
    root: Path, tiny_model: Path, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    train, test = read_inputs(root / "train" / "good"), read_inputs(root / "test" / "good", root / "test")
    names = ["onnxruntime-cpu", "openvino"]
    choices = Choices({"tiny": tiny_model}, [preset], names, ["fp32"], shots=(1, 3))
    encoded = []
    original = tuning.KeptTokensEngine.encode

    def encode(self: Any, *args: Any, **more: Any) -> Any:
        encoded.append(self.name)
        return original(self, *args, **more)

    monkeypatch.setattr(tuning.KeptTokensEngine, "encode", encode)
    report = tune(choices, choose_images(train.good, test.good, test.bad, choices), tmp_path / "out")
    first, second = report["rows"][:2], report["rows"][2:]
    assert [r["candidate"]["backend"] for r in report["rows"]] == [n for n in names for _ in range(2)]
    assert len(set(encoded)) == 1 and "openvino" not in encoded[0].lower()
    for a, b in zip(first, second, strict=True):
        assert (a["auroc"], a["spread"], a["caught"]) == (b["auroc"], b["spread"], b["caught"])
        assert b["latency_ms"] and a["latency_ms"] != b["latency_ms"]
    with Inspector.open(tiny_model, tmp_path / "bank", preset=preset, backend="openvino") as inspector:
        inspector.enroll_files("disc", [root / "train" / "good" / report["images"]["supports"][0]])
        chosen = choose_images(train.good, test.good, test.bad, choices)
        good, bad = (
            [inspector.inspect(cv2.imread(str(one.path)), class_name="disc").score for one in images]
            for images in (chosen.good, chosen.bad)
        )
    assert second[0]["auroc"] == pytest.approx(auroc(good, bad))
    assert second[0]["spread"] == pytest.approx(np.std(good, ddof=1) / np.mean(good), rel=1e-3)


def test_a_precision_that_this_machine_lacks_is_left_out(
    root: Path, tiny_model: Path, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("visionad_runtime.engine.openvino")
    pytest.importorskip("openvino")

    def check(_: Any, precision: str, device: str) -> None:
        if precision == "bf16":
            raise VisionADError(f"{device} has no bf16")

    monkeypatch.setattr(openvino, "check_capability", check)
    train, test = read_inputs(root / "train" / "good"), read_inputs(root / "test" / "good", root / "test")
    choices = Choices({"tiny": tiny_model}, [preset], ["openvino"], shots=(1,))
    images = choose_images(train.good, test.good, test.bad, choices)
    report = tune(choices, images, tmp_path / "out")
    assert [r["candidate"]["precision"] for r in report["rows"]] == ["fp32"]
    assert [note for note in report["notes"] if "bf16" in note] == [
        "openvino in bf16 was not tried with tiny: CPU has no bf16"
    ]
    asked = Choices({"tiny": tiny_model}, [preset], ["openvino"], ["bf16"], shots=(1,))
    with pytest.raises(VisionADError, match="CPU has no bf16"):
        tune(asked, images, tmp_path / "asked")


def test_over_budget_is_not_scored(root: Path, tiny_model: Path, preset: str, tmp_path: Path) -> None:
    report = measure(root, tiny_model, preset, tmp_path / "out", budget_ms=0.001)
    assert [r["status"] for r in report["rows"]] == ["over budget", "over budget"]
    assert report["rows"][1]["latency_ms"] is None  # more shots take longer
    assert report["recommended"] is None
    assert "No set-up stays within" in report["sentence"]


@pytest.mark.slow(group="acceptance")
def test_tiles_are_tried_on_elongated_images(root: Path, tiny_model: Path, preset: str, tmp_path: Path) -> None:
    for file in root.rglob("*.png"):
        cv2.imwrite(str(file), cv2.resize(cv2.imread(str(file)), (200, 96)))
    report = measure(root, tiny_model, preset, tmp_path / "out")
    assert [tuple(r["candidate"]["grid"]) for r in report["rows"]] == [(1, 1), (1, 1), (1, 2), (1, 2)]
    assert all(r["status"] == "measured" for r in report["rows"])


def test_the_command_recommends_and_writes_both_files(
    root: Path, tiny_model: Path, preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status = run(
        ["tune", "--root", str(root), "--backbones", str(tiny_model), "--presets", preset, "--backends", "onnxruntime-cpu",
         "--shots", "1", "--out", str(out)]
    )  # fmt: skip
    printed = capsys.readouterr()
    assert (status, "Take tiny" in printed.out) == (0, True)
    assert "1 of 1" in printed.err
    assert json.loads((out / "tune.json").read_text())["recommended"]
    assert (out / "tune.html").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected --root DIR, or --good DIR"),
        (["--root", "none"], "expected train/good"),
        (["--good", "GOOD", "--shots", "1,x"], "expected numbers from 1"),
        (["--good", "GOOD", "--shots", "8"], "expected 10 good images or more"),
        (["--good", "GOOD", "--shots", "1", "--presets", "nonsense"], "nonsense"),
        (["--good", "GOOD", "--shots", "1", "--backends", "nonsense"], "nonsense"),
        (["--good", "GOOD", "--shots", "1", "--precisions", "int3"], "int3"),
    ],
)
def test_bad_input_is_one_clear_line(
    arguments: list[str],
    expected: str,
    root: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(root / "train" / "good") if a == "GOOD" else a for a in arguments]
    assert run(["tune", *given, "--backbones", str(tiny_model), "--out", str(tmp_path / "out")]) == 2
    assert expected in capsys.readouterr().err.splitlines()[-1]


def test_images_to_measure_on_are_never_enrolled(root: Path) -> None:
    inputs = read_inputs(root / "train" / "good")
    chosen = choose_images(inputs.good, (), (), Choices({}, shots=(2,)))
    assert not {one.sha256 for one in chosen.supports} & {one.sha256 for one in chosen.good}
    assert (len(chosen.supports), len(chosen.good)) == (2, 2)
    with pytest.raises(VisionADError, match="expected 5 good images or more"):
        choose_images(inputs.good, (), (), Choices({}, shots=(3,)))


def test_a_copy_of_an_image_is_measured_once(root: Path) -> None:
    for file in (root / "train" / "good").iterdir():
        (root / "test" / "good" / f"copy-{file.name}").write_bytes(file.read_bytes())
    train, test = read_inputs(root / "train" / "good"), read_inputs(root / "test" / "good", root / "test")
    choices = Choices({}, ["paper"], ["onnxruntime-cpu"], shots=(1, 2))
    images = choose_images(train.good, test.good, test.bad, choices)
    digests = [one.sha256 for one in (*images.supports, *images.good)]
    assert len(digests) == len(set(digests)) == 2 + 2 + 5
    with pytest.raises(VisionADError, match="expected 6 good images or more for 4 shots and 2 to measure on, got 4"):
        choose_images(train.good, train.good, (), Choices({}, ["paper"], ["onnxruntime-cpu"], shots=(4,)))
