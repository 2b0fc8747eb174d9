"""Files with the same pixel values decode to the same array, however they are stored."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from visionad_runtime.errors import ImageError
from visionad_runtime.images.decode import decode
from visionad_runtime.images.pixels import pixel_digest

from tests.unit.images.writers import indexed_bmp, pillow, png_chunk, rle_bmp, tiff, tifffile_bytes, with_chunk

pytest.importorskip("tifffile", reason="the writer comes with the dev extra")
pytest.importorskip("imagecodecs", reason="the packers come with the dev extra")

U8 = NDArray[np.uint8]
COMPRESSIONS = [None, "lzw", "zlib", "adobe_deflate", "packbits", "zstd", "lzma"]
PIXELS = {
    depth: np.random.default_rng(depth)
    .integers(0, 1 << depth, (37, 50, 3))
    .astype(np.uint8 if depth == 8 else np.uint16)
    for depth in (8, 12, 16)
}
for _pixels in PIXELS.values():
    _pixels[5:20] = _pixels[5, 7]  # runs


def expected(values: NDArray[np.integer], depth: int) -> U8:
    eight = (values >> (depth - 8)).astype(np.uint8)
    return eight if eight.ndim == 3 else np.repeat(eight[:, :, None], 3, axis=2)


@st.composite
def tiffs(draw: st.DrawFn) -> tuple[bytes, U8, int | None]:
    """A TIFF of tifffile's, its pixels, and the depth to state."""
    depth = draw(st.sampled_from([8, 12, 16]))
    pixels = PIXELS[depth]
    colours = draw(st.sampled_from(["minisblack", "miniswhite", "rgb"]))
    alpha = colours != "miniswhite" and draw(st.booleans())
    values = pixels if colours == "rgb" else pixels[:, :, 0]
    want = expected(values, depth)
    stored = np.invert(values) if colours == "miniswhite" else values
    if colours == "miniswhite" and depth == 12:
        depth, want = 16, expected(values, 16)  # white is zero, so black is 65535: no 12 bits
    options: dict[str, object] = {}
    if alpha:
        stored = np.dstack([stored, pixels[::-1, :, 1]])
        options["extrasamples"] = [draw(st.sampled_from(["unassalpha", "unspecified"]))]
    if stored.ndim == 3:
        options["planarconfig"] = draw(st.sampled_from(["contig", "separate"]))
        if options["planarconfig"] == "separate":
            stored = np.moveaxis(stored, -1, 0)
    if draw(st.booleans()):
        options["tile"] = (draw(st.sampled_from([16, 48])), draw(st.sampled_from([16, 32, 64])))
    else:
        options["rowsperstrip"] = draw(st.sampled_from([1, 7, 37, 100]))
    compression = draw(st.sampled_from(COMPRESSIONS))
    predictor = compression not in (None, "packbits") and draw(st.booleans())
    data = tifffile_bytes(
        stored,
        photometric=colours,
        compression=compression,
        predictor=predictor,
        byteorder=draw(st.sampled_from("<>")),
        bigtiff=draw(st.booleans()),
        **options,
    )
    return data, want, None if depth == 8 else depth


@given(file=tiffs())
def test_tiffs_of_one_image_are_one_array(file: tuple[bytes, U8, int | None]) -> None:
    data, want, depth = file
    got = decode(data, "t", depth)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, want)
    assert pixel_digest(got) == pixel_digest(want)


