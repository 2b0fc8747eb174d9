"""Support records of files and arrays, and their comparison with those of a bank."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from PIL import Image

from ..errors import BankError, ImageError
from ..formats.files import sha256_bytes
from ..formats.manifest import ClassEntry, SupportImage
from ..images import decode
from ..images.discover import SUFFIXES
from ..images.pixels import RGB8, pixel_digest
from .folder import IMAGES
from .memory_bank import SupportTokens
from .names import normalize_class_name

MIN_SHA256_PREFIX = 4
"""Minimum number of digits of a sha256 that name the image to remove."""


class NewSupport(NamedTuple):
    """A support to enroll.

    Attributes:
        image: its record.
        tokens: its tokens, in all ROIs of the class.
        file: its image file, to be kept in the bank; ``None`` keeps no copy.
        suffix: ending of that file's name, with the dot.
    """

    image: SupportImage
    tokens: SupportTokens
    file: bytes | None = None
    suffix: str = ""


class _Class(Protocol):
    @property
    def entry(self) -> ClassEntry: ...


def read_supports(paths: Sequence[Path], bit_depth: int | None = None) -> list[SupportImage]:
    """Return the record of each image file, after checking that it can be decoded.

    Args:
        paths: image files.
        bit_depth: bits that the camera fills in 16-bit files.

    Raises:
        ImageError: A file cannot be read, or two files hold the same pixels.
    """
    supports: dict[str, SupportImage] = {}
    for path in paths:
        data = decode.read_bytes(path)
        support = support_record(data, decode.decode(data, path, bit_depth), str(path.absolute()), bit_depth)
        duplicate = supports.setdefault(str(support.pixels), support)
        if duplicate is not support:
            raise ImageError(f"{path} and {duplicate.source} are the same image; give each once")
    return list(supports.values())


def support_record(data: bytes, rgb: RGB8, source: str, bit_depth: int | None = None) -> SupportImage:
    """Return the record of an image file.

    Args:
        data: bytes of the file.
        rgb: its decoded pixels, uint8 (H, W, 3).
        source: where it came from.
        bit_depth: bits that the camera fills in 16-bit files, as stated.
    """
    height, width = rgb.shape[:2]
    return SupportImage(
        sha256=sha256_bytes(data), source=source, pixels=pixel_digest(rgb), bit_depth=bit_depth, size=(width, height)
    )


def array_supports(rgbs: Iterable[RGB8]) -> list[SupportImage]:
    """Return the records of images given as arrays, uint8 (H, W, 3) RGB."""
    return [support_record(rgb.tobytes(), rgb, "array") for rgb in rgbs]


def check_new(classes: Mapping[str, _Class], name: str, images: Sequence[SupportImage]) -> None:
    """Refuse images that cannot be enrolled: a bank holds them already, or a person recorded them as defective.

    Args:
        classes: classes of the bank by name.
        name: class that the images are meant for.
        images: images to enroll.

    Raises:
        BankError: An image is enrolled already, given twice, or recorded as defective in the class.
    """
    check_not_enrolled(classes, name, images)
    held = classes.get(normalize_class_name(name))
    if held is not None:
        for image in images:
            check_not_defective(held.entry, name, image.source, *_digests(image))


def check_not_defective(entry: ClassEntry, name: str, source: str, *digests: str) -> None:
    """Refuse an image as a good part if the class records it as defective, in any file format.

    Args:
        entry: entry of the class.
        name: the class, for the message.
        source: where the image came from, for the message.
        digests: sha256 of its file, digest of its pixels, or both.

    Raises:
        BankError: It is recorded as defective.
    """
    for record in entry.defective:
        if not {record.sha256, getattr(record, "pixels", None)}.isdisjoint(digests):
            raise BankError(
                f"class {name!r}: {source} is recorded as defective (sha256 {record.sha256[:12]}, {record.source}), so it is "
                "no good part; if the record is wrong, return to a version without it with `visionad bank undo --to`"
            )


def check_not_enrolled(classes: Mapping[str, _Class], name: str, images: Iterable[SupportImage]) -> None:
    """Refuse images that a bank holds already, in any class and file format.

    An image in two classes would make routing a matter of the alphabet.

    Args:
        classes: classes of the bank by name.
        name: class that the images are meant for.
        images: images that must be new.

    Raises:
        BankError: An image is enrolled already, or given twice.
    """
    owners = {
        digest: owner for owner, held in classes.items() for image in held.entry.images for digest in _digests(image)
    }
    for image in images:
        owner = next((owners[digest] for digest in _digests(image) if digest in owners), None)
        if owner is not None:
            raise BankError(
                f"class {name!r}: {image.source} is enrolled already, as {owner} (sha256 {image.sha256[:12]})"
            )
        owners |= dict.fromkeys(_digests(image), name)


def depth_warnings(classes: Mapping[str, _Class], class_name: str | None, bit_depth: int | None) -> list[str]:
    """Return a line for each class whose images were enrolled or calibrated with another bit depth.

    Files of 8 bits have the same gray values as those of the stated depth, so they need no warning.

    Args:
        classes: of the bank, by name.
        class_name: the class to look at; ``None`` for all.
        bit_depth: stated for the images that follow; ``None`` for 8-bit files.
    """
    lines = []
    for name, held in classes.items() if bit_depth is not None else ():
        record = held.entry.calibration
        depths = {image.bit_depth for image in held.entry.images} | {record.bit_depth if record else None}
        others = sorted(depth for depth in depths if depth not in (None, bit_depth))
        if others and class_name in (None, name):
            lines.append(
                f"class {name}: enrolled or calibrated with a bit depth of {', '.join(map(str, others))}, got {bit_depth}: gray "
                "values differ, and verdicts are not to be trusted; state the same --bit-depth, or enroll and calibrate again"
            )
    return lines


def _digests(image: SupportImage) -> list[str]:
    return [image.sha256] if image.pixels is None else [image.sha256, image.pixels]


def load_support(path: Path, support: SupportImage, bit_depth: int | None = None) -> tuple[bytes, RGB8]:
    """Read and decode the image file of a support record.

    Args:
        path: image file.
        support: its record, as :func:`read_supports` made it.
        bit_depth: bits that the camera fills in 16-bit files.

    Returns:
        The file's bytes, and its pixels, uint8 (H, W, 3).

    Raises:
        ImageError: The file cannot be read, or has changed since the record was made.
    """
    data = decode.read_bytes(path)
    if sha256_bytes(data) != support.sha256:
        raise ImageError(f"{path}: changed while it was being enrolled; nothing was enrolled")
    return data, decode.decode(data, path, bit_depth)


def read_kept(folder: Path, kept: str | None, bit_depth: int | None) -> RGB8 | None:
    """Return the pixels of a support's copy in a bank, or ``None`` if there is none or it cannot be read.

    Args:
        folder: folder of the bank.
        kept: name of the copy.
        bit_depth: bits that the camera fills in the 16-bit file.
    """
    if kept is None:
        return None
    try:
        return decode.load(folder / IMAGES / kept, bit_depth)
    except ImageError:
        return None


def kept_suffix(suffix: str) -> str:
    """Return the ending of a kept file's name: that of the image, if it is one of an image."""
    return suffix.lower() if suffix.lower() in SUFFIXES else ""


def png_file(rgb: RGB8) -> bytes:
    """Return pixels as a PNG file, for images that were given as arrays."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG", compress_level=1)
    return file.getvalue()


def support_index(name: str, entry: ClassEntry, image: str) -> int:
    """Return the index of the support that the first digits of a sha256 name.

    Raises:
        BankError: Not exactly one matches, or it is the only support.
    """
    matches = [k for k, i in enumerate(entry.images) if i.sha256.startswith(image.lower())]
    if len(image) < MIN_SHA256_PREFIX or len(matches) != 1:
        enrolled = ", ".join(f"{i.sha256[:12]} ({Path(i.source).name})" for i in entry.images)
        raise BankError(
            f"class {name!r}: expected {MIN_SHA256_PREFIX} or more digits of one image's sha256, got {image!r}, which "
            f"{len(matches)} have; it has {enrolled}"
        )
    if len(entry.images) == 1:
        raise BankError(f"class {name!r} has this one image only; remove the class instead (leave out --image)")
    return matches[0]
