"""Throw mutated image files at the decoders: pixels or an ImageError, nothing else, and soon.

    python -m tests.fuzz_decode --minutes 30

A failing input is shrunk by hypothesis, printed, and written to the working folder.
"""

from __future__ import annotations

import argparse
import io
import struct
import time
from pathlib import Path

import cv2
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from visionad_runtime.errors import ImageError
from visionad_runtime.images import decode as decoder

MAX_SECONDS = 20.0
"""For one input. A busy machine is slow; an input that is a bomb takes minutes."""
MAX_PIXELS = 1_000_000
"""While fuzzing: a mutated header that asks for more is refused at once."""


def originals() -> dict[str, bytes]:
    """Sound files that reach every decoder, by name."""
    rgb = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (32, 24))
    deep = rgb.astype(np.uint16) << 8 | 77
    image = Image.fromarray(rgb)

    def save(kind: str, source: Image.Image = image, **options: object) -> bytes:
        out = io.BytesIO()
        source.save(out, kind, **options)
        return out.getvalue()

    files = {
        "png": save("PNG"),
        "palette png": save("PNG", image.quantize(9), transparency=3),
        "png 16": cv2.imencode(".png", deep)[1].tobytes(),
        "jpeg": save("JPEG"),
        "jpeg restart": save("JPEG", restart_marker_blocks=1),
        "jpeg progressive": save("JPEG", progressive=True),
        "jpeg grey": save("JPEG", image.convert("L")),
        "jpeg cmyk": save("JPEG", image.convert("CMYK")),
        "mpo": save("MPO", save_all=True, append_images=[image]),
        "bmp": save("BMP"),
        "palette bmp": save("BMP", image.quantize(9)),
        "gif": save("GIF"),
        "ppm": save("PPM"),
        "ppm 16": cv2.imencode(".ppm", deep)[1].tobytes(),
        "webp": save("WEBP"),
        "webp lossless": save("WEBP", lossless=True),
        "webp alpha": save("WEBP", image.convert("RGBA"), exact=True),
        "tiff 16": cv2.imencode(".tif", deep)[1].tobytes(),
        "palette tiff": save("TIFF", image.quantize(9)),
    }
    files |= {
        f"tiff {kind}": save("TIFF", compression=kind)
        for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    }
    for bits in (4, 8):
        codes = bytes((5, 0x12, 0, 3, 0x45, 0x60)) if bits == 4 else bytes((5, 1, 0, 3, 4, 5, 6, 0))
        codes += bytes((0, 0, 0, 2, 2, 1, 3, 7, 0, 1))
        header = struct.pack("<IiiHHIIiiII", 40, 8, 3, 1, bits, 1 if bits == 8 else 2, len(codes), 0, 0, 16, 0)
        files[f"rle{bits}"] = (
            b"BM" + struct.pack("<IHHI", 118 + len(codes), 0, 0, 118) + header + bytes(range(64)) + codes
        )
    return files


ORIGINALS = originals()


@st.composite
def mutants(draw: st.DrawFn) -> bytes:
    """A sound file with bytes changed, put in, taken out, zeroed or cut off; or two files' halves."""
    data = bytearray(ORIGINALS[draw(st.sampled_from(sorted(ORIGINALS)))])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.one_of(st.integers(0, min(63, len(data))), st.integers(0, len(data))))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(["set", "set", "set", "number", "insert", "remove", "zero", "cut", "splice"])):
            case "set":
                data[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "number":  # sizes, offsets and counts at their edges
                number = draw(st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF]))
                data[place : place + 4] = struct.pack(draw(st.sampled_from("<>")) + "I", number)
            case "insert":
                data[place:place] = draw(st.binary(min_size=1, max_size=64))
            case "remove":
                del data[place : place + length]
            case "zero":
                data[place : place + length] = bytes(len(data[place : place + length]))
            case "cut":
                del data[max(place, 1) :]
            case _:
                data[place:] = ORIGINALS[draw(st.sampled_from(sorted(ORIGINALS)))][place:]
        if not data:
            break
    return bytes(data)


def check(data: bytes) -> None:
    """Decode with and without a stated depth.

    Raises:
        AssertionError: neither pixels nor one line of error, or too slow.
    """
    for depth in (None, 12, 16):
        start = time.perf_counter()
        try:
            pixels = decoder.decode(data, "fuzz", depth)
        except ImageError as exc:
            assert "\n" not in str(exc), str(exc)
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size, pixels.shape
            assert pixels.flags.c_contiguous and pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
        assert time.perf_counter() - start < MAX_SECONDS


def fuzz(seconds: float, first_seed: int = 0, examples: int = 200) -> int:
    """Check mutants until the time is over.

    Args:
        seconds: at least one round of examples runs.
        first_seed: of the first round; each round has the next.
        examples: of a round.

    Returns:
        The number of rounds.
    """
    end, rounds = time.monotonic() + seconds, 0
    limit, decoder.MAX_PIXELS = decoder.MAX_PIXELS, MAX_PIXELS
    try:
        while not rounds or time.monotonic() < end:

            @seed(first_seed + rounds)
            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            )
            @given(data=mutants())
            def run(data: bytes) -> None:
                try:
                    check(data)
                except BaseException:
                    Path("fuzz-failure.bin").write_bytes(data)
                    raise

            run()
            rounds += 1
    finally:
        decoder.MAX_PIXELS = limit
    return rounds


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Throw mutated image files at the decoders.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    rounds = fuzz(60 * arguments.minutes, arguments.seed)
    print(f"{rounds} rounds of 200 mutants from seed {arguments.seed}: pixels or an error each time")  # noqa: T201


if __name__ == "__main__":
    main()
