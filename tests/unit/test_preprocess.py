"""Resize against an integer oracle and Pillow, normalise and poses against torch, the 14 encodings against the naive 18."""

from __future__ import annotations

import io
import itertools

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from visionad_runtime import preprocess
from visionad_runtime.formats.manifest import PreprocessSpec, ViewName
from visionad_runtime.images import decode

from tests.oracles import pillow_bilinear

try:
    import torch
except ImportError:  # the lean runtime; the resize is tested there all the same
    torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(torch is None, reason="normalise and the poses are defined by torch")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PILLOW = tuple(map(int, PIL.__version__.split(".")[:2]))
"""From 12.2 on, one call takes a tall image down first, then across; the method and all Pillows before go across first."""
U8 = NDArray[np.uint8]


def spec_of(resize: int, crop: int, mean_std: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET) -> PreprocessSpec:
    return PreprocessSpec(resize=resize, crop=crop, mean=mean_std[0], std=mean_std[1])


def pixels_of(height: int, width: int, kind: str = "noise", seed: int = 0) -> U8:
    rng = np.random.default_rng(seed)
    if kind == "black and white":  # the widest sums: rounding and clipping show here first
        return rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * np.uint8(255)
    if kind == "white":
        return np.full((height, width, 3), 255, np.uint8)
    if kind == "ramp":
        ramp = np.add.outer(np.arange(height) * 3, np.arange(width))
        return np.stack([ramp, ramp * 2, 255 - ramp], axis=-1).astype(np.uint8)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def by_pillow(rgb: U8, resize: int, crop: int) -> U8:
    """Plain ``resize().crop()``, for even margins; odd ones are ``test_crop_is_torchvisions``."""
    at = (resize - crop) // 2
    assert resize - crop == 2 * at
    resized = Image.fromarray(rgb).resize((resize, resize), Image.Resampling.BILINEAR)
    return np.asarray(resized.crop((at, at, at + crop, at + crop)))


# --- resize and crop -------------------------------------------------------------------------------------------------

SHAPES = st.one_of(
    st.tuples(st.integers(1, 260), st.integers(1, 260)),
    st.tuples(st.integers(1, 3), st.integers(200, 900)),
    st.tuples(st.integers(200, 900), st.integers(1, 3)),
)


@settings(max_examples=80, deadline=None)
@given(
    shape=SHAPES,
    resize=st.integers(8, 72),
    margin=st.integers(0, 10),
    kind=st.sampled_from(["noise", "black and white", "white", "ramp"]),
    strip=st.sampled_from([1, 50, 1000, preprocess.STRIP_PIXELS]),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_resize_is_the_integer_oracle_and_pillow(
    shape: tuple[int, int], resize: int, margin: int, kind: str, strip: int, threads: int, seed: int
) -> None:
    crop = resize - 2 * min(margin, (resize - 8) // 2)
    rgb = pixels_of(*shape, kind, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "STRIP_PIXELS", strip)
        found = preprocess.resize_crop(rgb, spec_of(resize, crop), threads)
    at = (resize - crop) // 2
    assert found.dtype == np.uint8 and found.shape == (crop, crop, 3)
    np.testing.assert_array_equal(found, pillow_bilinear(rgb, resize)[at : at + crop, at : at + crop])
    if shape[0] <= shape[1] or PILLOW < (12, 2):
        np.testing.assert_array_equal(found, by_pillow(rgb, resize, crop))


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop", "note"),
    [
        (1, 1, 448, 392, "one pixel"),
        (1, 5000, 448, 392, "a line"),
        (5000, 1, 448, 392, "a column"),
        (448, 448, 448, 392, "nothing to resize"),
        (448, 100, 448, 392, "one pass has nothing to do"),
        (449, 447, 448, 384, "almost nothing to resize; down first from Pillow 12.2 on"),
        (2000, 300, 448, 392, "a tall strip; down first from Pillow 12.2 on"),
        (896, 1344, 448, 448, "whole factors, no crop"),
        (2048, 2448, 448, 392, "a line camera's five megapixels"),
    ],
)
def test_resize_at_the_methods_own_sizes(height: int, width: int, resize: int, crop: int, note: str) -> None:
    rgb = pixels_of(height, width)
    found = preprocess.resize_crop(rgb, spec_of(resize, crop))
    at = (resize - crop) // 2
    np.testing.assert_array_equal(found, pillow_bilinear(rgb, resize)[at : at + crop, at : at + crop], note)


def test_resize_of_a_very_large_image_is_pillows() -> None:
    rgb = np.tile(pixels_of(500, 400), (8, 15, 1))
    assert rgb.shape == (4000, 6000, 3)
    np.testing.assert_array_equal(preprocess.resize_crop(rgb, spec_of(448, 392), 2), by_pillow(rgb, 448, 392))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (90, 120), (1200, 900)])
