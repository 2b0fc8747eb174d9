"""Damage that a decoder only warns of, and content that no decoder reads exactly, are refused in words. Sound pixels are read."""

from __future__ import annotations

import io
import re
import struct
import threading
import zlib

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from visionad_runtime.errors import ImageError
from visionad_runtime.images.decode import decode
from visionad_runtime.images.discover import SUFFIXES
from visionad_runtime.images.jpeg import with_tables
from visionad_runtime.images.support import ENDINGS, FORMATS, ROWS
from visionad_runtime.images.webp import MIN_STREAM_BYTES

from tests.unit.images.writers import indexed_bmp, pillow, png_chunk, tiff, tiff_of, tifffile_bytes, with_chunk

U8 = NDArray[np.uint8]
_COARSE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
SMOOTH: U8 = np.asarray(_COARSE.resize((192, 160), Image.Resampling.BICUBIC))


def refusal(data: bytes, depth: int | None = None) -> str:
    """The message, or nothing where the file is read."""
    try:
        decode(data, "the label", depth)
    except ImageError as exc:
        assert "\n" not in str(exc) and str(exc).startswith("the label: ")
        return str(exc)
    return ""


# --- JPEG ------------------------------------------------------------------------------------------------------------

JPEGS = {
    "baseline": pillow(SMOOTH, "JPEG", quality=95),
    "4:4:4": pillow(SMOOTH, "JPEG", quality=95, subsampling=0),
    "restart markers": pillow(SMOOTH, "JPEG", quality=95, restart_marker_blocks=6),
    "grey": pillow(SMOOTH[:, :, 0], "JPEG", quality=95),
    "CMYK": pillow(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95),
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("at", [0.3, 0.5, 0.7])
def test_a_jpeg_that_libjpeg_warns_of_is_damaged(name: str, at: float, capfd: pytest.CaptureFixture[str]) -> None:
    data = JPEGS[name]
    place = int(len(data) * at)
    lost = data[:place] + data[place + 700 :]
    zeroed = data[:place] + bytes(512) + data[place + 512 :]
    cut = data[:place] + b"\xff\xd9"
    for damaged in (lost, zeroed, cut):
        assert "damaged or truncated image (" in refusal(damaged)
    assert not refusal(data) and capfd.readouterr().err == ""


def test_a_progressive_jpeg_without_its_last_scans_is_damaged() -> None:
    data = pillow(SMOOTH, "JPEG", quality=95, progressive=True)
    scans = [scan.start() for scan in re.finditer(b"\xff\xda", data)]
    assert len(scans) > 5 and not refusal(data)
    for scan in scans[1:]:
        assert "without its last scans" in refusal(data[:scan] + b"\xff\xd9")
    for place in (scans[2] + 40, scans[-1] + 200):
        assert "damaged" in refusal(data[:place] + b"\xff\xd9")


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(192, 160), (191, 157), (8, 9), (1, 1)])
def test_sound_jpegs_are_pillows_to_the_bit(subsampling: str, progressive: bool, size: tuple[int, int]) -> None:
    image = Image.fromarray(SMOOTH).resize(size)
    for one in (image, image.convert("L"), image.convert("CMYK")):
        options = {"subsampling": subsampling} if one.mode == "RGB" else {}
        data = pillow(one, "JPEG", quality=90, progressive=progressive, **options)
        with Image.open(io.BytesIO(data)) as opened:
            np.testing.assert_array_equal(decode(data, "j"), np.asarray(opened.convert("RGB")))


def without_huffman_tables(data: bytes) -> bytes:
    """A frame as MJPEG has it."""
    parts, place = [data[:2]], 2
    while data[place + 1] != 0xDA:
        length = 2 + struct.unpack_from(">H", data, place + 2)[0]
        if data[place + 1] != 0xC4:
            parts.append(data[place : place + length])
        place += length
    return b"".join(parts) + data[place:]


def test_frames_of_mjpeg_and_what_lies_behind_an_image_are_no_damage() -> None:
    data = JPEGS["baseline"]
    bare = without_huffman_tables(data)
    assert len(bare) < len(data) - 300
    for file in (bare, data + data, data + bytes(300), data + b"trailer"):
        np.testing.assert_array_equal(decode(file, "j"), decode(data, "j"))
    assert refusal(data[:-2])  # without EOI


@pytest.mark.parametrize(
    ("kind", "bits", "words"), [(0xC1, 12, "a JPEG of 12 bits"), (0xC3, 8, "a JPEG of a lossless or hierarchical kind")]
)
def test_other_jpegs_are_named(kind: int, bits: int, words: str) -> None:
    data = bytearray(JPEGS["grey"])
    frame = data.index(b"\xff\xc0")
    data[frame + 1], data[frame + 4] = kind, bits
    assert f"the label: {words}" in refusal(bytes(data)) and "is not read" in refusal(bytes(data))


