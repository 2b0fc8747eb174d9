"""A TIFF file's bytes -> the directory of the page to read, and whether this program reads such a page."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from ..errors import ImageError
from .pixels import MAX_PIXELS

MAX_PAGES, MAX_ENTRIES = 1000, 4096
"""Pages of a file and values of a tag that is read whole. Only the offsets and sizes of strips are longer."""
SEGMENT_TAGS = (273, 279, 324, 325)
NONE, LZW, OLD_JPEG, JPEG, DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 6, 7, (8, 32946), 32773, 34925, 50000
CMYK, DESCRIPTION = 5, 270
PHOTOMETRICS = {0: "white is zero", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIE Lab", 9: "ICC Lab",
                10: "ITU Lab", 32803: "color filter array", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"}  # fmt: skip
COMPRESSIONS = {
    2: "fax",
    3: "fax",
    4: "fax",
    OLD_JPEG: "old-style JPEG",
    34712: "JPEG 2000",
    50001: "WebP",
    50002: "JPEG XL",
    34887: "LERC",
}
_FORMATS = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""Integer types of TIFF and BigTIFF as ``struct`` names them."""


@dataclass(frozen=True)
class TiffPage:
    """Fields of one image file directory, each with TIFF's default where the file lacks it."""

    data: bytes
    order: str
    """``"<"`` or ``">"``, as in ``struct``."""
    big: bool
    offset: int
    tags: dict[int, tuple[int, ...]]

    def get(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return (self.tags.get(tag) or (default,))[0]

    @property
    def width(self) -> int:
        """Columns that are stored, before Orientation is applied."""
        return self.get(256)

    @property
    def height(self) -> int:
        """Rows that are stored."""
        return self.get(257)

    @property
    def samples(self) -> int:
        """Values a pixel, alpha included."""
        return self.get(277, 1)

    @property
    def bits(self) -> int:
        """Bits a sample: the most, if they differ."""
        return max(self.tags.get(258) or (1,))

    @property
    def photometric(self) -> int:
        """PhotometricInterpretation; grey if the file does not say."""
        return self.get(262, 1)

    @property
    def compression(self) -> int:
        """Compression."""
        return self.get(259, NONE)

    @property
    def planar(self) -> bool:
        """Does each sample lie in a plane of its own?"""
        return self.get(284, 1) == 2 and self.samples > 1

    @property
    def tiled(self) -> bool:
        """Tiles, not strips?"""
        return 322 in self.tags

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where strips or tiles begin. Some old writers list tiles in the tags of strips."""
        return (self.tags.get(324) if self.tiled else None) or self.tags.get(273, ())

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many bytes each has."""
        return (self.tags.get(325) if self.tiled else None) or self.tags.get(279, ())

    @property
    def reduced(self) -> bool:
        """Is it a thumbnail or a mask of another page?"""
        return bool(self.get(254) & 0b101) or (254 not in self.tags and self.get(255) == 2)

    def alone(self) -> bytes:
        """The file with this page as its only one, for decoders that read the first."""
        copy = bytearray(self.data)
        if self.big:
            copy[8:16] = struct.pack(self.order + "Q", self.offset)
            count = struct.unpack_from(self.order + "Q", copy, self.offset)[0]
            end = self.offset + 8 + 20 * count
            copy[end : end + 8] = b"\0" * len(copy[end : end + 8])
        else:
            copy[4:8] = struct.pack(self.order + "I", self.offset)
            count = struct.unpack_from(self.order + "H", copy, self.offset)[0]
            end = self.offset + 2 + 12 * count
            copy[end : end + 4] = b"\0" * len(copy[end : end + 4])
        return bytes(copy)


def is_tiff(data: bytes) -> bool:
    """Do the bytes begin as TIFF or BigTIFF do?"""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_page(data: bytes, label: str | Path) -> TiffPage:
    """Find the page to read: the only one that is no thumbnail or mask of another.

    Raises:
        ImageError: the directory is damaged, there are several such pages or none, or :func:`check_page` refuses it.
    """
    try:
        pages = _pages(data)
    except (struct.error, ValueError) as exc:
        raise ImageError(f"{label}: damaged or truncated image (its TIFF directory: {exc})") from None
    whole = [page for page in pages if not page.reduced]
    if len(whole) != 1:
        if not whole:
            raise ImageError(
                f"{label}: a TIFF whose every page is marked as a thumbnail or mask; expected a full image"
            )
        raise ImageError(f"{label}: holds {len(whole)} frames; expected a single image")
    slices = _slices_behind(whole[0])
    if len(pages) == 1 and slices > 1:
        raise ImageError(f"{label}: holds {slices} frames; expected a single image")
    check_page(whole[0], label)
    return whole[0]


def _slices_behind(page: TiffPage) -> int:
    """Return how many images lie behind each other for which one directory stands, as ImageJ and tifffile write stacks."""
    described = bytes(page.tags.get(DESCRIPTION, ()))
    values = page.width * page.height * page.samples
    if described.startswith(b"ImageJ=") and (found := re.search(rb"\bimages=(\d{1,9})\b", described)):
        count = int(found[1])
    elif found := re.match(rb'\{"shape": \[([\d, ]{1,99})\]', described):
        count = math.prod(int(one) for one in found[1].split(b",") if one.strip()) // max(1, values)
    else:
        return 1
    room = len(page.data) - min(page.offsets, default=0)  # the text may be older than the file
    return count if page.compression == NONE and count * values * page.bits // 8 <= room else 1


def check_page(page: TiffPage, label: str | Path) -> None:
    """Refuse what no decoder here reads exactly.

    Raises:
        ImageError: says what the page is, and what mends it.
    """

    def refuse(what: str) -> ImageError:
        return ImageError(f"{label}: a TIFF of {what} is not read; save it as grey or RGB with 8 or 16 unsigned bits")

    sizes = set(page.tags.get(258) or (1,))
    if page.bits not in (1, 2, 4, 8, 12, 16) or len(sizes) > 1:
        raise refuse(" and ".join(map(str, sorted(sizes))) + " bits a sample")
    if any(kind in (2, 3, 5, 6) for kind in page.tags.get(339, ())):
        raise refuse("signed integers" if page.get(339) in (2, 5) else "floating-point numbers")
    photometric, compression = page.photometric, page.compression
    name = PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}")
    if photometric not in (0, 1, 2, 3, 5, 6):
        raise refuse(name)
    if compression not in (NONE, LZW, JPEG, *DEFLATE, PACKBITS, LZMA, ZSTD):  # fax: nobody can tell that it is damaged
        raise refuse(COMPRESSIONS.get(compression, f"compression {compression}"))
    if page.bits > 8 and photometric not in (0, 1, 2):
        raise refuse(f"{page.bits} bits in {name}")
    colours = {2: 3, 5: 4, 6: 3}.get(photometric, 1)
    if page.samples < colours or page.samples > colours + 1 or (photometric in (3, 5, 6) and page.samples > colours):
        raise refuse(f"{page.samples} samples a pixel in {name}")
    if photometric == 6 and compression != JPEG:
        raise refuse("YCbCr without JPEG compression")
    if photometric == 5 and page.get(332, 1) != 1:
        raise refuse("inks other than CMYK")
    if page.get(32997, 1) > 1:
        raise refuse(f"{page.get(32997)} slices")
    if compression == JPEG and page.samples > colours and page.get(338) == 1:
        raise refuse("colors multiplied by their transparency")
    if compression == JPEG and (page.bits != 8 or page.planar or photometric in (0, 3)):
        raise refuse(f"JPEG compression with {page.bits} bits, {'separate planes, ' if page.planar else ''}{name}")
    predictor = page.get(317, 1)
    if predictor not in (1, 2) or (predictor == 2 and page.bits not in (8, 16)):
        raise refuse(f"predictor {predictor} with {page.bits} bits a sample")
    if predictor == 2 and compression in (NONE, PACKBITS):  # libtiff ignores it there, other programs apply it
        raise refuse("predictor 2 without LZW or Deflate compression")
    if page.tiled and page.get(322) * page.get(323) > MAX_PIXELS:
        raise refuse(f"tiles of {page.get(322)} x {page.get(323)}")
    if page.samples > 1 and page.bits < 8:
        raise refuse(f"{page.samples} samples of {page.bits} bits")


