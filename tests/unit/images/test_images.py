"""Every file that is not a plain 8-bit image, and what the user is told about it. Every plain one, and its pixels."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from visionad_runtime.errors import ImageError, VisionADError
from visionad_runtime.images import decode as decode_module
from visionad_runtime.images import discover, reader
from visionad_runtime.images.arrays import from_array
from visionad_runtime.images.decode import MAX_FILE_BYTES, decode, load, read_bytes
from visionad_runtime.images.discover import find_images
from visionad_runtime.images.pixels import copy_pixels

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]

HEIGHT, WIDTH = 17, 24
RGB: U8 = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SMOOTH: U8 = np.add.outer(np.arange(HEIGHT) * 5, np.arange(WIDTH) * 4)[:, :, None].astype(np.uint8) + np.uint8(
    [0, 9, 40]
)
ORIENTATION = 274


def encoded(pixels: NDArray[np.generic] | Image.Image, kind: str, **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def by_cv2(suffix: str, pixels: NDArray[np.generic]) -> bytes:
    """OpenCV's encoder, which writes the 16-bit colour files that Pillow cannot. ``pixels`` are grey, RGB or RGBA."""
    done, data = cv2.imencode(suffix, pixels if pixels.ndim == 2 else pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]])
    assert done
    return data.tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_of(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand; ``rows`` carry their filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def bmp_header(width: int, height: int, bits: int, masks: bytes = b"") -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 3 if masks else 0, 0, 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(info)) + info


# --- what decodes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (encoded(RGB, "PNG"), "PNG"),
        (encoded(RGB, "PNG", compress_level=0), "stored PNG"),
        (encoded(RGB, "BMP"), "BMP"),
        (encoded(RGB, "TIFF"), "TIFF"),
        (encoded(RGB, "TIFF", compression="tiff_lzw"), "LZW TIFF"),
        (encoded(RGB, "TIFF", compression="tiff_adobe_deflate"), "deflated TIFF"),
        (encoded(RGB, "WEBP", lossless=True), "WebP"),
        (encoded(RGB, "PPM"), "PPM"),
        (b"P3 24 17 255\n" + " ".join(map(str, RGB.ravel().tolist())).encode(), "plain PPM"),
    ],
)
def test_lossless_files_keep_every_value(data: bytes, note: str) -> None:
    found = decode(data, note)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, RGB)


@pytest.mark.parametrize(
    ("data", "expected", "note"),
    [
        (encoded(RGB[:, :, 0], "PPM"), RGB[:, :, [0, 0, 0]], "PGM"),
        (encoded(RGB[:, :, 0], "TIFF"), RGB[:, :, [0, 0, 0]], "grey TIFF"),
        (encoded(RGB[:, :, 0], "BMP"), RGB[:, :, [0, 0, 0]], "grey BMP"),
        (encoded(RGB[:, :, 0], "GIF"), RGB[:, :, [0, 0, 0]], "GIF of one frame"),
        (encoded(np.dstack([RGB, RGB[:, :, 0]]), "TIFF"), RGB, "RGBA TIFF"),
        (encoded(np.dstack([RGB, RGB[:, :, 0]]), "PNG"), RGB, "RGBA PNG, transparent pixels keep their colour"),
        (b"P4 8 1\n\xaa", np.tile([[0], [255]], (4, 3)).reshape(1, 8, 3), "PBM, 1 is black"),
        (b"P5 3 1 100\n" + bytes([0, 50, 100]), [[[0] * 3, [128] * 3, [255] * 3]], "PGM of 100 levels"),
    ],
)  # fmt: skip
def test_grey_and_alpha_become_rgb(data: bytes, expected: U8, note: str) -> None:
    np.testing.assert_array_equal(decode(data, note), expected, note)