def test_the_form_of_a_header_is_no_damage_but_damage_behind_it_is() -> None:
    data = JPEGS["baseline"]
    revision = data.replace(b"JFIF\0\x01", b"JFIF\0\x03")
    scan = bytearray(data)
    place = data.index(b"\xff\xda")
    scan[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") - 2] = 0  # the last coefficient, which is 63
    cmyk = JPEGS["CMYK"]
    place = cmyk.index(b"Adobe") + 11
    transform = cmyk[:place] + b"\7" + cmyk[place + 1 :]  # taken for YCCK
    for odd, plain in ((revision, data), (bytes(scan), data), (transform, cmyk[:place] + b"\2" + cmyk[place + 1 :])):
        assert odd != plain
        np.testing.assert_array_equal(decode(odd, "j"), decode(plain, "j"))
        assert "damaged" in refusal(odd[:4000] + b"\xff\xd9")


def test_a_jpeg_that_cannot_be_checked_is_refused() -> None:
    data = bytearray(JPEGS["baseline"])
    data[data.index(b"\xff\xc0") + 11] = 0x31  # three luma columns for each of chroma
    assert "a JPEG of an unusual kind" in refusal(bytes(data))


def test_threads_hear_of_their_own_damage() -> None:
    good, bad = JPEGS["baseline"], JPEGS["baseline"][:3000] + b"\xff\xd9"
    heard: list[tuple[bool, str]] = []

    def work(damaged: bool) -> None:
        heard.extend((damaged, refusal(bad if damaged else good)) for _ in range(20))

    threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 80 and all(bool(words) == damaged for damaged, words in heard)


# --- WebP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"lossless": True}, {"quality": 5}, {"quality": 100, "method": 6}, {"exact": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_with_a_zeroed_tail_is_damaged(options: dict[str, object], mode: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(SMOOTH[:, :, 1]))
    data = pillow(image, "WEBP", **options)
    assert not refusal(data)
    for at in (0.5, 0.8, 0.95):
        place = int(len(data) * at)
        assert "damaged" in refusal(data[:place] + bytes(len(data) - place)), at


@pytest.mark.parametrize("lossless", [False, True])
def test_flat_and_small_webps_are_sound(lossless: bool) -> None:
    for size in ((1, 1), (16, 16), (17, 3), (640, 480)):
        for grey in (0, 128, 255):
            for quality in (0, 80, 100):
                data = pillow(Image.new("RGB", size, (grey,) * 3), "WEBP", lossless=lossless, quality=quality)
                assert not refusal(data), (size, grey, quality, len(data), MIN_STREAM_BYTES)


# --- PNG -------------------------------------------------------------------------------------------------------------

PNG = pillow(SMOOTH, "PNG")
LONG = bytes(range(256)) * 8192


@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"zTXt", b"k\0\0" + zlib.compress(LONG)),
        png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(LONG)),
        png_chunk(b"iCCP", b"k\0\0" + zlib.compress(LONG)),
        png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000))),
        png_chunk(b"tEXt", b"k\0" + LONG),
        png_chunk(b"tEXt", b"k\0text", checksum=0),
        png_chunk(b"gAMA", b"\0\0\xb1\x8f", checksum=7),
        png_chunk(b"zTXt", b"k\0\0not packed"),
        png_chunk(b"prVt", b"anything"),
    ],
    ids=["zTXt", "iTXt", "iCCP", "bomb", "tEXt", "checksum of text", "checksum of gAMA", "unpackable", "private"],
)
def test_what_a_png_says_besides_its_pixels_is_no_reason_to_refuse_it(chunk: bytes) -> None:
    np.testing.assert_array_equal(decode(with_chunk(PNG, chunk), "p"), SMOOTH)