def _pages(data: bytes) -> list[TiffPage]:
    """Every directory of the chain. Directories below a page (SubIFDs) are its previews, and are not looked at."""
    order, big = ("<" if data[:2] == b"II" else ">"), data[2:4] in (b"+\0", b"\0+")
    if big and struct.unpack_from(order + "HH", data, 4) != (8, 0):
        raise ValueError("a BigTIFF header of another kind")
    offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    pages: list[TiffPage] = []
    while offset:
        if len(pages) >= MAX_PAGES or any(page.offset == offset for page in pages):
            raise ValueError("its pages form a circle" if len(pages) < MAX_PAGES else f"more than {MAX_PAGES} pages")
        tags, following = _directory(data, order, big, offset)
        pages.append(TiffPage(data, order, big, offset, tags))
        offset = following
    if not pages:
        raise ValueError("no page")
    return pages


def _directory(data: bytes, order: str, big: bool, offset: int) -> tuple[dict[int, tuple[int, ...]], int]:
    head, entry, word, room = ("Q", 20, "Q", 8) if big else ("H", 12, "I", 4)
    count = struct.unpack_from(order + head, data, offset)[0]
    start = offset + struct.calcsize(head)
    if start + count * entry > len(data):
        raise ValueError("it ends beyond the file")
    tags: dict[int, tuple[int, ...]] = {}
    for place in range(start, start + count * entry, entry):
        tag, kind, number = struct.unpack_from(order + "HH" + word, data, place)
        code = "B" if tag == DESCRIPTION else _FORMATS.get(kind, "s")
        if code == "s" or (number > MAX_ENTRIES and tag not in (*SEGMENT_TAGS, 320)):
            continue  # text and fractions decide no pixel
        size = struct.calcsize("=" + code) * number
        at = place + entry - room
        if size > room:
            at = struct.unpack_from(order + word, data, at)[0]
        if at + size > len(data):
            if tag in _NEEDED:
                raise ValueError(f"tag {tag} lies beyond the file")
            continue
        tags.setdefault(tag, struct.unpack_from(f"{order}{number}{code}", data, at))
    end = start + count * entry
    # the last page's link is missing in some cut files whose pixels are whole
    following = struct.unpack_from(order + word, data, end)[0] if end + room <= len(data) else 0
    return tags, following


_NEEDED = {
    254,
    255,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    284,
    317,
    320,
    322,
    323,
    324,
    325,
    332,
    338,
    339,
    347,
}
