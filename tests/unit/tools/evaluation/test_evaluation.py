from __future__ import annotations

import itertools
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner
from visionad_runtime.cli.commands.evaluate import eval_command
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import ModelManifest, read_manifest
from visionad_runtime.inspector import Inspector
from visionad_runtime.teaching.sampling import sample_support_paths
from visionad_runtime.tools.evaluation.aggregate import Evaluation
from visionad_runtime.tools.evaluation.datasets.masks import load_mask
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset
from visionad_runtime.tools.evaluation.page import html_page
from visionad_runtime.tools.evaluation.predictor import Prediction, RuntimePredictor
from visionad_runtime.tools.evaluation.protocol import evaluate
from visionad_runtime.tools.evaluation.published import METRICS, published, same_model
from visionad_runtime.tools.evaluation.report import markdown, plain
from visionad_runtime.tools.evaluation.tally import best_threshold

from tests.data import part

KINDS = {"disc": 0, "grid": 100}
TRAIN, GOOD, BAD = 6, 4, 4


def write_class(root: Path, kind: str, name: str | None = None, masks: bool = True) -> Path:
    folder, first = root / (name or kind), KINDS[kind]
    for place, count, seed in (("train/good", TRAIN, 0), ("test/good", GOOD, 20)):
        (folder / place).mkdir(parents=True)
        for i in range(count):
            cv2.imwrite(str(folder / place / f"{i:03d}.png"), part(first + seed + i, kind=kind))
    (folder / "test/scratch").mkdir()
    if masks:
        (folder / "ground_truth/scratch").mkdir(parents=True)
    for i in range(BAD):
        good, bad = (part(first + 40 + i, defect=d, kind=kind) for d in (False, True))
        cv2.imwrite(str(folder / f"test/scratch/{i:03d}.png"), bad)
        if masks:
            mask = np.where((good != bad).any(axis=2), 255, 0).astype(np.uint8)
            cv2.imwrite(str(folder / f"ground_truth/scratch/{i:03d}_mask.png"), mask)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for kind in KINDS:
        write_class(tmp_path / "data", kind)
    return tmp_path / "data"


