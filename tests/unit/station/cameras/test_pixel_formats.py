"""Buffers of cameras as arrays: packed samples, padding, and Bayer mosaics, against slow and literal references."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.station.cameras.pixel_formats import BLOCK, demosaic, parse, to_pixels

DEEP = ["Mono10", "Mono12", "Mono14", "Mono16", "Mono10p", "Mono12p", "Mono14p", "Mono10Packed", "Mono12Packed"]
TILES = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}


def pack(samples: list[int], name: str) -> bytes:
    """Pack bit by bit, as the standards draw it."""
    form = parse(name)
    if form.packing == "p":
        number = sum(sample << (form.bits * index) for index, sample in enumerate(samples))
        return number.to_bytes(-(-form.bits * len(samples) // 8), "little")
    if form.packing == "Packed":
        low = form.bits - 8
        data = bytearray()
        for index in range(0, len(samples), 2):
            pair = samples[index : index + 2]
            data.append(pair[0] >> low)
            data.append(pair[0] % 2**low + (16 * (pair[1] % 2**low) if len(pair) == 2 else 0))
            data += bytes([pair[1] >> low]) if len(pair) == 2 else b""
        return bytes(data)
    return b"".join(sample.to_bytes(1 if form.bits == 8 else 2, "little") for sample in samples)


@given(st.data())
def test_each_sample_comes_back(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["Mono8", *DEEP]))
    form = parse(name)
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    samples = data.draw(st.lists(st.integers(0, 2**form.bits - 1), min_size=width * height, max_size=width * height))
    pixels, depth = to_pixels(pack(samples, name) + b"chunk", form, width, height)
    assert pixels.tolist() == np.reshape(samples, (height, width)).tolist()
    assert (pixels.dtype, depth) == ((np.uint8, None) if form.bits == 8 else (np.uint16, form.bits))


@pytest.mark.parametrize("name", ["Mono10p", "Mono12p", "Mono14p"])
def test_images_that_are_unpacked_in_several_blocks_are_exact(name: str) -> None:
    form = parse(name)
    samples = np.random.default_rng(1).integers(0, 2**form.bits, (311, 257))
    assert samples.size > 2 * 2 * BLOCK
    pixels, _ = to_pixels(pack(samples.ravel().tolist(), name), form, 257, 311)
    assert np.array_equal(pixels, samples)


@given(st.data())
def test_padding_between_rows_is_left_out(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["Mono8", *DEEP]))
    form = parse(name)
    width, height, padding = (data.draw(st.integers(1, 6)) for _ in range(3))
    rows = data.draw(
        st.lists(
            st.lists(st.integers(0, 2**form.bits - 1), min_size=width, max_size=width), min_size=height, max_size=height
        )
    )
    row_bytes = -(-form.bits_stored * width // 8)
    buffer = (b"\xff" * padding).join(pack(row, name).ljust(row_bytes, b"\0") for row in rows)
    assert to_pixels(buffer, form, width, height, padding)[0].tolist() == rows


def test_rgb_and_bgr_are_rgb() -> None:
    data = bytes(range(12))
    rgb, depth = to_pixels(data, parse("RGB8"), 2, 2)
    bgr, _ = to_pixels(data, parse("BGR8Packed"), 2, 2)
    assert rgb[0, 0].tolist() == [0, 1, 2] and bgr[0, 0].tolist() == [2, 1, 0] and depth is None


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("suffix", ["8", "10", "12", "16", "10p", "12p", "12Packed"])
@pytest.mark.parametrize("size", [(2, 2), (5, 7), (8, 6)])
def test_a_mosaic_of_one_color_is_that_color_everywhere(tile: str, suffix: str, size: tuple[int, int]) -> None:
    form = parse(f"Bayer{tile}{suffix}")
    color = {"R": 220, "G": 20, "B": 10}
    height, width = size
    order = [form.order[:2], form.order[2:]]
    samples = [color[order[y % 2][x % 2]] << (form.bits - 8) for y in range(height) for x in range(width)]
    pixels, depth = to_pixels(pack(samples, form.name), form, width, height)
    assert depth is None and pixels.dtype == np.uint8
    assert (pixels == [220, 20, 10]).all(), "border pixels too"


@pytest.mark.parametrize("order", TILES.values())
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_each_pixel_keeps_its_own_sample(order: str, dtype: type) -> None:
    mosaic = np.random.default_rng(3).integers(0, np.iinfo(dtype).max, (9, 12)).astype(dtype)
    rgb = demosaic(mosaic, order)
    assert rgb.dtype == dtype
    for y in range(9):
        for x in range(12):
            channel = "RGB".index(order[2 * (y % 2) + x % 2])
            assert rgb[y, x, channel] == mosaic[y, x]


@pytest.mark.parametrize("name", ["", "Mono1p", "Mono8p", "Mono16p", "RGB10", "RGB8p", "YUV422_8", "BayerXY8", "mono8"])
def test_other_formats_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be read: expected Mono or Bayer"):
        parse(name)


def test_a_short_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Mono12p image of 3 x 3 pixels takes 14 bytes, got 13"):
        to_pixels(bytes(13), parse("Mono12p"), 3, 3)


def test_pixels_do_not_share_the_buffer() -> None:
    for name in ("Mono8", "Mono16", "RGB8"):
        buffer = bytearray(12)
        pixels, _ = to_pixels(buffer, parse(name), 2, 2)
        buffer[:] = b"\xff" * 12
        assert not pixels.any(), name