def test_a_palette_with_transparency_gives_its_colours() -> None:
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    image = Image.fromarray(RGB[:, :, 0])
    image.putpalette(palette.ravel().tolist())
    for options in ({}, {"transparency": 7}, {"transparency": bytes(range(256))}):
        np.testing.assert_array_equal(decode(encoded(image, "PNG", **options), "p"), palette[RGB[:, :, 0]])


@pytest.mark.parametrize(
    ("bits", "masks", "levels"), [(15, b"", (31, 31, 31)), (16, struct.pack("<III", 0xF800, 0x7E0, 0x1F), (31, 63, 31))]
)
def test_bmp_of_16_bits_a_pixel_is_not_deep(bits: int, masks: bytes, levels: tuple[int, int, int]) -> None:
    red, green = (0x7C00, 0x3E0) if bits == 15 else (0xF800, 0x7E0)
    data = bmp_header(4, 1, 16, masks) + struct.pack("<4H", red, green, 0x1F, 0)
    np.testing.assert_array_equal(decode(data, "b"), [[[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]]])


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_jpegs_are_pillows(options: dict[str, object]) -> None:
    data = encoded(SMOOTH, "JPEG", quality=90, **options)
    found = decode(data, "j")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))
    assert np.abs(found.astype(int) - SMOOTH).mean() < 4


def test_cmyk_and_grey_jpegs() -> None:
    cmyk = decode(encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95), "cmyk")
    assert cmyk.shape == SMOOTH.shape and np.abs(cmyk.astype(int) - SMOOTH).mean() < 8  # inverted, it would be 100
    grey = decode(encoded(SMOOTH[:, :, 0], "JPEG", quality=95), "grey")
    assert (grey == grey[:, :, :1]).all() and np.abs(grey[:, :, 0].astype(int) - SMOOTH[:, :, 0]).mean() < 4