def run(model: Path, root: Path, shots: int = 1, name: str = "mvtec", **more: Any) -> Evaluation:
    return evaluate(model, open_dataset(name, root), shots, threads=1, **more)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every image the runtime has inspected."""
    seen: list[Path] = []
    inner = Inspector.inspect_files

    def spy(self: Inspector, paths: Any, **more: Any) -> Any:
        def noting() -> Any:
            for path in paths:
                seen.append(path)
                yield path

        return inner(self, noting(), **more)

    monkeypatch.setattr(Inspector, "inspect_files", spy)
    return seen


def command(*args: object) -> Any:
    """The command as ``visionad eval`` runs it; the exit status as ``visionad_runtime.cli.main.run`` sets it."""
    import typer

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("eval")(eval_command)
    return CliRunner().invoke(app, [str(a) for a in (*args, "--threads", 1)])


def test_numbers_are_those_found_by_hand(tiny_model: Path, root: Path, tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    found = run(tiny_model, root, shots=2, seeds=[3])
    assert [u.result["class"] for u in found.units] == ["disc", "grid"]
    for unit in found.units:
        data = open_dataset("mvtec", root)
        name = unit.result["class"]
        chosen = sample_support_paths(data.train(name), 2, 3)
        assert unit.result["supports"] == [p.relative_to(root).as_posix() for p in chosen]
        inspector = Inspector.open(tiny_model, tmp_path / f"bank-{name}", threads=1)
        inspector.enroll("part", [cv2.imread(str(p)) for p in chosen])
        scores, labels, maps, masks = [], [], [], []
        spec = inspector.manifest.identity.preprocess
        for sample in data.test(name):
            one = inspector.inspect(cv2.imread(str(sample.path)), class_name="part")
            scores.append(one.score)
            labels.append(sample.label)
            maps.append(one.anomaly_map.ravel())
            masks.append(load_mask(sample, spec.resize, spec.crop).ravel())
        assert unit.arrays["scores"].tolist() == scores
        pixels, truth = np.concatenate(maps), np.concatenate(masks)
        wanted = {
            "image_auroc": metrics.roc_auc_score(labels, scores),
            "image_ap": metrics.average_precision_score(labels, scores),
            "pixel_auroc": metrics.roc_auc_score(truth, pixels),
            "pixel_ap": metrics.average_precision_score(truth, pixels),
        }
        assert {m: unit.result[m] for m in wanted} == pytest.approx(wanted, abs=1e-9)
        assert all(0 <= unit.result[m] <= 1 for m in METRICS)
        assert (unit.result["images"], unit.result["good"], unit.result["defects"]) == (GOOD + BAD, GOOD, BAD)
        assert unit.result["reasons"] == {}


def test_means_and_spread(tiny_model: Path, root: Path) -> None:
    found = run(tiny_model, root, seeds=[1, 2, 3]).to_dict()
    assert [(r["seed"], r["class"]) for r in found["results"]] == list(itertools.product([1, 2, 3], ["disc", "grid"]))
    for metric in METRICS:
        grid = np.array([r[metric] for r in found["results"]]).reshape(3, 2)
        every = found["mean"]["all"][metric]
        assert (every["mean"], every["std"]) == pytest.approx((grid.mean(), grid.mean(axis=1).std(ddof=1)))
        disc = found["mean"]["by_class"]["disc"][metric]
        assert (disc["mean"], disc["std"]) == pytest.approx((grid[:, 0].mean(), grid[:, 0].std(ddof=1)))
        assert [s[metric] for s in found["per_seed"]] == pytest.approx(grid.mean(axis=1))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    with Inspector.open(tiny_model, threads=1) as inspector:  # the name that each result of `predict --json` has
        assert found["model"] == inspector.digest and found["model_name"] == inspector.manifest.identity.describe()


def test_one_for_all_against_separate(tiny_model: Path, root: Path) -> None:
    separate, multi = (run(tiny_model, root, mode=mode) for mode in ("separate", "multi"))
    for alone, together in zip(separate.units, multi.units, strict=True):
        for metric in METRICS:  # with the class given, one bank for all is what a bank a class is
            assert together.result[f"separate_{metric}"] == pytest.approx(alone.result[metric], abs=1e-9)
        assert "routing_accuracy" not in alone.result
        if together.result["routing_accuracy"] == 1:
            assert together.arrays["scores"].tolist() == alone.arrays["scores"].tolist()
    assert multi.to_dict()["mean"]["all"]["routing_accuracy"]["mean"] > 0.5


def test_misrouted_images_count_as_routed(tiny_model: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that takes every second image of `disc` for a `grid`, and the rest for nothing known."""
    inner, turn = RuntimePredictor.inspect, itertools.count()

    def astray(self: Any, paths: Any, class_name: str | None) -> Any:
        for path in paths:
            if class_name is not None or "grid" in path.parts:
                yield from inner(self, [path], class_name or "grid")
            elif next(turn) % 2:
                yield from inner(self, [path], "grid")
            else:
                for one in inner(self, [path], "grid"):
                    assert isinstance(one, Prediction)
                    yield one._replace(class_name=None, verdict="unknown")

    separate = run(tiny_model, root)
    monkeypatch.setattr(RuntimePredictor, "inspect", astray)
    disc, grid = run(tiny_model, root, mode="multi").units
    assert (disc.result["routing_accuracy"], disc.result["unknown_rate"]) == (0.0, 0.5)
    assert disc.result["taken_for"] == {"grid": (GOOD + BAD) // 2}
    assert (grid.result["routing_accuracy"], grid.result["taken_for"]) == (1.0, {})
    assert disc.arrays["scores"].min() > separate.units[0].arrays["scores"].min()
    for metric in METRICS:
        assert disc.result[f"separate_{metric}"] == pytest.approx(separate.units[0].result[metric], abs=1e-9)


@pytest.mark.slow(group="acceptance")
def test_goes_on_where_it_was_stopped(
    tiny_model: Path, root: Path, tmp_path: Path, counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_model, root, seeds=[1, 2], calibrate=0.2)
    at_once = len(counted)
    work = tmp_path / "work"
    counted.clear()
    inner, left = RuntimePredictor.inspect, itertools.count()

    def dying(self: Any, paths: Any, class_name: str | None) -> Any:
        for one in inner(self, paths, class_name):
            if next(left) == 13:  # in the second unit
                raise KeyboardInterrupt
            yield one

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RuntimePredictor, "inspect", dying)
        run(tiny_model, root, seeds=[1, 2], calibrate=0.2, work=work)
    assert not list(work.glob("*.tmp"))
    for path in work.glob("*.json"):
        assert json.loads(path.read_bytes())["result"] and path.with_suffix(".npz").is_file()
    counted.clear()
    again = run(tiny_model, root, seeds=[1, 2], calibrate=0.2, work=work)
    # the first unit and the second one's calibration are not done again
    assert (again.resumed, len(counted)) == (1, at_once - 2 * (TRAIN - 1) - (GOOD + BAD))
    assert again.to_dict() == whole.to_dict() | {"root": str(root)}
    counted.clear()
    assert run(tiny_model, root, seeds=[1, 2], calibrate=0.2, work=work).resumed == 4
    assert counted == []
    assert run(tiny_model, root, shots=2, seeds=[1], work=work).resumed == 0  # other numbers: another key