def test_every_bit_of_png_pixels_counts() -> None:
    start = PNG.index(b"IDAT") + 4
    for bit in np.random.default_rng(0).integers(start * 8 + 32, (len(PNG) - 20) * 8, 40):
        damaged = bytearray(PNG)
        damaged[bit // 8] ^= 1 << (bit % 8)
        assert "damaged" in refusal(bytes(damaged))
    for chunk, place in ((b"IHDR", 3), (b"PLTE", 1)):
        source = pillow(Image.fromarray(SMOOTH).quantize(16), "PNG")
        damaged = bytearray(source)
        damaged[source.index(chunk) + 4 + place] ^= 1
        assert refusal(bytes(damaged)), chunk


# --- TIFF ------------------------------------------------------------------------------------------------------------

GREY = SMOOTH[:20, :30, 0].astype(np.uint16)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        *((tiff(GREY % (1 << bits), bits, 1), f"a TIFF of {bits} bits a sample is not read") for bits in (3, 5, 6, 7, 10, 14)),
        (tiff(GREY, 8, 1, t339=[2]), "a TIFF of signed integers is not read"),
        (tiff(GREY, 16, 1, t339=[2]), "a TIFF of signed integers is not read"),
        (tiff(GREY, 16, 1, t339=[3]), "a TIFF of floating-point numbers is not read"),
        (tiff(SMOOTH, 8, 2, t258=[8, 8, 16]), "8 and 16 bits"),
        (tiff(SMOOTH, 8, 8), "CIE Lab"),
        (tiff(SMOOTH, 8, 6), "YCbCr without JPEG compression"),
        (tiff(GREY, 8, 32803), "color filter array"),
        (tiff(np.dstack([SMOOTH, GREY.repeat(8, 0).repeat(7, 1)[:, :192]]), 16, 5), "16 bits in CMYK"),
        (tiff(np.dstack([GREY] * 3), 8, 1), "3 samples a pixel in grey"),
        (tiff(np.dstack([GREY] * 5), 8, 2), "5 samples a pixel in RGB"),
        (tiff(GREY, 8, 1, t259=[50001]), "a TIFF of WebP"),
        (tiff(GREY, 8, 1, t259=[6]), "old-style JPEG"),
        (tiff(GREY, 8, 1, t259=[999]), "compression 999"),
        (tiff(GREY, 8, 1, t317=[2]), "predictor 2 without LZW or Deflate"),
        (tiff(GREY, 8, 1, t317=[3]), "predictor 3 with 8 bits"),
        (tiff(np.dstack([SMOOTH, SMOOTH[:, :, 0]]), 8, 2, t338=[1]), "colors multiplied by their transparency"),
        (tiff(GREY, 8, 1, t322=[65535], t323=[65535]), "tiles of 65535 x 65535"),
        (tiff(GREY, 8, 1, t254=[1]), "every page is marked as a thumbnail or mask"),
        (tiff(GREY, 8, 1, t273=[60000]), "lies beyond the file"),
        (tiff(GREY, 8, 1, t256=[99]), "a strip or tile holds 600 bytes, expected 1980"),
        (tiff(GREY, 8, 1, t257=[200]), "expected 10 strips or tiles, got 1"),
        (b"II*\0" + struct.pack("<I", 900), "damaged"),
        (b"II*\0" + struct.pack("<IH", 8, 0) + struct.pack("<I", 8), "circle"),
        (b"II+\0" + struct.pack("<HHQ", 4, 0, 16), "BigTIFF"),
    ],
)  # fmt: skip
def test_a_tiff_that_is_not_read_says_what_it_is(data: bytes, words: str) -> None:
    messages = [refusal(data, depth) for depth in (None, 10, 16)]
    assert all(messages) and any(re.search(words, message) for message in messages), messages