def test_a_camera_phones_second_image_is_passed_over() -> None:
    data = encoded(Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    np.testing.assert_array_equal(decode(data, "m"), decode(encoded(SMOOTH, "JPEG"), "j"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_does_not_rotate(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    turned = encoded(SMOOTH, kind, exif=exif, **options)
    with Image.open(io.BytesIO(turned)) as image:
        assert image.getexif()[ORIENTATION] == orientation
    np.testing.assert_array_equal(decode(turned, "turned"), decode(encoded(SMOOTH, kind, **options), "upright"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_has_one_orientation_whatever_its_depth(orientation: int) -> None:
    tag = {ORIENTATION: orientation}
    shallow = decode(encoded(RGB[:, :, 0], "TIFF", tiffinfo=tag), "8")
    deep = decode(encoded(RGB[:, :, 0].astype(np.uint16) << 8, "TIFF", tiffinfo=tag), "16", bit_depth=16)
    np.testing.assert_array_equal(deep, shallow)


# --- more than 8 bits ------------------------------------------------------------------------------------------------

GREY16: U16 = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
RGB16: U16 = np.stack([GREY16, GREY16[::-1], GREY16[:, ::-1]], axis=-1)

WRITERS: dict[str, Callable[[U16], bytes]] = {
    "grey PNG": lambda x: by_cv2(".png", x[:, :, 0]),
    "RGB PNG": lambda x: by_cv2(".png", x),
    "RGBA PNG": lambda x: by_cv2(".png", np.dstack([x, x[:, :, 0]])),
    "grey TIFF": lambda x: by_cv2(".tif", x[:, :, 0]),
    "grey TIFF by Pillow": lambda x: encoded(x[:, :, 0], "TIFF"),
    "RGB TIFF": lambda x: by_cv2(".tif", x),
    "PGM": lambda x: by_cv2(".pgm", x[:, :, 0]),
    "PPM": lambda x: by_cv2(".ppm", x),
}


@pytest.mark.parametrize("name", WRITERS)
def test_deep_files_need_a_stated_depth(name: str) -> None:
    with pytest.raises(ImageError, match=r"more than 8 bits a channel.*--bit-depth 10, 12 or 16"):
        decode(WRITERS[name](RGB16), name)
    with pytest.raises(ImageError, match="more than 8 bits"):
        decode(WRITERS[name](np.zeros_like(RGB16)), name)  # the header decides, not the values


@pytest.mark.parametrize("depth", [9, 10, 12, 14, 16])
@pytest.mark.parametrize("name", WRITERS)
def test_the_top_eight_bits_of_the_stated_depth_are_used(name: str, depth: int) -> None:
    values = RGB16 >> (16 - depth)
    assert values.max() == 2**depth - 1
    expected = (values >> (depth - 8)).astype(np.uint8)
    found = decode(WRITERS[name](values), name, bit_depth=depth)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    is_grey = name.startswith(("grey", "PGM"))
    np.testing.assert_array_equal(found, expected[:, :, [0, 0, 0]] if is_grey else expected)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("depth", "words"), [(10, "10 bits"), (12, "12 bits"), (8, "9..16"), (17, "9..16"), (-1, "9..16")]
)
def test_a_wrong_depth_is_refused(name: str, depth: int, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode(WRITERS[name](RGB16), name, bit_depth=depth)


@pytest.mark.parametrize(("maxval", "values"), [(1023, (0, 1, 4, 512, 1022, 1023)), (300, (0, 4, 255, 256, 299, 300))])
@pytest.mark.parametrize("magic", [b"P5", b"P6", b"P2", b"P3"])
def test_a_pnm_of_few_deep_levels_is_not_rescaled(maxval: int, values: tuple[int, ...], magic: bytes) -> None:
    colour = magic in (b"P3", b"P6")
    body = struct.pack(">6H", *values) if magic in (b"P5", b"P6") else " ".join(map(str, (*values, "\n"))).encode()
    data = magic + (b" 2 1 " if colour else b" 6 1 ") + str(maxval).encode() + b"\n" + body
    expected = np.array(values) >> 2
    expected = expected.reshape(1, 2, 3) if colour else np.repeat(expected[None, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(data, "p", bit_depth=10), expected)
    with pytest.raises(ImageError, match="more than 8 bits"):
        decode(data, "p")


def test_deep_grey_with_alpha() -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 1000, 65535, 2000, 30000, 65000, 0) for _ in range(2))
    data = png_of(3, 2, 16, 4, rows)
    expected = np.array([1000, 2000, 65000]) >> 8
    np.testing.assert_array_equal(decode(data, "la", 16), np.broadcast_to(expected[None, :, None], (2, 3, 3)))


@pytest.mark.parametrize("depth", [None, 16])
@pytest.mark.parametrize(
    ("data", "note"),
    [
        (encoded(GREY16.astype(np.float32), "TIFF"), "float TIFF"),
        (encoded(GREY16.astype(np.int32), "TIFF"), "int32 TIFF"),
        (by_cv2(".tif", RGB16.astype(np.float32)), "float RGB TIFF"),
        (by_cv2(".tif", GREY16.astype(np.float64)), "double TIFF"),
        (b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5), "PFM"),
    ],
)
def test_floats_and_long_integers_are_refused_either_way(data: bytes, note: str, depth: int | None) -> None:
    with pytest.raises(ImageError):
        decode(data, note, depth)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF"])
def test_a_depth_stated_for_8_bits_is_refused(kind: str) -> None:
    with pytest.raises(ImageError, match="the file holds 8 bits"):
        decode(encoded(RGB, kind), kind, bit_depth=12)


# --- what does not decode --------------------------------------------------------------------------------------------


def frames(kind: str) -> bytes:
    pages = [Image.fromarray(RGB), Image.fromarray(RGB[::-1])]
    return encoded(pages[0], kind, save_all=True, append_images=pages[1:])


@pytest.mark.parametrize(
    ("data", "words", "note"),
    [
        (b"", "no image", "nothing"),
        (b"\0" * 1000, "no image", "zeros"),
        (b"this is a text, renamed to .png", "no image", "text"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image", "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image", "EPS, which Pillow runs Ghostscript for"),
        (encoded(RGB, "ICO"), "no image", "a format that is not offered"),
        (b"\x89PNG\r\n\x1a\n", "x", "PNG signature alone"),
        (b"\xff\xd8\xff", "x", "JPEG signature alone"),
        (frames("GIF"), "2 frames", "animated GIF"),
        (frames("PNG"), "2 frames", "animated PNG"),
        (frames("TIFF"), "2 frames", "TIFF of two pages"),
        (frames("WEBP"), "2 frames", "animated WebP"),
        (png_of(60000, 60000, 8, 2, b"\0"), "150 million pixels; refused unread", "bomb: PNG header"),
        (bmp_header(60000, 60000, 24), "150 million pixels; refused unread", "bomb: BMP header"),
        (b"P6 60000 60000 255\n", "150 million pixels; refused unread", "bomb: PPM header"),
        (png_of(12500, 12500, 8, 2, b"\0"), "12500 x 12500 is more than 150 million", "more than ours, less than Pillow's"),
        (png_of(60000, 60000, 16, 0, b"\0"), "refused unread", "bomb: deep PNG header"),
        (png_of(4, 4, 8, 2, b"\0" * 5), "damaged or truncated", "too little pixel data"),
        (by_cv2(".png", RGB16)[:400], "x", "half a deep PNG: OpenCV would write lines of its own"),
        (png_of(0, 4, 8, 2, b"\0"), "x", "no width"),
        (b"P5 0 0 255\n", "x", "no pixels"),
        (b"P5 4 4 70000\n" + b"\0" * 32, "x", "maxval beyond 16 bits"),
    ],
)  # fmt: skip
def test_bad_content_is_one_clear_line(data: bytes, words: str, note: str, capfd: pytest.CaptureFixture[str]) -> None:
    for depth in (None, 16):
        with pytest.raises(
            ImageError, match="the label" if words == "x" or depth else f"^the label: .*{words}"
        ) as caught:
            decode(data, "the label", depth)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


ORIGINALS: dict[str, tuple[bytes, int | None]] = {
    "PNG": (encoded(SMOOTH, "PNG"), None),
    "palette PNG": (encoded(Image.fromarray(SMOOTH).quantize(16), "PNG", transparency=3), None),
    "JPEG": (encoded(SMOOTH, "JPEG"), None),
    "progressive JPEG": (encoded(SMOOTH, "JPEG", progressive=True), None),
    "TIFF": (encoded(SMOOTH, "TIFF"), None),
    "LZW TIFF": (encoded(SMOOTH, "TIFF", compression="tiff_lzw"), None),
    "WebP": (encoded(SMOOTH, "WEBP"), None),
    "BMP": (encoded(SMOOTH, "BMP"), None),
    "GIF": (encoded(SMOOTH, "GIF"), None),
    "PPM": (encoded(SMOOTH, "PPM"), None),
    "deep PNG": (by_cv2(".png", RGB16), 16),
    "deep TIFF": (by_cv2(".tif", RGB16), 16),
    "deep PPM": (by_cv2(".ppm", RGB16), 16),
}


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_truncated_file_is_refused_or_complete(name: str) -> None:
    data, depth = ORIGINALS[name]
    whole = decode(data, name, depth)
    refused = 0
    for length in {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 24, len(data))}:
        try:
            found = decode(data[:length], name, depth)
        except ImageError:
            refused += 1
        else:  # what is missing was no pixel: never half an image on a grey ground
            np.testing.assert_array_equal(found, whole, f"{length} of {len(data)} bytes")
    assert refused >= 50


@pytest.mark.parametrize("name", ORIGINALS)
@settings(max_examples=120, deadline=None)
@given(damage=st.data())
def test_damaged_bytes_give_pixels_or_an_image_error(name: str, damage: st.DataObject) -> None:
    data, depth = ORIGINALS[name]
    place = st.one_of(
        st.integers(0, min(63, len(data) - 1)), st.integers(0, len(data) - 1)
    )  # headers are the weak spot
    mutant = bytearray(data)
    for where, value in damage.draw(st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=8)):
        mutant[where] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_module, "MAX_PIXELS", 1_000_000)  # a mutated header must not make the test slow
        try:
            found = decode(bytes(mutant), name, depth)
        except ImageError as exc:
            assert "\n" not in str(exc)
        else:
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3 and found.size


# --- files -----------------------------------------------------------------------------------------------------------


def test_load_reads_what_was_written(tmp_path: Path) -> None:
    for name in ("a.png", "прав да.png", "line\nbreak.png", "部品.PNG", "no suffix"):
        (tmp_path / name).write_bytes(encoded(RGB, "PNG"))
        np.testing.assert_array_equal(load(tmp_path / name), RGB)
    (tmp_path / "deep.png").write_bytes(by_cv2(".png", RGB16))
    np.testing.assert_array_equal(load(tmp_path / "deep.png", 16), RGB16 >> 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.png", "missing.png: cannot be read: No such file"),
        ("folder", "folder: expected an image, got a folder"),
        ("empty.png", r"empty.png: is empty \(0 bytes\)"),
        ("text.png", "text.png: is no image of a known format"),
        ("text.png/below.png", "Not a directory"),
        ("nul\0byte.png", "null"),
        ("loop.png", "cannot be read"),
        ("dangling.png", "No such file"),
        ("pipe.png", "pipe"),
        ("x" * 300, "name too long"),
        ("new\nline.png", "new line.png: cannot be read"),
    ],
)
def test_bad_files_are_one_clear_line(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match=words) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_forbidden_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG"))
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(ImageError, match="Permission denied"):
        load(tmp_path / "a.png")
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(VisionADError, match="cannot be listed: Permission denied"):
        find_images([tmp_path])


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "sparse.png", "wb") as f:
        f.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ImageError, match="1024 MiB is larger"):
        read_bytes(tmp_path / "sparse.png")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_folders_are_searched_below_and_in_order(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.png",
        "a.JPG",
        "sub/deep/c.tiff",
        "sub/a.webp",
        "Z.bmp",
        "10.png",
        "9.png",
        "é.png",
        "new\nline.gif",
    )
    touch(
        tmp_path, "notes.txt", "mask.npy", "png", ".hidden.png", ".cache/x.png", "sub/.git/y.png", "folder.png/in.pgm"
    )
    found = find_images([tmp_path])
    assert [f.name.as_posix() for f in found] == [
        "10.png", "9.png", "Z.bmp", "a.JPG", "b.png", "folder.png/in.pgm", "new\nline.gif", "sub/a.webp", "sub/deep/c.tiff",
        "é.png",
    ]  # fmt: skip
    assert all(f.path == tmp_path / f.name for f in found)