def test_grey_is_what_three_equal_channels_are(height: int, width: int) -> None:
    grey = np.ascontiguousarray(pixels_of(height, width)[:, :, 0])
    spec = spec_of(448, 392)
    thrice = preprocess.prepare(np.repeat(grey[:, :, None], 3, axis=2), spec)
    np.testing.assert_array_equal(preprocess.prepare(grey, spec, 2), thrice)


def test_resize_takes_any_memory_layout_and_leaves_the_image_alone() -> None:
    whole = pixels_of(120, 90)
    spec = spec_of(32, 28)
    for view in (
        whole[:, :, ::-1],
        whole[::-1],
        whole[10:80:2, 5:70],
        whole.transpose(1, 0, 2),
        np.asfortranarray(whole),
    ):
        np.testing.assert_array_equal(
            preprocess.resize_crop(view, spec), preprocess.resize_crop(np.ascontiguousarray(view), spec)
        )
    frozen = whole.copy()
    frozen.flags.writeable = False
    preprocess.prepare(frozen, spec)
    preprocess.prepare(whole, spec)
    np.testing.assert_array_equal(whole, pixels_of(120, 90))


@pytest.mark.parametrize(
    ("resize", "crop", "at"),
    [
        (448, 392, 28), (448, 384, 32), (224, 224, 0), (9, 8, 0), (11, 8, 2), (13, 8, 2), (15, 8, 4), (255, 224, 16),
        (449, 392, 28), (451, 392, 30),
    ],
)  # fmt: skip
def test_crop_is_torchvisions(resize: int, crop: int, at: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="the crop's rounding is torchvision's")
    spec = spec_of(resize, crop)
    rgb = pixels_of(resize, resize)  # of the size already, so only the crop is left to do
    wanted = transforms.CenterCrop(crop)(torch.from_numpy(rgb).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    assert preprocess.crop_offset(resize, crop) == at
    np.testing.assert_array_equal(preprocess.resize_crop(rgb, spec), wanted)


# --- from file to input ----------------------------------------------------------------------------------------------


def png(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def files() -> list[tuple[str, bytes, U8]]:
    """(mode, PNG, the RGB it stands for), the latter without Pillow's ``convert``."""
    rng = np.random.default_rng(3)
    rgb = pixels_of(33, 47)
    grey, alpha = rgb[:, :, 0], rgb[:, :, 1]
    palette = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    indexed = Image.fromarray(grey)
    indexed.putpalette(palette.ravel().tolist())
    bits = grey > 127
    thrice = np.repeat(grey[:, :, None], 3, axis=2)
    return [
        ("L", png(Image.fromarray(grey)), thrice),
        ("RGB", png(Image.fromarray(rgb)), rgb),
        ("RGBA", png(Image.fromarray(np.dstack([rgb, alpha]))), rgb),
        ("LA", png(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])), thrice),
        ("P", png(indexed), palette[grey]),
        ("P", png(indexed, transparency=bytes(range(256))), palette[grey]),
        ("1", png(Image.fromarray(bits)), np.repeat(bits[:, :, None], 3, axis=2) * np.uint8(255)),
    ]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize(("mode", "data", "rgb"), files())
def test_every_kind_of_file_becomes_pillows_rgb(mode: str, data: bytes, rgb: U8) -> None:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == mode
        by_convert = np.asarray(image.convert("RGB"))
    found = decode.decode(data, mode)
    np.testing.assert_array_equal(found, rgb)
    np.testing.assert_array_equal(found, by_convert)
    np.testing.assert_array_equal(preprocess.resize_crop(found, spec_of(40, 32)), pillow_bilinear(rgb, 40)[4:36, 4:36])