@given(
    bits=st.sampled_from([1, 2, 4, 8, 12, 16]),
    photometric=st.sampled_from([0, 1, 3]),
    fill=st.sampled_from([1, 2]),
    order=st.sampled_from("<>"),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 9),
)
def test_bits_bit_order_palette_and_orientation(
    bits: int, photometric: int, fill: int, order: str, orientation: int, seed: int
) -> None:
    if photometric == 3 and bits > 8:
        photometric = 0
    rng = np.random.default_rng(seed)
    most = (1 << bits) - 1
    values = rng.integers(0, most + 1, (5, 11))
    tags = {"t274": [orientation]}
    if photometric == 3:
        colours = rng.integers(0, 65536, (3, most + 1))
        tags["t320"] = colours.ravel().tolist()
        want = (colours.T >> 8)[values].astype(np.uint8)
    else:
        grey = values if photometric else most - values
        want = expected(grey, bits) if bits > 8 else expected(grey * 255 // most, 8)
    turned = {
        1: want, 2: want[:, ::-1], 3: want[::-1, ::-1], 4: want[::-1], 5: want.swapaxes(0, 1),
        6: np.rot90(want, -1), 7: want[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(want),
    }[orientation]  # fmt: skip
    got = decode(tiff(values, bits, photometric, order, fill, **tags), "t", bits if bits > 8 else None)
    np.testing.assert_array_equal(got, turned)


def test_the_lossless_formats_agree() -> None:
    rgb = PIXELS[8]
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    alpha = np.dstack([rgb, rgb[:, :, 0]])
    files = [
        *(pillow(rgb, kind) for kind in ("PNG", "BMP", "PPM", "TIFF")),
        *(cv2.imencode(ending, bgr)[1].tobytes() for ending in (".png", ".bmp", ".ppm", ".tif")),
        pillow(rgb, "WEBP", lossless=True),
        pillow(alpha, "PNG"),
        pillow(alpha, "TIFF"),
        pillow(rgb, "TIFF", compression="tiff_lzw"),
        tiff(rgb, 8, 2),
    ]
    assert {pixel_digest(decode(file, "f")) for file in files} == {pixel_digest(rgb)}
    grey = rgb[:, :, 0]
    files = [pillow(grey, kind) for kind in ("PNG", "BMP", "PPM", "TIFF", "GIF")] + [
        pillow(np.dstack([grey, grey]), "PNG")
    ]
    assert {pixel_digest(decode(file, "f")) for file in files} == {pixel_digest(grey)}


def test_the_16_bit_formats_agree() -> None:
    rgb = PIXELS[16]
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    key = png_chunk(b"tRNS", bytes(6))
    gamma = png_chunk(b"gAMA", (45455).to_bytes(4, "big")) + png_chunk(b"sBIT", bytes((12, 12, 12)))
    png = cv2.imencode(".png", bgr)[1].tobytes()
    files = [
        png,
        with_chunk(png, key),
        with_chunk(png, gamma),
        cv2.imencode(".ppm", bgr)[1].tobytes(),
        tiff(rgb, 16, 2, ">"),
    ]
    assert {pixel_digest(decode(file, "f", 16)) for file in files} == {pixel_digest(expected(rgb, 16))}


def test_twelve_packed_bits_are_twelve_of_sixteen() -> None:
    values = PIXELS[12]
    got = decode(tiff(values, 12, 2), "t", 12)
    np.testing.assert_array_equal(got, decode(tiff(values, 16, 2), "t", 12))
    with pytest.raises(ImageError, match="depth of 16 was stated, but the file holds 12 bits"):
        decode(tiff(values, 12, 2), "t", 16)


def test_a_digest_knows_shape_and_pixels_not_layout() -> None:
    rgb = PIXELS[8]
    assert pixel_digest(rgb) == pixel_digest(np.asfortranarray(rgb)) == pixel_digest(rgb[:, :, ::-1].copy()[:, :, ::-1])
    assert pixel_digest(rgb) != pixel_digest(rgb.reshape(50, 37, 3))
    assert pixel_digest(rgb[:, :, 0]) == pixel_digest(np.repeat(rgb[:, :, :1], 3, axis=2))


# --- run-length encoded BMP ------------------------------------------------------------------------------------------

PALETTE = np.random.default_rng(3).integers(0, 256, (16, 3), dtype=np.uint8)


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_runs_of_odd_length_literals_and_jumps(bits: int, top_down: bool) -> None:
    # row 0: 5 of (1 2 1 2 1) or (1 1 1 1 1), then a literal of three; row 1: nothing; row 2: jump 2 right, then 3
    literal = bytes((0, 3, 0x45, 0x60)) if bits == 4 else bytes((0, 3, 4, 5, 6, 0))
    run = 0x12 if bits == 4 else 1
    codes = bytes((5, run)) + literal + bytes((0, 0, 0, 2, 2, 1, 3, 0x77 if bits == 4 else 7, 0, 1))
    indices = np.zeros((3, 8), int)
    indices[0] = [1, 2, 1, 2, 1, 4, 5, 6] if bits == 4 else [1, 1, 1, 1, 1, 4, 5, 6]
    indices[2, 2:5] = 7
    got = decode(rle_bmp(codes, 8, -3 if top_down else 3, bits, PALETTE), "b")
    np.testing.assert_array_equal(got, PALETTE[indices if top_down else indices[::-1]])


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (bytes((5, 0x12)), "out of"),
        (bytes((12, 0x12, 0, 1)), "leaves the image"),
        (bytes((0, 0, 0, 0, 0, 0, 1, 0x12, 0, 1)), "leaves the image"),
        (bytes((0, 9, 1)), "leaves the image|end early"),
        (bytes((1, 0xF0, 0, 1)), "out of bounds"),
        (bytes((0, 2, 9)), "out of"),
    ],
)
def test_damaged_run_lengths_are_refused(codes: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=f"damaged or truncated image.*({words})"):
        decode(rle_bmp(codes, 8, 3, 4, PALETTE[:9]), "b")