def test_a_changed_data_set_or_a_damaged_file_is_done_again(
    tiny_model: Path, root: Path, tmp_path: Path, counted: list[Path]
) -> None:
    work = tmp_path / "work"
    first = run(tiny_model, root, work=work)
    counted.clear()
    victim = sorted(work.glob("*.npz"))[0]
    victim.write_bytes(victim.read_bytes()[:-7])
    again = run(tiny_model, root, work=work)
    assert (again.resumed, len(counted)) == (1, GOOD + BAD)
    assert again.to_dict() == first.to_dict()
    (root / "disc/test/good/000.png").unlink()
    changed = run(tiny_model, root, work=work)
    assert changed.resumed == 1 and changed.units[0].result["images"] == GOOD + BAD - 1


@pytest.mark.slow(group="acceptance")
def test_reference_says_the_same(tiny_model: Path, root: Path) -> None:
    pytest.importorskip("torch")
    from visionad_export.reference.predictor import ReferencePredictor

    for mode in ("separate", "multi"):
        ours, theirs = (
            run(tiny_model, root, shots=2, mode=mode, open_predictor=opened, calibrate=0.3).to_dict()
            for opened in (None, lambda: ReferencePredictor(tiny_model, threads=1))
        )
        for a, b in zip(ours["results"], theirs["results"], strict=True):
            if mode == "multi":
                assert (a["routing_accuracy"], a["unknown_rate"]) == (b["routing_accuracy"], b["unknown_rate"])
            assert {m: a[m] for m in METRICS} == pytest.approx({m: b[m] for m in METRICS}, abs=5e-5)
            assert a["calibration"]["threshold"] == pytest.approx(b["calibration"]["threshold"], rel=1e-4)
            assert a["calibration"]["misses"] == b["calibration"]["misses"]
        assert theirs["engine"].startswith("reference")