def test_opaque_alpha_may_be_associated() -> None:
    opaque = np.dstack([SMOOTH, np.full(SMOOTH.shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode(tiff(opaque, 8, 2, t338=[1]), "t"), SMOOTH)


@pytest.mark.parametrize("depth", [None, 16])
@pytest.mark.parametrize("thumbnail_first", [False, True])
def test_a_thumbnail_page_that_is_marked_is_passed_over(depth: int | None, thumbnail_first: bool) -> None:
    tifffile = pytest.importorskip("tifffile")
    full = SMOOTH.astype(np.uint16) << 8 if depth else SMOOTH
    pages = [(full, 0), (SMOOTH[::8, ::8], 1)]
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        for pixels, subfile in reversed(pages) if thumbnail_first else pages:
            writer.write(pixels, photometric="rgb", subfiletype=subfile)
    np.testing.assert_array_equal(decode(out.getvalue(), "t", depth), SMOOTH)
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(SMOOTH, photometric="rgb")
        writer.write(SMOOTH[::8, ::8], photometric="rgb")
    assert "holds 2 frames" in refusal(out.getvalue())


def test_previews_below_a_page_are_passed_over() -> None:
    tifffile = pytest.importorskip("tifffile")
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(SMOOTH, photometric="rgb", subifds=1)
        writer.write(SMOOTH[::8, ::8], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(decode(out.getvalue(), "t"), SMOOTH)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits"])
def test_packed_tiffs_that_are_cut_are_damaged(compression: str) -> None:
    pytest.importorskip("imagecodecs")
    data = tifffile_bytes(SMOOTH, photometric="rgb", compression=compression)
    start = struct.unpack_from("<I", data, 4)[0]
    assert not refusal(data) and start < 400  # the directory lies in front
    for left in (0.2, 0.5, 0.9, 0.99):
        assert "damaged" in refusal(data[: int(len(data) * left)])
    if compression == "zlib":
        for place in np.random.default_rng(0).integers(start + 400, len(data), 20):
            assert "damaged" in refusal(data[:place] + bytes((data[place] ^ 16,)) + data[place + 1 :])


@pytest.mark.parametrize("tables_apart", [False, True])
def test_jpegs_in_a_tiff_are_heard_too(tables_apart: bool) -> None:
    source = JPEGS["baseline"]
    tables, strip = b"", source
    if tables_apart:
        scan = source.index(b"\xff\xc0")
        first = source.index(b"\xff\xdb")
        huffman = source.index(b"\xff\xc4")
        end = source.index(b"\xff\xda")
        tables = b"\xff\xd8" + source[first:scan] + source[huffman:end] + b"\xff\xd9"
        strip = b"\xff\xd8" + source[scan:huffman] + source[end:]
        assert sorted(with_tables(tables, strip)) == sorted(source[:2] + source[first:])

    def file(body: bytes) -> bytes:
        tags: dict[int, tuple[str, list[int]]] = {
            256: ("H", [192]), 257: ("H", [160]), 258: ("H", [8] * 3), 259: ("H", [7]), 262: ("H", [6]), 277: ("H", [3]),
            278: ("H", [160]), 279: ("I", [len(body)]), 530: ("H", [2, 2]),
        }  # fmt: skip
        if tables:
            tags[347] = ("B", list(tables))
        return tiff_of(tags, body)

    assert np.abs(decode(file(strip), "t").astype(int) - SMOOTH).mean() < 4
    middle = len(strip) // 2
    assert "damaged" in refusal(file(strip[:middle] + strip[middle + 700 :]))
    assert "damaged" in refusal(file(strip[:middle] + bytes(512) + strip[middle + 512 :]))
    assert "damaged" in refusal(file(strip[:middle] + b"\xff\xd9"))


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_table_covers_the_formats_and_their_endings() -> None:
    Image.init()
    assert {row.format for row in ROWS} == set(FORMATS) == set(ENDINGS) and set(FORMATS) <= set(Image.OPEN)
    assert {".jfif", ".jpe", ".dib", ".jpg", ".tiff", ".pbm"} <= SUFFIXES
    for format_name in FORMATS:
        known = {ending for ending, name in Image.registered_extensions().items() if name == format_name}
        assert known - {".apng", ".pfm"} <= set(ENDINGS[format_name]), format_name


def test_no_room_is_made_for_a_chunk_that_a_file_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV makes room for the length that a chunk states: gigabytes and seconds for a small file."""
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (24, 32, 3), dtype=np.uint16)
    sound = cv2.imencode(".png", pixels)[1].tobytes()
    assert decode(sound, "the label", 16).shape == (24, 32, 3)
    place = sound.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", sound, place)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("OpenCV was asked"))
    for stated in (length + 13, 3_355_443_364):
        damaged = sound[:place] + struct.pack(">I", stated) + sound[place + 4 :]
        assert "a chunk ends beyond the file" in refusal(damaged, 16)
    for cut in (4, 8, 12):
        assert "a chunk ends beyond the file" in refusal(sound[:-cut], 16)


# --- members of the same kinds ---------------------------------------------------------------------------------------


def _set(data: bytes, tag: int, value: int, place: int = 0) -> bytes:
    """A little-endian TIFF with another value of a tag."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        found = file.pages[0].tags[tag]  # type: ignore[union-attr]
        kind, at = ("<H" if found.dtype == 3 else "<I"), found.valueoffset
    copy = bytearray(data)
    struct.pack_into(kind, copy, at + place * struct.calcsize(kind), value)
    return bytes(copy)


def test_a_color_outside_the_palette_is_damage() -> None:
    palette = np.full((3, 3), 7, np.uint8)
    for bits in (4, 8):
        indices = np.zeros((4, 5), np.uint8)
        assert refusal(indexed_bmp(indices, bits, palette)) == ""
        indices[2, 3] = 3
        assert "damaged or truncated image (BMP with a palette" in refusal(indexed_bmp(indices, bits, palette))
    whole = indexed_bmp(np.zeros((40, 50), np.uint8), 8, palette)
    assert "damaged or truncated image" in refusal(whole[:-60])


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
def test_fax_compression_is_not_read(compression: str) -> None:
    """libtiff only prints that such data are damaged, and gives an image."""
    message = refusal(pillow(Image.fromarray(SMOOTH).convert("1"), "TIFF", compression=compression))
    assert "a TIFF of fax is not read" in message


@pytest.mark.parametrize("compression", [None, "zlib", "packbits", "lzw", "jpeg"])
def test_a_tiff_that_lacks_strips_is_damaged(compression: str | None) -> None:
    values = np.dstack([SMOOTH, SMOOTH[:, :, :1]])
    colours = {"photometric": "separated"} if compression != "jpeg" else {"photometric": "rgb"}
    values = values if compression != "jpeg" else SMOOTH
    sound = tifffile_bytes(values, compression=compression, rowsperstrip=16, **colours)
    assert refusal(sound) == ""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(sound)) as file:
        tags = file.pages[0].tags  # type: ignore[union-attr]
        entries = [tags[tag].offset for tag in (273, 279)]
    fewer = bytearray(sound)
    for entry in entries:
        struct.pack_into("<I", fewer, entry + 4, 5)
    sparse = _set(_set(sound, 273, 0), 279, 0)
    for damaged in (bytes(fewer), sparse, _set(sound, 279, 20)):
        assert "damaged" in refusal(damaged)


def test_jpeg_in_tiff_with_multiplied_colors_is_not_read() -> None:
    alpha = np.full(SMOOTH.shape[:2], 255, np.uint8)
    alpha[10:20] = 100
    data = pillow(np.dstack([SMOOTH, alpha]), "TIFF", compression="jpeg", quality=95)
    assert refusal(data) == ""
    assert "multiplied by their transparency" in refusal(_set(data, 338, 1))


def test_stacks_for_which_one_directory_stands_hold_several_frames() -> None:
    stack = np.repeat(SMOOTH[None, :, :, 0], 3, axis=0)
    several = "holds 3 frames; expected a single image"
    assert several in refusal(tifffile_bytes(stack, imagej=True, truncate=True))
    assert several in refusal(tifffile_bytes(stack, photometric="minisblack", truncate=True))
    assert several in refusal(tifffile_bytes(stack, photometric="minisblack", volumetric=True))
    assert refusal(tifffile_bytes(stack[0], imagej=True)) == ""
    assert refusal(tifffile_bytes(SMOOTH)) == ""
    first = tifffile_bytes(stack[0], photometric="minisblack", description="ImageJ=1.53\nimages=3\n", metadata=None)
    assert refusal(first) == "", "the text is older than the file: one image of a stack, saved alone"


def test_an_animation_of_one_frame_is_not_read() -> None:
    one = pillow(SMOOTH, "WEBP", lossless=True)
    frame = b"\0" * 6 + (191).to_bytes(3, "little") + (159).to_bytes(3, "little") + b"\0" * 4 + one[12:]
    chunks = b"".join(
        kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)
        for kind, body in (
            (b"VP8X", bytes((2, 0, 0, 0)) + (191).to_bytes(3, "little") + (159).to_bytes(3, "little")),
            (b"ANIM", bytes(6)),
            (b"ANMF", frame),
        )
    )
    assert "animation" in refusal(b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks)


def test_values_beyond_a_pnms_largest_are_damage_and_two_images_are_several() -> None:
    head = b"P5\n# of a camera\n3 2\n%d\n"
    assert refusal(head % 100 + bytes((0, 100, 50, 1, 2, 3))) == ""
    assert "a value of 101" in refusal(head % 100 + bytes((0, 101, 50, 1, 2, 3)))
    deep = np.array([0, 4095, 7, 8, 9, 10], ">u2")
    assert refusal(head % 4095 + deep.tobytes(), 12) == ""
    assert "a value of 4095" in refusal(head % 4000 + deep.tobytes(), 12)
    one = pillow(SMOOTH[:, :, 0], "PPM")
    assert "several frames" in refusal(one + one) and refusal(one + b"\n") == ""
    colour = pillow(SMOOTH, "PPM")
    assert "several frames" in refusal(colour + one) and refusal(colour) == ""


def test_an_adobe_transform_that_is_none_of_three_colors_is_harmless() -> None:
    sound = pillow(SMOOTH, "JPEG", quality=95)
    start = sound.index(b"\xff\xe0")
    length = struct.unpack_from(">H", sound, start + 2)[0]
    bare = sound[:start] + sound[start + 2 + length :]
    for transform in (1, 2, 5):
        adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes((transform,))
        np.testing.assert_array_equal(decode(bare[:2] + adobe + bare[2:], "a"), decode(sound, "s"))