PALETTES = {
    "black, white": [0, 255],
    "white, black": [255, 0],
    "nearly black": [0, 1],
    "one": [7],
    "identity": list(range(16)),
    "ramp": list(range(0, 256, 17)),
    "all": list(range(256)),
    "all, turned": list(range(255, -1, -1)),
}


@pytest.mark.parametrize("header", [12, 40, 52, 108, 124])
@pytest.mark.parametrize("name", PALETTES)
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmps_with_a_palette_are_its_colors(bits: int, name: str, header: int) -> None:
    """Pillow takes 4 and 8 bits a pixel for 1 where the palette is black and white."""
    grey = np.array(PALETTES[name], np.uint8)
    if len(grey) > 1 << bits:
        pytest.skip("more colors than places")
    palette = np.stack([grey, grey, grey], axis=1)
    indices = np.random.default_rng(bits).integers(0, len(grey), (9, 21))
    if header == 12:
        files = [indexed_bmp(indices, bits, np.resize(palette, (1 << bits, 3)), 12)]
    else:
        files = [
            indexed_bmp(indices, bits, palette, header, top_down, gap) for top_down in (False, True) for gap in (0, 10)
        ]
    for file in files:
        np.testing.assert_array_equal(decode(file, "b"), palette[indices])
    colours = np.random.default_rng(1).integers(0, 256, palette.shape, np.uint8)
    np.testing.assert_array_equal(decode(indexed_bmp(indices, bits, colours), "b"), colours[indices])


@pytest.mark.parametrize("photometric", ["separated", "rgb"])
@pytest.mark.parametrize("compression", [None, "lzw", "jpeg"])
def test_only_tiffs_own_tag_turns_an_image(photometric: str, compression: str | None) -> None:
    """Pillow turns it as XMP says, too."""
    values = PIXELS[8] if photometric == "rgb" else np.dstack([PIXELS[8], PIXELS[8][:, :, 0]])
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    plain = tifffile_bytes(values, photometric=photometric, compression=compression)
    told = tifffile_bytes(
        values, photometric=photometric, compression=compression, extratags=[(700, 1, len(xmp), xmp, True)]
    )
    np.testing.assert_array_equal(decode(told, "t"), decode(plain, "t"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("layout", [{"rowsperstrip": 7}, {"tile": (16, 32)}, {"planarconfig": "separate"}])
def test_cmyk_is_converted_alike_in_any_layout(compression: str | None, layout: dict[str, object]) -> None:
    values = np.dstack([PIXELS[8], PIXELS[8][:, :, 0]])
    want = np.asarray(Image.fromarray(values, "CMYK").convert("RGB"))
    stored = np.moveaxis(values, -1, 0) if "planarconfig" in layout else values
    got = decode(tifffile_bytes(stored, photometric="separated", compression=compression, **layout), "t")
    np.testing.assert_array_equal(got, want)