def test_without_masks_there_are_image_metrics(tiny_model: Path, tmp_path: Path) -> None:
    write_class(tmp_path / "data", "disc", masks=False)
    found = run(tiny_model, tmp_path / "data", name="folder")
    (unit,) = found.units
    assert unit.result["image_auroc"] is not None and unit.result["without_mask"] == BAD
    assert unit.result["pixel_aupro"] is None and "mask" in unit.result["reasons"]["pixel_aupro"]
    assert found.to_dict()["mean"]["all"]["pixel_aupro"] == {"mean": None, "std": None}
    assert "4 defects have no mask" in markdown(found)
    assert "not defined" in html_page(found)


def test_calibration_is_measured(tiny_model: Path, root: Path) -> None:
    found = run(tiny_model, root, calibrate=0.2)
    for unit in found.units:
        held, scores, labels = unit.result["calibration"], unit.arrays["scores"], unit.arrays["labels"]
        assert held["normals"] == TRAIN - 1
        over = scores > held["threshold"]
        assert held["false_rejects"] == int((over & (labels == 0)).sum())
        assert held["misses"] == int((~over & (labels == 1)).sum())
        assert held["without_verdict"] == 0
    assert found.to_dict()["mean"]["all"]["miss_rate"]["mean"] is not None
    assert "false rejects" in plain(found)
    few = run(tiny_model, root, calibrate=0.01)
    assert few.units[0].result["calibration"]["threshold"] is None
    assert "99 good images" in markdown(few)


def test_unreadable_images(tiny_model: Path, root: Path, tmp_path: Path, counted: list[Path]) -> None:
    (root / "disc/test/good/001.png").write_bytes(b"no image")
    (root / "disc/ground_truth/scratch/002_mask.png").write_bytes(b"no mask")
    (root / "disc/train/good/004.png").write_bytes(b"no normal")
    options = [tiny_model, "--dataset", "mvtec", "--root", root, "--shots", 1]
    stopped = command(*options, "--json", tmp_path / "e.json")
    assert isinstance(stopped.exception, VisionADError)
    said = str(stopped.exception)
    assert "2 images or masks" in said and "good/001.png" in said and "002_mask.png" in said and "1 finished" in said
    assert not (tmp_path / "e.json").exists()
    counted.clear()
    done = command(*options, "--json", tmp_path / "e.json", "--skip-unreadable")
    assert done.exit_code == 0, done.output
    assert len(counted) == GOOD + BAD  # `grid` was finished
    found = json.loads((tmp_path / "e.json").read_bytes())
    skipped = {s["image"]: s["role"] for s in found["skipped"]}
    assert skipped == {"disc/test/good/001.png": "test", "disc/test/scratch/002.png": "test"}
    assert found["results"][0]["images"] == GOOD + BAD - 2
    assert "good/001.png" in done.output
    again = command(*options, "--json", tmp_path / "e.json")
    assert isinstance(again.exception, VisionADError)  # what was skipped is not taken for finished
    with pytest.raises(VisionADError, match=r"3 images or masks .*train/good/004"):
        run(tiny_model, root, calibrate=0.2)
    (root / "disc/train/good/000.png").write_bytes(b"no support")
    with pytest.raises(VisionADError, match=r"3 images or masks .*train/good/000"):
        run(tiny_model, root, mode="multi")
    with pytest.raises(VisionADError, match="none of its 1 support images"):
        run(tiny_model, root, skip_unreadable=True)
    two = run(tiny_model, root, shots=2, skip_unreadable=True)
    assert two.units[0].result["supports"] == ["disc/train/good/001.png"]


def test_no_result_is_written_over_another_or_over_the_data_set(tiny_model: Path, root: Path, tmp_path: Path) -> None:
    options = [tiny_model, "--dataset", "mvtec", "--root", root, "--shots", 1]
    twice = command(*options, "--json", tmp_path / "e.json", "--html", tmp_path / "e.json")
    assert isinstance(twice.exception, VisionADError) and "name the same file" in str(twice.exception)
    assert not list(tmp_path.glob("e.json*"))
    for file in (root / "disc/test/good/001.png", next((root / "disc/ground_truth").rglob("*.png"))):
        before = file.read_bytes()
        over = command(*options, "--json", file)
        assert isinstance(over.exception, VisionADError) and "belongs to the data set" in str(over.exception)
        assert file.read_bytes() == before


