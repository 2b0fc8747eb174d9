"""Alignment: a part that lies elsewhere, is another one or is not there is not decidable, and says where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime import Inspector
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.roi import make_spec, parse_roi
from visionad_runtime.station.front.front import Front
from visionad_runtime.station.preflight import problems_of
from visionad_runtime.station.settings import Alignment, Checks, Recipe, read_station
from visionad_runtime.station.worker.alignment import Reference
from visionad_runtime.station.worker.checks import ImageChecks

from tests.data import part
from tests.stations import rows_of, run, until
from tests.unit.station.front.test_front import station_file

__all__ = ["station_file"]
Pixels = NDArray[np.uint8]
NARROW = Alignment(max_shift_px=10, max_rotation_deg=3)


def plate(seed: int, height: int = 240, width: int = 320) -> Pixels:
    """A plate with holes, that has one position only: uint8 RGB with noise of its own."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 70, (height, width, 3), dtype=np.uint8)
    across, down = width // 4, height // 4
    cv2.rectangle(image, (across, down), (3 * across, 3 * down), (180, 170, 160), -1)
    for x, y, radius in ((1.4, 1.5, 0.2), (2.5, 1.4, 0.1), (2.2, 2.4, 0.3)):
        cv2.circle(image, (round(x * across), round(y * down)), round(radius * down), (40, 50, 60), -1)
    return image


