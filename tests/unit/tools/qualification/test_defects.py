"""Painted defects: deterministic, of the stated extent, visible in proportion to the contrast, inside what is inspected."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from visionad_runtime.formats.manifest import PreprocessSpec
from visionad_runtime.tools.qualification.defects import KINDS, Defect, Kind, paint
from visionad_runtime.tools.qualification.places import (
    extent,
    inspected_pixels,
    part_pixels,
    plan,
    regions,
    shorter_side,
    size_levels,
)


def surface(seed: int = 0) -> np.ndarray:
    """A textured gray surface with features, uint8 (200, 240, 3)."""
    rng = np.random.default_rng(seed)
    image = np.full((200, 240, 3), 150, np.float32)
    image[:, ::24] -= 60
    image[::20] -= 40
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [12.0, 40.0])
def test_same_seed_same_pixels_and_only_near_its_place(kind: Kind, size: float) -> None:
    image = surface()
    defect = Defect(kind, 100, 90, size, 0.3, 5)
    first, second = paint(image, defect), paint(image, defect)
    assert np.array_equal(first.rgb, second.rgb)
    assert not np.array_equal(first.rgb, paint(image, Defect(kind, 100, 90, size, 0.3, 6)).rgb)
    assert np.array_equal(image, surface())
    rows, columns = np.nonzero((first.rgb != image).any(axis=2))
    assert np.hypot(rows - 90, columns - 100).max() <= 1.6 * (size / 2 + 3) + size * 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_the_extent_is_that_of_the_mask(kind: Kind) -> None:
    for seed in range(6):
        painted = paint(surface(), Defect(kind, 120, 100, 60, 0.4, seed))
        measured = extent(painted.rgb, painted.mask)
        assert measured is not None
        assert 0.5 * 60 <= measured.size <= 1.25 * 60


@pytest.mark.parametrize("kind", KINDS)
def test_more_contrast_changes_more(kind: Kind) -> None:
    def change(contrast: float) -> float:
        painted = paint(surface(), Defect(kind, 110, 95, 50, contrast, 3))
        return float(np.abs(painted.rgb.astype(float) - surface()).mean())

    changes = [change(c) for c in (0.05, 0.1, 0.2, 0.4)]
    assert changes == sorted(changes)
    assert changes[0] < changes[-1]


def test_a_shift_of_a_plain_area_is_invisible() -> None:
    plain = np.full((80, 80, 3), 120, np.uint8)
    assert paint(plain, Defect("shift", 40, 40, 30, 0.4, 0)).change == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_gray_image_stays_gray(kind: Kind) -> None:
    gray = surface()[..., 0]
    rgb = paint(gray, Defect(kind, 100, 90, 40, 0.4, 2)).rgb
    assert np.array_equal(rgb[..., 0], rgb[..., 1])
    assert np.array_equal(rgb[..., 0], rgb[..., 2])


def test_gray_images_and_edges() -> None:
    gray = surface()[..., 0]
    painted = paint(gray, Defect("spot", 1, 198, 30, 0.4, 0))
    assert painted.rgb.shape == (200, 240, 3)
    assert painted.mask.any()
    assert extent(gray, np.zeros_like(gray, dtype=bool)) is None


def test_the_part_is_what_differs_from_a_plain_background() -> None:
    image = np.full((120, 120, 3), 240, np.uint8)
    cv2.circle(image, (60, 60), 40, (30, 30, 30), -1)
    cv2.circle(image, (60, 60), 10, (240, 240, 240), -1)  # a hole belongs to the part
    part = part_pixels(image)
    assert part[60, 60]
    assert part[60, 95]
    assert not part[5, 5]
    assert part_pixels(surface()).all()  # no plain border: everything is the part


def test_inspected_pixels_are_the_center_crop_without_ignored_ones() -> None:
    spec = PreprocessSpec(resize=100, crop=80, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    ignored = np.zeros((100, 200), bool)
    ignored[:, 100:] = True
    mask = inspected_pixels((100, 200), [((0, 0, 200, 100), ignored)], spec)
    assert (mask.sum(), shorter_side(mask)) == (80 * 80, 80)
    assert not mask[:10].any()
    assert mask[10:90, 20:100].all()


def test_a_plan_covers_kinds_regions_and_sizes_and_grows_at_its_end() -> None:
    mask = np.zeros((90, 90), bool)
    mask[:, :60] = True
    short = plan([mask, mask], [90, 90], 100, 0)
    assert plan([mask, mask], [90, 90], 40, 0) == short[:40]
    assert plan([mask, mask], [90, 90], 40, 1) != short[:40]
    full = plan([mask], [90], 10**6, 0)
    assert len(full) == len(KINDS) * len(regions(mask)) * 6 * 3
    for one in full:
        assert mask[int(one.defect.y), int(one.defect.x)]
        assert one.defect.size == size_levels(90)[one.level]