def test_copies_of_a_image_teach_nothing_new(tiny_model: Path, root: Path) -> None:
    for i in (1, 2):
        shutil.copy(root / "disc/train/good/000.png", root / f"disc/train/good/00{i}.png")
    found = run(tiny_model, root, shots=2, calibrate=0.4)
    assert found.units[0].result["supports"] == ["disc/train/good/000.png", "disc/train/good/003.png"]
    assert found.units[0].result["calibration"]["normals"] == TRAIN - 2 - 2


class Balance(HTMLParser):
    """Fails on a tag closed out of turn; collects what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in {"meta", "img", "input", "br", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def test_command_writes_what_was_asked(tiny_model: Path, tmp_path: Path) -> None:
    evil = '<img src=x onerror=1>|&"'
    write_class(tmp_path / "data", "disc", evil)
    write_class(tmp_path / "data", "grid")
    files = {kind: tmp_path / "out" / f"eval.{kind}" for kind in ("json", "md", "html")}
    options = [
        tiny_model,
        "--dataset",
        "mvtec",
        "--root",
        tmp_path / "data",
        "--shots",
        1,
        "--seeds",
        "1,2",
        "--mode",
        "multi",
    ]
    done = command(*options, "--json", files["json"], "--markdown", files["md"], "--html", files["html"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out/eval.json.work").is_dir()
    found = json.loads(files["json"].read_bytes())
    assert found["seeds"] == [1, 2] and found["mode"] == "multi" and found["shots"] == 1
    page = files["html"].read_text()
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.sources) == 2 * 2 * 8 and all(s.startswith("data:image/jpeg") for s in parser.sources)
    assert "<img src=x" not in page and "&lt;img src=x onerror=1&gt;" in page
    assert "another model" in page and page.count('class="plot"') == 6
    table = [line for line in files["md"].read_text().splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "mean of 2" in done.output and "routed right" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--mode", "both"], "separate or multi"),
        (["--engine", "trt"], "runtime or reference"),
        (["--seeds", "1,x"], "whole numbers"),
        (["--seeds", "1,1"], "each once"),
        (["--shots", "7"], "expected 7 shots, but there are 6"),
        (["--calibrate", "1"], "between 0 and 1"),
        (["--engine", "reference", "--bit-depth", "12"], "8-bit"),
        (["--dataset", "imagenet"], "expected one of"),
    ],
)
def test_mistakes_are_told_before_any_work(tiny_model: Path, root: Path, options: list[str], said: str) -> None:
    basic = [tiny_model, "--dataset", "mvtec", "--root", root, "--shots", 1]
    done = command(*basic, *options)
    assert isinstance(done.exception, VisionADError) and said in str(done.exception)


def test_published_rows(tiny_model: Path) -> None:
    row = published("mvtec", 1)
    assert row is not None and row.seeds == 13
    assert (row.mean["image_auroc"], row.mean["pixel_aupro"]) == pytest.approx((0.970, 0.923))
    for name in ("mvtec", "visa"):  # the rows and the classes' numbers were logged apart, and rounded
        for shots in (1, 2, 4):
            row = published(name, shots)
            assert row is not None
            assert np.mean(list(row.by_class.values())) == pytest.approx(row.mean["image_auroc"], abs=1.1e-3)
    assert published("folder", 1) is None and published("mvtec", 3) is None
    assert not same_model(read_manifest(tiny_model, ModelManifest), ("original", "flip", "clamp"))


def test_best_threshold() -> None:
    scores, labels = np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 1, 0, 1])
    assert best_threshold(scores, labels) == 0.4
    assert best_threshold(scores, np.array([0, 0, 0, 1])) == 0.9
    assert best_threshold(scores, np.zeros(4, int)) == 0.9
