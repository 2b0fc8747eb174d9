"""The table of what is read: each format and kind of content, its decoder, and what comes out or why it is refused."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """One kind of file. ``decoder`` is None where the kind is refused."""

    format: str
    content: str
    decoder: str | None
    result: str


ENDINGS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff", ".btf", ".tf8"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "GIF": (".gif",),
}
"""Pillow's name of a format that is read → endings of its files. ``JPEG`` opens MPO too. Only names that Pillow has an opener for:
another one makes every format after it unreadable."""
FORMATS = tuple(ENDINGS)

ROWS = (
    Row("PNG", "1, 2, 4, 8 bits; grey, RGB, palette; interlaced or not", "Pillow", "grey scaled to 0..255, palette looked up"),
    Row("PNG", "16 bits; grey, RGB", "Pillow checks, OpenCV decodes", "needs a stated bit depth"),
    Row("PNG", "chunks that decide no pixel (text, profile, gamma), also damaged ones", "none", "dropped"),
    Row("PNG", "animated", None, "several frames"),
    Row("JPEG", "8 bits; grey, YCbCr, RGB; baseline, progressive, arithmetic", "simplejpeg", "as libjpeg-turbo decodes it"),
    Row("JPEG", "8 bits; CMYK, YCCK", "simplejpeg checks, Pillow decodes", "converted without a profile"),
    Row("JPEG", "several images behind each other (MPO)", "as above", "the first"),
    Row("JPEG", "data of which libjpeg warns; progressive without its last scans", None, "damaged"),
    Row("JPEG", "chroma subsampling other than 4:4:4, 4:4:0, 4:2:2, 4:2:0, 4:1:1; CMYK with any", None, "cannot be checked"),
    Row("JPEG", "12 bits, lossless, hierarchical", None, "not read"),
    Row("BMP", "1, 4, 8 bits with palette; top-down; OS/2", "own", "palette looked up; a color outside of it is damage"),
    Row("BMP", "run-length encoded (RLE4, RLE8)", "own", "pixels that are jumped over have the palette's first color"),
    Row("BMP", "16 (5-5-5, 5-6-5), 24, 32 bits; top-down; OS/2", "Pillow", "levels scaled to 0..255"),
    Row("BMP", "other bit fields; JPEG or PNG inside", None, "not read"),
    Row("TIFF", "1, 2, 4, 8 bits; grey (either zero), RGB, palette; any layout", "own", "grey scaled to 0..255"),
    Row("TIFF", "12 packed or 16 bits, unsigned; grey (either zero), RGB; any layout", "own", "needs a stated bit depth"),
    Row("TIFF", "8 bits JPEG-compressed: grey, RGB, YCbCr", "simplejpeg checks, Pillow decodes", "as libtiff decodes it"),
    Row("TIFF", "8 bits CMYK", "own; Pillow converts", "converted without a profile"),
    Row("TIFF", "fax compression (Group 3, Group 4): damage cannot be told", None, "not read"),
    Row("TIFF", "other pages marked as thumbnails or masks; SubIFDs", "none", "passed over"),
    Row("TIFF", "several full pages; a stack of ImageJ or tifffile, a volume", None, "several frames"),
    Row("TIFF", "10, 14, 24, 32, 64 bits; signed; floating point", None, "not read"),
    Row("TIFF", "Lab, YCbCr without JPEG, color filter array; JPEG 2000, WebP, old-style JPEG inside", None, "not read"),
    Row("TIFF", "colors multiplied by an alpha that is not opaque", None, "not read"),
    Row("WEBP", "lossy, lossless", "Pillow, twice", "damaged if the end of the data is not needed"),
    Row("WEBP", "animated", None, "several frames"),
    Row("PPM", "PBM, PGM, PPM up to 255 levels", "Pillow", "levels scaled to 0..255"),
    Row("PPM", "PGM, PPM of 256 to 65536 levels", "Pillow checks, OpenCV decodes", "needs a stated bit depth; not rescaled"),
    Row("PPM", "values above the header's largest; several images behind each other", None, "damaged; several frames"),
    Row("PPM", "floating point (PFM)", None, "not read"),
    Row("GIF", "one frame", "Pillow", "palette looked up"),
    Row("GIF", "animated", None, "several frames"),
)  # fmt: skip
