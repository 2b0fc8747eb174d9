"""The acceptance report end to end on a tiny model: every figure recomputed, resumption, the daily check, bad input."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.store import Bank
from visionad_runtime.cli.main import run
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.roi import make_spec, parse_roi
from visionad_runtime.scoring.intervals import clopper_pearson
from visionad_runtime.teaching.calibrate import calibrate_class
from visionad_runtime.tools.qualification.inputs import read_inputs
from visionad_runtime.tools.qualification.limits import Canvases, detection_limit, inspected_mask
from visionad_runtime.tools.qualification.page import html_page, summary
from visionad_runtime.tools.qualification.qualify import Settings, check_labels, fresh_images, qualify
from visionad_runtime.tools.qualification.scorer import Scored, Scorer

from tests.data import part

DEFECTS = 90


def write(folder: Path, images: dict[str, np.ndarray]) -> None:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image)


def repeat(seed: int, again: int) -> np.ndarray:
    noise = np.random.default_rng([seed, again]).integers(0, 3, (96, 128, 3))
    return np.clip(part(seed).astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a bank and all images of a qualification."""
    root = tmp_path_factory.mktemp("station")
    write(root, {f"supports/{i}.png": part(i) for i in range(6)})
    write(root, {f"good/mon/{i}.png": part(20 + i) for i in range(6)})
    write(root, {f"good/tue/{i}.png": part(40 + i) for i in range(5)})
    write(root, {f"bad/scratch/{i}.png": part(60 + i, defect=True) for i in range(5)})
    write(root, {f"bad/dull/{i}.png": part(70 + i) // 2 for i in range(3)})
    write(root, {f"masks/scratch/{i}_mask.png": mask() for i in range(5)})
    write(root, {f"repeat/{p}/{k}.png": repeat(80 + p, k) for p in range(3) for k in range(3)})
    with Inspector.open(tiny_model, root / "bank") as inspector:
        inspector.enroll_files("disc", sorted((root / "supports").iterdir()))
    return root


def mask() -> np.ndarray:
    image = np.zeros((96, 128), np.uint8)
    cv2.line(image, (50, 40), (80, 60), 255, 4)
    return image


@pytest.fixture(scope="module")
def report(station: Path, tiny_model: Path) -> dict[str, Any]:
    return measure(station, tiny_model, station / "out")


def measure(station: Path, model: Path, out: Path, **settings: Any) -> dict[str, Any]:
    inputs = read_inputs(station / "good", station / "bad", station / "repeat", station / "masks", group_by_folder=True)
    chosen = Settings(model, station / "bank", "disc", **{"defects": DEFECTS, "calls": 4, "starts": 0, **settings})
    with Inspector.open(model, station / "bank") as inspector:
        return qualify(inspector, chosen, inputs, out)


def test_rates_are_recomputed_from_single_inspections(report: dict[str, Any], station: Path, tiny_model: Path) -> None:
    with Inspector.open(tiny_model, station / "bank") as inspector:

        def verdicts(folder: str) -> list[str]:
            files = sorted((station / folder).rglob("*.png"))
            return [str(inspector.inspect(cv2.imread(str(f)), class_name="disc").verdict) for f in files]

        good, bad = verdicts("good"), verdicts("bad")
        groups = {day: verdicts(f"good/{day}") for day in ("mon", "tue")}
        types = {kind: verdicts(f"bad/{kind}") for kind in ("scratch", "dull")}
        entry = inspector.require_class("disc").classes["disc"].entry
    assert report["promise"]["threshold"] == entry.threshold
    assert report["promise"]["guaranteed_false_reject"] == pytest.approx(1 / 7)
    for row, seen in [(report["false_rejects"]["all"], good)] + [
        (report["false_rejects"]["groups"][day], groups[day]) for day in groups
    ]:
        k, n = seen.count("anomalous"), len(seen)
        assert (row["anomalous"]["events"], row["anomalous"]["trials"]) == (k, n)
        assert (row["anomalous"]["low"], row["anomalous"]["high"]) == clopper_pearson(k, n)
        assert row["not_ok"]["events"] == n - seen.count("ok")
    for row, seen in [(report["misses"]["all"], bad)] + [
        (report["misses"]["types"][kind], types[kind]) for kind in types
    ]:
        assert (row["missed"]["events"], row["missed"]["trials"]) == (seen.count("ok"), len(seen))
        assert row["not_rejected"]["events"] == len(seen) - seen.count("anomalous")
    assert len(report["misses"]["missed_images"]) == bad.count("ok")


def test_repeats_are_recomputed(report: dict[str, Any], station: Path, tiny_model: Path) -> None:
    with Inspector.open(tiny_model, station / "bank") as inspector:
        scores = np.array(
            [
                [
                    inspector.inspect(cv2.imread(str(station / f"repeat/{p}/{k}.png")), class_name="disc").score
                    for k in range(3)
                ]
                for p in range(3)
            ]
        )
    section = report["repeatability"]
    assert [row["deviation"] for row in section["parts"]] == pytest.approx(scores.std(axis=1, ddof=1).tolist())
    within = scores.var(axis=1, ddof=1).mean()
    between = max(0.0, scores.mean(axis=1).var(ddof=1) - within / 3)
    assert section["components"]["repeatability"] == pytest.approx(within**0.5)
    assert section["components"]["parts"] == pytest.approx(between**0.5)
    assert section["components"]["grr_share"] == pytest.approx((within / (within + between)) ** 0.5)


def test_the_detection_limit_is_monotone_and_its_counts_add_up(report: dict[str, Any]) -> None:
    section = report["detection_limit"]
    assert section["planned"] == DEFECTS
    assert section["defects"] + section["invisible"] == DEFECTS
    assert section["kinds"]
    for kind, row in section["kinds"].items():
        assert sum(level["trials"] for level in row["levels"]) == row["defects"], kind
        assert sum(level["events"] for level in row["levels"]) == row["found"], kind
        slopes = row["coefficients"][1:]
        pods = [pod for _, pod, _ in row["curve"]]
        if slopes[0] > 0:
            assert pods == sorted(pods), kind
        limits = [at["a90"] for at in row["limits"] if at["a90"] is not None]
        if min(slopes) > 0:
            assert limits == sorted(limits, reverse=True), kind
        for at in row["limits"]:
            if at["a90"] is not None and at["a90_95"] is not None:
                assert at["a50"] < at["a90"] <= at["a90_95"]
        for _, pod, low in row["curve"]:
            assert low <= pod


@pytest.mark.slow(group="acceptance")
def test_larger_and_stronger_defects_are_found_more_often(station: Path, tiny_model: Path, tmp_path: Path) -> None:
    section = measure(station, tiny_model, tmp_path, defects=400)["detection_limit"]
    events = np.sum([[level["events"] for level in row["levels"]] for row in section["kinds"].values()], axis=0)
    trials = np.sum([[level["trials"] for level in row["levels"]] for row in section["kinds"].values()], axis=0)
    shares = events / trials
    assert shares[3:].mean() > shares[:3].mean()
    spot = section["kinds"]["spot"]
    assert spot["coefficients"][1] > 0
    assert spot["coefficients"][2] > 0


def test_real_defects_are_predicted_by_the_painted_ones(report: dict[str, Any]) -> None:
    section = report["real_defects"]
    assert section["types"].keys() == {"scratch"}
    row = section["types"]["scratch"]
    assert row["defects"] == 5
    assert 30 < row["median_size"] < 50  # the line is 36 pixels long
    low, high = clopper_pearson(row["found"]["events"], 5)
    assert row["agrees"] == (low <= row["predicted"] <= high)


@pytest.mark.slow(group="acceptance")
def test_a_stopped_run_resumes_and_gives_the_same(
    report: dict[str, Any], station: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = Scorer._write, 0

    def stop(self: Scorer, *args: Any) -> None:
        nonlocal count
        original(self, *args)
        count += 1
        if count == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(Scorer, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        measure(station, tiny_model, tmp_path)
    monkeypatch.setattr(Scorer, "_write", original)
    with open(tmp_path / "work.jsonl", "a") as f:
        f.write('["torn')
    again = measure(station, tiny_model, tmp_path)
    assert again["reused"] == 40
    for section in ("false_rejects", "misses", "repeatability", "detection_limit", "real_defects", "images"):
        assert again[section] == report[section]


def test_another_bank_reuses_nothing(station: Path, tiny_model: Path, report: dict[str, Any], tmp_path: Path) -> None:
    assert report["reused"] == 0
    shutil.copy(station / "out" / "work.jsonl", tmp_path / "work.jsonl")
    shutil.copytree(station / "bank", tmp_path / "bank")
    extra = tmp_path / "extra.png"
    cv2.imwrite(str(extra), part(7))
    with Inspector.open(tiny_model, tmp_path / "bank") as inspector:
        inspector.enroll_files("disc", [extra])
        settings = Settings(tiny_model, tmp_path / "bank", "disc", defects=0, calls=1, starts=0)
        again = qualify(inspector, settings, read_inputs(station / "good"), tmp_path)
    assert again["reused"] == 0


def test_the_page_says_what_the_report_says(report: dict[str, Any]) -> None:
    page = html_page(json.loads(json.dumps(report, allow_nan=False)))
    for text in (
        "Acceptance report: disc",
        "MIL-HDBK-1823A",
        report["model"]["sha256"],
        report["bank"]["sha256"],
        "signature",
    ):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")
    events = report["false_rejects"]["all"]["anomalous"]
    assert f"{events['events']} of {events['trials']}" in page
    assert any("realized" in line for line in summary(report))


def command(station: Path, model: Path, *more: str) -> list[str]:
    return ["qualify", str(model), str(station / "bank"), "--class", "disc", "--good", str(station / "good"), *more]


@pytest.fixture(scope="module")
def accepted(station: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("accepted")
    assert run(command(station, tiny_model, "--bad", str(station / "bad"), "--defects", "0", "--out", str(out))) == 0
    return out


@pytest.mark.slow(group="acceptance")
def test_daily_passes_unchanged_images_and_names_what_drifted(
    station: Path, tiny_model: Path, accepted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = json.loads((accepted / "qualification.json").read_text())
    stored["latency"]["p50"] = 1e6  # the machine's load is not what is tested
    (accepted / "qualification.json").write_text(json.dumps(stored))
    daily = ("--daily", "--out", str(accepted))
    assert run(command(station, tiny_model, *daily)) == 0
    assert "as accepted" in capsys.readouterr().out
    dark = tmp_path / "dark"
    write(dark, {f"{i}.png": part(200 + i) // 3 for i in range(8)})
    assert run(["qualify", str(tiny_model), str(station / "bank"), "--class", "disc", "--good", str(dark), *daily]) == 1
    assert "drift:" in capsys.readouterr().out
    shutil.copytree(station / "bank", tmp_path / "bank")
    with Inspector.open(tiny_model, tmp_path / "bank") as inspector:
        inspector.enroll("disc", [part(300)])
    changed = ["qualify", str(tiny_model), str(tmp_path / "bank"), "--class", "disc", "--good", str(station / "good")]
    assert run([*changed, *daily]) == 1
    assert "another bank" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("supports only", "neither enrolled nor set the threshold"),
        ("unreadable", "broken.png"),
        ("missing folder", "expected a folder of images"),
        ("no masks", "no mask fits"),
        ("mask size", "expected a mask of 128 x 96 pixels"),
        ("one repeat", "expected two images or more of each part"),
        ("loose repeats", "expected PART/IMAGE"),
        ("good as bad", "once bad and once good"),
        ("support as bad", "was enrolled as a good part"),
        ("no groups", "has no subfolder"),
        ("daily without report", "expected the accepted report"),
        ("unknown class", "other"),
    ],
)
def test_bad_input_is_one_clear_line(
    case: str, expected: str, station: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, more, name = station / "good", ["--defects", "0"], "disc"
    if case == "supports only":
        good = station / "supports"
    elif case == "unreadable":
        good = tmp_path / "good"
        write(good, {"0.png": part(500)})
        (good / "broken.png").write_bytes(b"no image")
    elif case == "missing folder":
        good = tmp_path / "none"
    elif case == "no masks":
        write(tmp_path / "masks", {"other.png": mask()})
        more = ["--bad", str(station / "bad"), "--masks", str(tmp_path / "masks")]
    elif case == "mask size":
        write(tmp_path / "masks", {f"scratch/{i}.png": np.full((9, 9), 255, np.uint8) for i in range(5)})
        more = ["--bad", str(station / "bad"), "--masks", str(tmp_path / "masks"), "--defects", "20"]
    elif case == "one repeat":
        write(tmp_path / "repeat", {"a/0.png": part(600)})
        more += ["--repeat", str(tmp_path / "repeat")]
    elif case == "loose repeats":
        write(tmp_path / "repeat", {"0.png": part(600)})
        more += ["--repeat", str(tmp_path / "repeat")]
    elif case == "good as bad":
        write(tmp_path / "bad", {"0.png": part(20)})
        more += ["--bad", str(tmp_path / "bad")]
    elif case == "support as bad":
        more += ["--bad", str(station / "supports")]
    elif case == "no groups":
        good = station / "good" / "mon"
        more += ["--group-by", "folder"]
    elif case == "daily without report":
        more += ["--daily"]
    elif case == "unknown class":
        name = "other"
    arguments = ["qualify", str(tiny_model), str(station / "bank"), "--class", name, "--good", str(good), *more]
    assert run([*arguments, "--out", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert expected in lines[-1]
    assert "Traceback" not in "".join(lines)


def test_one_good_image_is_enough_for_a_wide_interval(station: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The model rejects this one: the report is written, and says why it has no detection limit."""
    write(tmp_path / "good", {"0.png": part(700) // 3})
    settings = Settings(tiny_model, station / "bank", "disc", defects=20, calls=1, starts=0)
    with Inspector.open(tiny_model, station / "bank") as inspector:
        report = qualify(inspector, settings, read_inputs(tmp_path / "good"), tmp_path / "out")
    row = report["false_rejects"]["all"]["anomalous"]
    assert (row["events"], row["trials"], row["high"]) == (1, 1, 1)
    assert row["low"] == pytest.approx(0.025)
    assert report["detection_limit"] is None
    assert "every good image is rejected" in html_page(report)


def test_defects_are_painted_in_proportion_on_images_of_mixed_sizes(
    station: Path, tiny_model: Path, tmp_path: Path
) -> None:
    write(tmp_path / "good", {"0.png": part(700), "1.png": cv2.resize(part(800), (64, 48))})
    good = read_inputs(tmp_path / "good").good
    passed = {one.sha256: Scored(0.01, "ok", 1.0) for one in good}
    with Inspector.open(tiny_model, station / "bank") as inspector:
        scorer = Scorer(inspector, "disc", tmp_path / "work.jsonl")
        canvases = Canvases(scorer, good, passed)
        section, rows = detection_limit(scorer, canvases, 60, 0)
        scorer.close()
    assert canvases.sides[0] == pytest.approx(2 * canvases.sides[1], abs=2)
    assert "2 sizes" in str(section["note"])
    assert {row["size"] for row in rows} <= set(section["sizes"])
    assert {row["image"] for row in rows} == {"0.png", "1.png"}


def test_defects_of_a_class_with_regions_lie_in_them(station: Path, tiny_model: Path, tmp_path: Path) -> None:
    roi = make_spec([parse_roi("left=0,0,64,96@2x1")], (128, 96))
    with Inspector.open(tiny_model, tmp_path / "bank") as inspector:
        inspector.enroll_files("disc", sorted((station / "supports").iterdir()), roi=roi)
        settings = Settings(tiny_model, tmp_path / "bank", "disc", defects=30, calls=2, starts=0, streams=2)
        inputs = read_inputs(station / "good", station / "bad", masks=station / "masks")
        report = qualify(inspector, settings, inputs, tmp_path / "out")
        scorer = Scorer(inspector, "disc", tmp_path / "out" / "work.jsonl")
        mask = inspected_mask(scorer, cv2.imread(str(station / "good/mon/0.png")))
        scorer.close()
    assert report["roi"]["names"] == ["left"]
    assert report["detection_limit"]["defects"] + report["detection_limit"]["invisible"] == 30
    assert report["latency"]["streams"] == 2
    assert mask[:, :64].any()
    assert not mask[:, 64:].any()
    assert "left (sha256" in html_page(report)


@pytest.fixture(scope="module")
def calibrated(station: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank whose threshold comes from held-out and confirmed images of the station."""
    bank = tmp_path_factory.mktemp("calibrated") / "bank"
    shutil.copytree(station / "bank", bank)
    with Inspector.open(tiny_model, bank, threads=1) as inspector:
        calibrate_class(inspector, "disc", sorted((station / "good" / "mon").iterdir()))
        inspector.confirm_files("disc", sorted((station / "good" / "tue").iterdir()))
    return bank


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_images_that_set_the_threshold_are_not_fresh_wherever_they_lie(
    station: Path, calibrated: Path, tmp_path: Path, suffix: str
) -> None:
    entry = Bank.open(calibrated, lazy=True).classes["disc"].entry
    for folder in ("good", "supports"):
        for file in (station / folder).rglob("*.png"):
            target = (tmp_path / file.relative_to(station)).with_suffix(suffix)
            write(target.parent, {target.name: cv2.imread(str(file))})
    with pytest.raises(VisionADError, match=r"all 17 are \(6 enrolled, 11 of the calibration\)"):
        fresh_images(entry, read_inputs(tmp_path).good)
    write(tmp_path, {"other.png": part(400)})
    fresh, left_out = fresh_images(entry, read_inputs(tmp_path).good)
    assert ([one.name for one in fresh], left_out) == (["other.png"], {"enrolled": 6, "calibration": 11})


@pytest.mark.parametrize(
    ("option", "image", "message"),
    [
        ("bad", part(3), "enrolled as a good part"),
        ("bad", part(21), "used for the calibration as a good part"),
        ("good", part(62, defect=True), "confirmed as a defect"),
        ("bad", part(62, defect=True), None),
        ("good", part(3), None),
    ],
)
def test_an_image_that_the_bank_knows_as_the_opposite_is_refused(
    station: Path,
    calibrated: Path,
    tiny_model: Path,
    tmp_path: Path,
    option: str,
    image: np.ndarray,
    message: str | None,
) -> None:
    shutil.copytree(calibrated, tmp_path / "bank")
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.confirm_files("disc", [station / "bad" / "scratch" / "2.png"], good=False)
    entry = Bank.open(tmp_path / "bank", lazy=True).classes["disc"].entry
    for folder, other in (("good", part(700)), ("bad", part(701, defect=True))):
        write(tmp_path / folder, {"a.png": other, **({"b.bmp": image} if folder == option else {})})
    inputs = read_inputs(tmp_path / "good", tmp_path / "bad")
    refused = pytest.raises(VisionADError, match=rf"--{option}: .*b\.bmp was {message}; take it away")
    with refused if message else nullcontext():
        check_labels(entry, inputs)


def test_images_are_the_same_if_their_pixels_are(tmp_path: Path) -> None:
    write(tmp_path / "good", {"0.png": part(500), "1.bmp": part(500), "2.png": part(501)})
    notes: list[str] = []
    assert [one.name for one in read_inputs(tmp_path / "good", note=notes.append).good] == ["0.png", "2.png"]
    assert ["1.bmp is the same image as" in line for line in notes] == [True]
    write(tmp_path / "bad", {"0.bmp": part(501)})
    with pytest.raises(VisionADError, match="once bad and once good"):
        read_inputs(tmp_path / "good", tmp_path / "bad")


def test_a_copy_is_no_repeat_whatever_its_station_and_part(tmp_path: Path) -> None:
    write(tmp_path / "good", {"0.png": part(500)})
    write(tmp_path / "repeat", {f"A/p{p}/{k}.png": repeat(80 + p, k) for p in range(2) for k in range(2)})
    write(tmp_path / "repeat", {f"B/p0/{k}.bmp": repeat(80, k) for k in range(2)})  # of A
    write(tmp_path / "repeat", {"B/p1/0.png": repeat(81, 2), "B/p1/1.png": repeat(80, 0)})  # the second of part p0
    notes: list[str] = []
    found = read_inputs(tmp_path / "good", repeat=tmp_path / "repeat", note=notes.append).repeats
    assert found is not None
    names = {station: {part: len(files) for part, files in parts.items()} for station, parts in found.items()}
    assert names == {"A": {"p0": 2, "p1": 2}, "B": {"p1": 1}}
    assert len(notes) == 3
    assert all("a copy is no repeat and is left out" in line for line in notes)
    assert str(tmp_path / "repeat/A/p0/0.png") in notes[0]


def test_images_of_an_earlier_calibration_are_known_by_path(station: Path, calibrated: Path, tmp_path: Path) -> None:
    entry = Bank.open(calibrated, lazy=True).classes["disc"].entry
    assert entry.calibration is not None
    old = entry.model_copy(
        update={"calibration": entry.calibration.model_copy(update={"digests": None, "pixels": None})}
    )
    with pytest.raises(VisionADError, match="6 of the calibration"):
        fresh_images(old, read_inputs(station / "good" / "mon").good)
    shutil.copytree(station / "good", tmp_path / "good")
    fresh, left_out = fresh_images(old, read_inputs(tmp_path / "good").good)
    assert (len(fresh), left_out) == (6, {"enrolled": 0, "calibration": 5})  # confirmed parts have records of their own


@pytest.mark.slow(group="acceptance")
def test_no_report_without_its_page(
    station: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "qualification.html").mkdir()  # it cannot be replaced
    assert run(command(station, tiny_model, "--defects", "0", "--out", str(tmp_path))) == 2
    assert "cannot write" in capsys.readouterr().err
    assert not (tmp_path / "qualification.json").exists()