def moved(image: Pixels, across: float, down: float, degrees: float = 0.0) -> Pixels:
    """The image turned clockwise about its middle, then moved."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
    matrix[:, 2] += across, down
    turned = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(turned, np.uint8)


@pytest.mark.parametrize(
    ("across", "down", "degrees"), [(0, 0, 0), (3, -4, 0), (0, 0, 2.5), (-6, 8, 2.1), (24, 0, -3), (60, 30, 0)]
)
@pytest.mark.parametrize("channels", ["rgb", "gray"])
def test_shift_and_turn_are_found_to_a_fraction(across: float, down: float, degrees: float, channels: str) -> None:
    enrolled, other = plate(1), moved(plate(2), across, down, degrees)
    if channels == "gray":
        enrolled, other = enrolled[..., 1], other[..., 1]
    found = Reference(enrolled).locate(other)
    assert found is not None and found.correlation > 0.97
    assert found.shift_px == pytest.approx(np.hypot(across, down), abs=0.4)
    assert found.rotation_deg == pytest.approx(degrees, abs=0.3)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (480, 640), (1500, 2000)])
def test_pixels_are_those_of_the_image_at_any_size(height: int, width: int) -> None:
    shift = width / 32
    found = Reference(plate(1, height, width)).locate(moved(plate(2, height, width), shift, 0, 2))
    assert found is not None
    assert found.shift_px == pytest.approx(shift, rel=0.05) and found.rotation_deg == pytest.approx(2, abs=0.3)


def test_light_does_not_matter() -> None:
    dim = (moved(plate(2), 4, 0) * 0.5 + 30).astype(np.uint8)
    finding = Reference(plate(1)).look(dim, NARROW)
    assert finding.problem is None and finding.position is not None and finding.position.correlation > 0.97
    assert finding.position.shift_px == pytest.approx(4, abs=0.4)


def test_out_of_limits_says_how_far_and_the_limits() -> None:
    reference = Reference(plate(1))
    assert reference.look(moved(plate(2), 6, 0, 2), NARROW).problem is None
    far = reference.look(moved(plate(2), 14, 0, 2), NARROW)
    assert far.problem is not None and far.problem.startswith("moved 14.")
    assert far.problem.endswith(" deg; limit 10 px, 3 deg")
    assert set(far.facts) == {"alignment", "position"} and far.facts["position"] == far.problem
    assert set(far.facts["alignment"]) == {"correlation", "shift_px", "rotation_deg"}
    turned = reference.look(moved(plate(2), 0, 0, -5), NARROW)
    assert turned.problem is not None and "5.0 deg; limit" in turned.problem


def test_another_part_has_no_correlation() -> None:
    other = cv2.rotate(plate(3, 320, 240), cv2.ROTATE_90_CLOCKWISE)
    cv2.line(other, (0, 0), (319, 239), (255, 255, 255), 30)
    finding = Reference(plate(1)).look(np.asarray(other), NARROW)
    assert finding.problem is not None
    assert "correlation" in finding.problem or "could not be aligned" in finding.problem


@pytest.mark.parametrize(
    "image",
    [
        np.full((240, 320, 3), 128, np.uint8),
        np.zeros((240, 320, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8),
    ],
    ids=["blank", "black", "noise"],
)
def test_an_image_without_the_part_is_a_problem_and_no_crash(image: Pixels) -> None:
    assert Reference(plate(1)).look(image, NARROW).problem is not None


def test_an_enrolled_image_without_texture_and_one_of_another_size() -> None:
    flat = Reference(np.full((240, 320, 3), 128, np.uint8))
    assert flat.is_flat and "no texture" in str(flat.look(plate(1), NARROW).problem)
    finding = Reference(plate(1)).look(plate(1)[:200], NARROW)
    assert finding == (None, "the image has 320x200 pixels, the enrolled one 320x240")


def test_a_stripe_that_moves_outside_of_what_is_inspected_does_not_count() -> None:
    counts = np.zeros((240, 320), np.bool_)
    counts[50:190, 70:250] = True
    enrolled, now = plate(1), moved(plate(2), 5, 0)
    cv2.rectangle(enrolled, (0, 0), (40, 239), (255, 255, 255), -1)
    cv2.rectangle(now, (270, 0), (319, 239), (255, 255, 255), -1)
    found = Reference(enrolled, counts).locate(now)
    assert found is not None and found.correlation > 0.95 and found.shift_px == pytest.approx(5, abs=0.6)
    seen = Reference(enrolled).locate(now)
    assert seen is None or seen.correlation < 0.8


def test_a_small_region_of_a_large_image_is_looked_at_closely() -> None:
    def label(seed: int, x: int) -> Pixels:
        rng = np.random.default_rng(seed)
        image = rng.integers(60, 70, (1200, 1600), dtype=np.uint8)
        cv2.putText(image, "7A", (x, 640), cv2.FONT_HERSHEY_SIMPLEX, 1.5, 220, 5)
        return image

    counts = np.zeros((1200, 1600), np.bool_)
    counts[590:660, 780:880] = True
    found = Reference(label(1, 800), counts).locate(label(2, 806))
    assert found is not None and found.correlation > 0.9 and found.shift_px == pytest.approx(6, abs=0.5)


# -- in a station -----------------------------------------------------------------------------------------------------


def aligned(path: Path, recipe: str = "") -> Path:
    text = path.read_text().replace("class: disc}", f"class: disc{recipe}}}")
    text += 'checks: {rejects_in_a_row: 0, light: "off", alignment: {max_shift_px: 12, max_rotation_deg: 180}}\n'
    path.write_text(text)
    return path


def test_a_moved_part_is_not_decidable_and_raises_the_alarm(station_file: Path) -> None:
    aligned(station_file)
    for file in (station_file.parent / "images").iterdir():
        file.unlink()
    images = [part(20), moved(part(21), 22, 0), part(22, defect=True), np.full((96, 128, 3), 90, np.uint8)]
    for number, image in enumerate(images):
        cv2.imwrite(str(station_file.parent / "images" / f"{number}.png"), image)
    assert problems_of(read_station(station_file)) == []
    alarms: list[list[str]] = []

    async def play(front: Front) -> None:
        for number in range(len(images)):
            await until(lambda: front.state.ready)
            assert front.trigger(number, "") is not None
            await until(lambda: front.state.offered is not None)
            front.acknowledge()
            alarms.append([alarm["code"] for alarm in front.alarms.active()])

    run(station_file, play)
    rows = rows_of(station_file)
    assert [(row["evaluation"], row["reason"]) for row in rows] == [
        (1, "none"), (3, "position"), (2, "anomalous"), (3, "position"),
    ]  # fmt: skip
    assert [codes.count("position") for codes in alarms] == [0, 1, 1, 1]
    good, far, bad, blank = (json.loads(row["cameras"])["top"] for row in rows)
    assert "position" not in good and good["alignment"]["shift_px"] < 12
    assert far["position"].startswith("moved ") and far["alignment"]["shift_px"] > 12
    assert far["score"] > 0 and "position" not in bad  # a scratch does not move a part
    assert blank["position"] == "it could not be aligned with the enrolled image" and "alignment" not in blank


def test_a_recipe_has_limits_of_its_own(station_file: Path) -> None:
    settings = read_station(aligned(station_file, ", alignment: {max_shift_px: 40}")).settings
    (recipe,) = settings.recipes.values()
    assert recipe.alignment is not None and recipe.alignment.max_shift_px == 40
    with Inspector.open(settings.model, settings.bank, threads=1) as inspector:
        checks, far = ImageChecks(settings.checks, inspector), moved(part(2), 20, 0)
        result = inspector.inspect(far, class_name="disc")
        plain = recipe.model_copy(update={"alignment": None})
        found, other = checks.position(recipe, far, result), checks.position(plain, far, result)
        assert found is not None and "20 px" not in str(found.problem)
        assert other is not None and "limit 12 px" in str(other.problem)
        assert ImageChecks(Checks(), inspector).position(plain, far, result) is None  # off without the setting


def test_a_recipe_without_alignment_keeps_its_digest() -> None:
    recipe = Recipe.model_validate({"name": "one", "class": "gear"})
    assert recipe.digest() == "22876ab58a0601e0668938e439ebece1e19edc7e7ae8508e07e307c0b8ed7f5d"
    assert recipe.model_copy(update={"alignment": Alignment()}).digest() != recipe.digest()


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_check_and_the_recipe_say_that_a_class_cannot_be_aligned(station_file: Path, kept: bool, routed: bool) -> None:
    aligned(station_file)
    text = station_file.read_text().replace("bank: bank", "bank: other")
    station_file.write_text(text.replace(", class: disc", "") if routed else text)
    files = [station_file.parent / f"flat-{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        cv2.imwrite(str(file), np.full((96, 128, 3), 80 + number, np.uint8))
    settings = read_station(station_file).settings
    said = (
        "no texture to align parts by; enroll another"
        if kept
        else "keeps no image to align parts with; enroll one without"
    )
    with Inspector.open(settings.model, settings.bank, threads=1) as inspector:
        inspector.enroll_files("disc", files, keep_images=kept)
        checks, recipe = ImageChecks(settings.checks, inspector), settings.recipes[7]
        with pytest.raises(VisionADError, match=said):
            checks.prepare(recipe, recipe.class_of("top"))
        finding = checks.position(recipe, part(1), inspector.inspect(part(1), class_name="disc"))
        assert finding is not None and finding.problem is not None  # fail-safe, where the bank has changed meanwhile
    (problem,) = problems_of(read_station(station_file))
    assert problem.startswith("recipe 7: class 'disc': ") and said in problem


def test_what_is_not_inspected_does_not_count(tiny_model: Path, tmp_path: Path) -> None:
    spec = make_spec([parse_roi("disc=20,0,90,96")], (128, 96))
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(number) for number in range(2)], roi=spec)
        checks, recipe = ImageChecks(Checks(alignment=NARROW), inspector), Recipe(name="disc")
        image = part(0)
        image[:, 112:] = 255
        found = checks.position(recipe, image, inspector.inspect(image, class_name="disc"))
    assert found is not None and found.position is not None and found.position.correlation > 0.99