@needs_torch
@pytest.mark.parametrize(
    ("mean", "std"),
    [(*IMAGENET,), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.48145466, 0.4578275, 0.40821073), (0.27, 0.26, 0.28))],
)
def test_normalise_is_torchs_to_the_bit(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    cropped = np.dstack([levels, levels[::-1], levels.T])  # every level in every channel
    x = torch.from_numpy(cropped).permute(2, 0, 1)
    wanted = (x.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    found = preprocess.normalise(cropped, spec_of(16, 16, (mean, std)))
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(found.view(np.uint32), wanted.numpy().view(np.uint32))


@needs_torch
def test_prepare_is_resize_then_normalise() -> None:
    rgb, spec = pixels_of(50, 61), spec_of(40, 32)
    x = torch.from_numpy(pillow_bilinear(rgb, 40)[4:36, 4:36].copy()).permute(2, 0, 1).float() / 255
    wanted = (x - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    np.testing.assert_array_equal(preprocess.prepare(rgb, spec), wanted.numpy())


# --- poses, views, blocks --------------------------------------------------------------------------------------------

IMAGE = np.random.default_rng(1).standard_normal((3, 6, 6)).astype(np.float32)
"""No symmetry, both signs: every pose and every view of it differs."""

BY_TORCH = {
    "e": lambda x: x,
    "r90": lambda x: torch.rot90(x, 1, (-2, -1)),
    "r180": lambda x: torch.rot90(x, 2, (-2, -1)),
    "r270": lambda x: torch.rot90(x, 3, (-2, -1)),
    "fv": lambda x: x.flip(-2),
    "fh": lambda x: x.flip(-1),
    "r90fv": lambda x: torch.rot90(x.flip(-2), 1, (-2, -1)),
    "r270fv": lambda x: torch.rot90(x.flip(-2), 3, (-2, -1)),
}
VIEW_BY_TORCH = {"original": lambda x: x, "flip": lambda x: x.flip(-2), "clamp": lambda x: x.clamp(min=0)}
POSES = ("e", "r90", "r180", "r270", "fv", "fh")

ORDERS = [order for n in (1, 2, 3) for order in itertools.permutations(preprocess.VIEWS, n)]


@needs_torch
@pytest.mark.parametrize("pose", BY_TORCH)
def test_poses_are_torchs(pose: str) -> None:
    np.testing.assert_array_equal(preprocess.apply_pose(IMAGE, pose), BY_TORCH[pose](torch.from_numpy(IMAGE)).numpy())


@needs_torch
@pytest.mark.parametrize("view", preprocess.VIEWS)
def test_views_are_torchs(view: ViewName) -> None:
    before = IMAGE.copy()
    wanted = VIEW_BY_TORCH[view](torch.from_numpy(IMAGE)).numpy()
    np.testing.assert_array_equal(preprocess.apply_view(IMAGE, view), wanted)
    np.testing.assert_array_equal(IMAGE, before)


@needs_torch
@pytest.mark.parametrize("views", ORDERS)
def test_query_views_keep_the_given_order(views: tuple[ViewName, ...]) -> None:
    wanted = np.stack([VIEW_BY_TORCH[v](torch.from_numpy(IMAGE)).numpy() for v in views])
    found = preprocess.query_views(IMAGE, views)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)


@needs_torch
@pytest.mark.parametrize("views", ORDERS)
def test_a_views_run_of_blocks_is_its_six_naive_poses(views: tuple[ViewName, ...]) -> None:
    blocks = preprocess.encoding_names(views)
    encodings = preprocess.support_encodings(IMAGE, blocks)
    assert encodings.dtype == np.float32 and encodings.shape == (len(blocks), *IMAGE.shape)
    used: set[int] = set()
    for view in views:
        seen = VIEW_BY_TORCH[view](torch.from_numpy(IMAGE))
        naive = {BY_TORCH[pose](seen).contiguous().numpy().tobytes() for pose in POSES}
        run = preprocess.view_slice(blocks, view)
        assert len(naive) == 6
        assert sorted(e.tobytes() for e in encodings[run]) == sorted(naive)
        np.testing.assert_array_equal(encodings[preprocess.unrotated_index(blocks, view)], seen.numpy())
        used |= set(range(*run.indices(len(blocks))))
    assert used == set(range(len(blocks)))  # nothing is encoded in vain
    assert len({e.tobytes() for e in encodings}) == len(blocks)  # or twice


@pytest.mark.parametrize(
    ("views", "count"),
    [
        (("original",), 6), (("flip",), 6), (("clamp",), 6), (("original", "flip"), 8), (("original", "clamp"), 12),
        (("flip", "clamp"), 12), (("original", "flip", "clamp"), 14),
    ],
)  # fmt: skip
def test_number_of_encodings(views: tuple[ViewName, ...], count: int) -> None:
    assert len(preprocess.encoding_names(views)) == len(set(preprocess.encoding_names(views))) == count


def test_blocks_without_a_view_are_refused() -> None:
    """An original-only bank has four of the flip view's six poses: never a smaller bank without a word."""
    for views in (["original"], ["original", "clamp"], ["clamp"]):
        with pytest.raises(ValueError, match=r"lack poses|not in list"):
            preprocess.view_slice(preprocess.encoding_names(views), "flip")
    assert preprocess.view_slice(preprocess.encoding_names(["flip"]), "flip") == slice(0, 6)
