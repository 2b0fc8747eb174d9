"""Encode enrolled images anew: for other regions of interest, or into a new bank for another model or preset.

Images come from the bank's own copies. Where none is kept, the file that was enrolled is used, if it is still the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..bank.folder import IMAGES
from ..bank.layout import Layout, new_layout
from ..bank.memory_bank import ClassBank
from ..bank.names import normalize_class_name
from ..bank.store import Bank
from ..bank.supports import NewSupport
from ..errors import BankError, ImageError
from ..formats.files import sha256_file
from ..formats.manifest import ClassEntry, SupportImage
from ..formats.roi import RoiSpec
from ..images import decode
from ..images.pixels import RGB8, pixel_digest
from ..inspector import Inspector
from ..pipeline.calibration import Rates

Step = Callable[[], None]
MAX_NAMED = 5


class _Stored(NamedTuple):
    record: SupportImage
    data: bytes
    rgb: RGB8
    suffix: str


def change_roi(
    inspector: Inspector,
    name: str,
    roi: RoiSpec | None,
    mask: bytes | None = None,
    step: Step = lambda: None,
) -> int:
    """Change what is inspected of a class: encode all supports anew and replace them in one version.

    The class is calibrated anew. Scores of held-out and confirmed images are dropped: they hold for what was inspected before.

    Args:
        inspector: inspector with the bank.
        name: the class.
        roi: what is inspected; ``None`` for whole images.
        mask: PNG file of ``roi.mask``.
        step: called after each image.

    Returns:
        The bank's new version.

    Raises:
        BankError: There is no such class, an image is not kept, or the class was changed meanwhile. Nothing was changed.
        ImageError: An image or the mask has another size than the ROIs were drawn on. Nothing was changed.
    """
    name = normalize_class_name(name)
    bank = inspector.require_class(name)
    held = bank.classes[name]
    layout = new_layout(name, roi, inspector.manifest.identity, mask)
    paths = find_images(bank.folder, held)
    supports = [_encoded(inspector, one.record, one, None, layout, step) for one in _stored_images(name, held, paths)]
    calibrate = inspector.automatic_calibration()

    def checked(changed: ClassBank, old: ClassEntry | None) -> ClassEntry:
        if old is None or old.images != held.entry.images:
            raise BankError(
                f"class {name!r} of bank {bank.folder} was changed while it was encoded anew; nothing was stored, run again"
            )
        return calibrate(changed, old)

    what = "whole images" if roi is None else ", ".join(roi.names)
    return bank.replace(name, supports, roi, change=f"roi {name}: {what}", mask=mask, calibrate=checked)


def rebuild_bank(source: Bank, inspector: Inspector, step: Step = lambda: None) -> None:
    """Enroll all classes of a bank into the inspector's: names, ROIs, order and sources stay.

    Thresholds are computed anew, for the same tolerated rates.

    Args:
        source: bank to read, made with any model.
        inspector: inspector with a new bank.
        step: called after each image.

    Raises:
        BankError: The inspector's bank holds classes, or an image is not kept. Nothing was written then.
        ImageError: A kept image cannot be decoded.
    """
    target = inspector.bank
    if target is None or target.classes:
        where = "none" if target is None else str(target.folder)
        raise BankError(f"rebuild: expected a new bank without classes, got {where}; choose a new folder")
    files = {
        name: find_images(source.folder, held) for name, held in source.classes.items()
    }  # all, before any is encoded
    for name, held in source.classes.items():
        mask = None if held.layout is None else held.layout.mask
        roi = held.entry.roi
        layout = None if roi is None else Layout(name, roi, inspector.manifest.identity, mask)
        supports = []
        for one in _stored_images(name, held, files[name]):
            file = None if one.record.kept is None else one.data
            record = one.record.model_copy(update={"tokens": None, "kept": None})
            supports.append(_encoded(inspector, record, one, file, layout, step))
        inspector.enroll_supports(name, supports, layout=layout, rates=Rates.of(held.entry.calibration))


def find_images(folder: Path, held: ClassBank) -> list[Path]:
    """Return the image file of each support of a class.

    Args:
        folder: folder of the bank.
        held: the class.

    Raises:
        BankError: Some are neither kept nor unchanged at the place where they were enrolled from.
    """
    paths, missing = [], []
    for image in held.entry.images:
        kept = None if image.kept is None else folder / IMAGES / image.kept
        if kept is not None and kept.is_file():
            paths.append(kept)
        elif _is_unchanged(Path(image.source), image.sha256):
            paths.append(Path(image.source))
        else:
            missing.append(image.source)
    if missing:
        more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        raise BankError(
            f"class {held.name!r} of bank {folder}: {len(missing)} of {len(held.entry.images)} images are neither kept in the bank "
            f"nor unchanged at their place: {', '.join(missing[:MAX_NAMED])}{more}; put the files back, or remove these supports, "
            "or enroll the class again"
        )
    return paths


def image_size(bank: Bank, name: str) -> tuple[int, int]:
    """Return width and height of the images of a class, those of its first support.

    Raises:
        BankError: There is no such class, or the image is not kept.
        ImageError: The image cannot be decoded.
    """
    held = bank.classes[normalize_class_name(name)]
    if held.entry.roi is not None:
        return held.entry.roi.image_size
    path = find_images(bank.folder, held)[0]
    height, width = decode.load(path, held.entry.images[0].bit_depth).shape[:2]
    return width, height


def _stored_images(name: str, held: ClassBank, paths: list[Path]) -> Iterator[_Stored]:
    for record, path in zip(held.entry.images, paths, strict=True):
        data = decode.read_bytes(path)
        rgb = decode.decode(data, path, record.bit_depth)
        if record.pixels is not None and pixel_digest(rgb) != record.pixels:
            raise BankError(
                f"class {name!r}: {path} is damaged (its pixels are not those that were enrolled); restore it from a backup, or "
                f"`visionad bank remove --class {name!r} --image {record.sha256[:12]}` and enroll it again"
            )
        yield _Stored(record, data, rgb, path.suffix)


def _encoded(
    inspector: Inspector, record: SupportImage, one: _Stored, file: bytes | None, layout: Layout | None, step: Step
) -> NewSupport:
    try:
        support = inspector.new_support(record, one.rgb, file, one.suffix, layout)
    except ImageError as exc:
        raise ImageError(f"{record.source}: {exc}") from None
    step()
    return support


def _is_unchanged(path: Path, sha256: str) -> bool:
    try:
        return path.is_file() and sha256_file(path) == sha256
    except (OSError, ValueError):
        return False