def test_arguments_keep_their_order_and_named_files_are_always_taken(tmp_path: Path) -> None:
    touch(tmp_path, "two/b.png", "two/a.png", "one.dat", ".hidden.png", ".secret/s.png")
    asked = ["two", "one.dat", ".hidden.png", "missing.png", "two/b.png", ".secret", "nul\0byte.png"]
    found = find_images([tmp_path / name for name in asked])
    assert [f.path.relative_to(tmp_path).as_posix() for f in found] == [
        "two/a.png", "two/b.png", "one.dat", ".hidden.png", "missing.png", "two/b.png", ".secret/s.png", "nul\0byte.png",
    ]  # fmt: skip
    assert [f.name.as_posix() for f in found] == [
        "a.png", "b.png", "one.dat", ".hidden.png", "missing.png", "b.png", "s.png", "nul\0byte.png",
    ]  # fmt: skip


def test_linked_folders_do_not_loop(tmp_path: Path) -> None:
    touch(tmp_path, "parts/a.png", "elsewhere/b.png")
    (tmp_path / "parts" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "parts" / "self").symlink_to(".", target_is_directory=True)
    (tmp_path / "parts" / "linked.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert [f.name.as_posix() for f in find_images([tmp_path / "parts"])] == ["a.png", "linked.png"]
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [f.path for f in find_images([tmp_path / "link"])] == [tmp_path / "link" / "b.png"]  # named, so followed


@pytest.mark.parametrize("names", [(), ("notes.txt", ".hidden.png"), ("sub/.gitkeep",)])
def test_a_folder_without_images_is_an_error(names: tuple[str, ...], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    with pytest.raises(VisionADError, match="holds no image"):
        find_images([tmp_path])
    assert find_images([]) == []


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "colour", "expected", "note"),
    [
        (RGB, "rgb", RGB, "as it is"),
        (RGB, "bgr", RGB[:, :, ::-1], "as OpenCV gives it"),
        (RGB[:, :, 0], "rgb", RGB[:, :, 0], "grey"),
        (RGB[:, :, :1], "bgr", RGB[:, :, 0], "grey with an axis"),
        (RGB[::2, ::-1], "bgr", RGB[::2, ::-1, ::-1], "a view with strides"),
        (np.asfortranarray(RGB), "rgb", RGB, "columns first"),
        (RGB[:1, :1], "rgb", RGB[:1, :1], "one pixel"),
        (RGB[:1, :1], "bgr", RGB[:1, :1, ::-1], "one pixel of BGR"),
        (RGB[:1], "bgr", RGB[:1, :, ::-1], "a row of BGR"),
        (RGB[:, 2:3], "bgr", RGB[:, 2:3, ::-1], "a column of a BGR image"),
        (RGB[:, :, ::-1], "rgb", RGB[:, :, ::-1], "BGR that the caller turned around"),
        (RGB[:3, :3, 0], "bgr", RGB[:3, :3, 0], "3 × 3 grey is no row of colours"),
    ],
)
def test_arrays_that_are_taken(image: U8, colour: str, expected: U8, note: str) -> None:
    before = image.copy()
    found = from_array(image, colour)
    assert found.dtype == np.uint8 and np.shares_memory(found, image)
    np.testing.assert_array_equal(found, expected, note)
    copied = np.empty(found.shape, np.uint8)
    copy_pixels(copied, found)
    np.testing.assert_array_equal(copied, expected, note)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("image", "colour", "words"),
    [
        (RGB, "BGR", "expected 'bgr' or 'rgb', got 'BGR'"),
        (RGB, "", "expected 'bgr' or 'rgb'"),
        (RGB.astype(np.uint16), "rgb", "uint16"),
        (RGB.astype(np.int8), "rgb", "int8"),
        (RGB / 255, "rgb", "float64"),
        (RGB > 127, "rgb", "bool"),
        (RGB.tolist(), "rgb", "got list"),
        (Image.fromarray(RGB), "rgb", "got Image"),
        (None, "rgb", "got NoneType"),  # what cv2.imread returns for a missing file
        (np.dstack([RGB, RGB]), "rgb", r"\(17, 24, 6\)"),
        (np.dstack([RGB, RGB[:, :, 0]]), "bgr", r"\(17, 24, 4\)"),
        (RGB[:, :, :2], "rgb", r"\(17, 24, 2\)"),
        (RGB.transpose(2, 0, 1), "rgb", r"\(3, 17, 24\)"),
        (RGB[None], "rgb", r"\(1, 17, 24, 3\)"),
        (RGB[0, 0], "rgb", r"\(3,\)"),
        (RGB[:0], "rgb", r"\(0, 24, 3\)"),
        (RGB[:, :0, 0], "rgb", r"\(17, 0\)"),
        (np.uint8(3), "rgb", "got uint8"),
        (
            np.lib.stride_tricks.as_strided(RGB, (20000, 20000, 3), (0, 0, 1)),
            "rgb",
            "20000 x 20000 is more than 150 million",
        ),
        (np.lib.stride_tricks.as_strided(RGB, (20000, 20000), (0, 0)), "rgb", "20000 x 20000 is more than 150 million"),
    ],
)
def test_arrays_that_are_refused(image: U8, colour: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        from_array(image, colour)


# -- several files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twelve images of one grey each; the fourth is damaged."""
    made = [tmp_path / f"{i:02d}.png" for i in range(12)]
    for i, path in enumerate(made):
        path.write_bytes(encoded(np.full((8, 9, 3), i, np.uint8), "PNG") if i != 3 else b"nothing")
    return made


@pytest.mark.parametrize("readers", [1, 2, 3, 99])
def test_files_come_in_order_however_many_read(files: list[Path], readers: int) -> None:
    for paths in (files, tuple(files), iter(files)):
        found = list(reader.read_images(paths, readers=readers))
        assert [one.path for one in found] == files
        assert [one.rgb is None for one in found] == [i == 3 for i in range(12)]
        assert all(one.rgb[0, 0, 0] == i for i, one in enumerate(found) if one.rgb is not None)
        assert "00.png" not in str(found[3].error) and "03.png: is no image" in str(found[3].error)
        assert all(one.ms > 0 for one in found)


def test_a_list_is_read_ahead_an_iterator_is_not(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    together = threading.Barrier(reader.PREFETCH_THREADS)

    def slow(path: Path, bit_depth: int | None) -> U8:
        begun.append(path.name)
        if path is not files[0]:
            together.wait(timeout=30)  # a thread for each, or nobody gets further
        return RGB

    monkeypatch.setattr(reader, "load", slow)
    reads = reader.read_images(files[:9], readers=99)
    assert next(reads).path == files[0]
    assert [one.path for one in reads] == files[1:9]
    assert len(begun) == 9
    begun.clear()
    monkeypatch.setattr(reader, "load", lambda path, _: begun.append(path.name) or RGB)
    reads = reader.read_images(iter(files), readers=99)
    next(reads)
    assert begun == ["00.png"]


def test_large_images_are_not_read_ahead(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def counted(path: Path, bit_depth: int | None) -> U8:
        begun.append(path.name)
        return RGB

    monkeypatch.setattr(reader, "load", counted)
    for room, most in ((0, 1), (1, 2), (2, 3)):
        monkeypatch.setattr(reader, "PREFETCH_BYTES", room * RGB.nbytes)
        begun.clear()
        for done, _ in enumerate(reader.read_images(files, readers=4), start=1):
            assert len(begun) <= done + most - 1


def test_who_stops_early_leaves_no_thread_at_work(files: list[Path]) -> None:
    reads = reader.read_images(files, readers=3)
    next(reads)
    reads.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("visionad-read")]


def test_one_path_is_no_list(files: list[Path]) -> None:
    for one in (files[0], str(files[0])):
        with pytest.raises(ImageError, match=r"00\.png: expected a list of image files, got one"):
            discover.as_paths(one)  # type: ignore[arg-type]


def test_threads_that_decode_leave_warnings_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, data = Image.open, encoded(RGB, "PNG")
    inside = {name: threading.Event() for name in ("first", "second")}
    go_on = {name: threading.Event() for name in ("first", "second")}
    decoded: list[U8] = []

    def held(*args: Any, **options: Any) -> Any:
        name = threading.current_thread().name
        inside[name].set()
        assert go_on[name].wait(30)
        warnings.warn("too large", Image.DecompressionBombWarning, stacklevel=1)
        return plain(*args, **options)

    monkeypatch.setattr(Image, "open", held)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        threads = [threading.Thread(target=lambda: decoded.append(decode(data, "")), name=name) for name in inside]
        for thread in threads:
            thread.start()
            assert inside[thread.name].wait(30)
        for thread in threads:  # the first that came goes first
            go_on[thread.name].set()
            thread.join()
        assert list(warnings.filters) == before
    assert len(decoded) == 2
