"""Remember a missed defect: the patches of its region that are farthest from the good ones, in all poses and views.

A patch of a later image that is nearer to them than to any good patch gets a larger distance (``pipeline/bank_search.py``). The
class is calibrated anew with them, so its promise holds for what it scores from now on.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..bank.memory_bank import ClassBank, MemoryBank
from ..bank.names import normalize_class_name
from ..bank.store import same_supports
from ..bank.supports import load_support, read_supports
from ..errors import BankError, ImageError
from ..formats.manifest import ClassEntry, KnownDefect, PreprocessSpec, SupportImage
from ..images import decode
from ..images.pixels import RGB8
from ..inspector import Inspector
from ..pipeline.bank_search import bank_search
from ..preprocess import apply_pose, resize_crop
from ..scoring.anomaly_map import fuse
from ..scoring.score import F32, nearest_distances

MAX_CELLS = 8
"""Patches that are remembered of a defect: 48 rows a view, so that 16 defects add 6 % to the rows of four supports."""
CELL_FRACTION = 0.25
"""Fraction of a patch's pixels under the mask that makes the patch part of the region."""

Bool = NDArray[np.bool_]


def remember_file(inspector: Inspector, name: str, path: Path, mask: Path, bit_depth: int | None = None) -> int:
    """Remember the defect in an image file. Arguments, result and errors are those of :func:`remember_defect`.

    Args:
        inspector: inspector with the bank.
        name: the class.
        path: image file.
        mask: image file of the same size, white on the defect and black elsewhere.
        bit_depth: bits that the camera fills in a 16-bit image.
    """
    (record,) = read_supports([path], bit_depth)
    rgb = load_support(path, record, bit_depth)[1]
    marked = decode.load(mask)
    return remember_defect(inspector, name, record, rgb, marked.reshape(*marked.shape[:2], -1).max(axis=2) > 127)


def remember_defect(inspector: Inspector, name: str, record: SupportImage, rgb: RGB8, mask: Bool) -> int:
    """Remember a defect, record its part as defective, and calibrate the class anew from its supports.

    Scores of held-out and confirmed parts are dropped: with the defect they may be larger, and their images are not kept.

    Args:
        inspector: inspector with the bank.
        name: the class.
        record: record of the image.
        rgb: uint8 (H, W, 3) RGB or (H, W) gray.
        mask: bool (H, W), True on the defect.

    Returns:
        The bank's new version.

    Raises:
        BankError: There is no such class, it has ROIs, the image is enrolled, remembered already or confirmed as good, or the class
            changed meanwhile. Nothing was stored.
        ImageError: The mask has another size than the image, or marks nothing that is inspected.
    """
    name = normalize_class_name(name)
    bank = inspector.require_class(name)
    held = bank.classes[name]
    _check_new(held, record)
    cells = marked_cells(mask, rgb, inspector.manifest.identity.preprocess, inspector.manifest.identity.grid)
    features = inspector.encode_support(rgb).rois[0]
    image = MemoryBank(name, held.rois[0].roi, 1, held.blocks, features)
    good = MemoryBank(name, held.rois[0].roi, 1, held.blocks, held.rois[0].features)  # without other defects
    tokens = image.unrotated(0, inspector.views)
    distances = nearest_distances(tokens, bank_search(good, threads=inspector.threads))
    side = math.isqrt(features.shape[2])
    kept = farthest(cells, fuse({view: grid.reshape(side, side) for view, grid in distances.items()}))
    defect = posed(features[:, 0], held.blocks, kept)
    is_recorded = _is_recorded(held.entry, record)
    judged = None if is_recorded else inspector.judged(name, [(record, rgb)], good=False, selection="all")

    def with_defect(current: ClassBank, digest: str) -> ClassEntry:
        _check_new(current, record)
        if not same_supports(current.entry, held.entry):
            raise BankError(
                f"class {name!r} of bank {bank.folder} was changed while the defect was encoded; nothing was stored, run again"
            )
        if _is_recorded(current.entry, record) != is_recorded:
            raise BankError(
                f"class {name!r}: {record.source} was confirmed while the defect was encoded; nothing was stored, run again"
            )
        entry = current.entry if judged is None else judged(current)
        known = KnownDefect(
            sha256=record.sha256, source=record.source, tokens=digest, cells=defect.shape[1],
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        return entry.model_copy(update={"defects": (*(entry.defects or ()), known)})

    change = f"remember a defect of {name}: {record.source}"
    return bank.remember(name, defect, with_defect, change=change, calibrate=inspector.automatic_calibration())


def marked_cells(mask: Bool, rgb: RGB8, spec: PreprocessSpec, side: int) -> Bool:
    """Return the cells of the patch grid that a mask marks.

    A cell counts if a quarter of it is marked. If none has so much, the one with most of it counts.

    Args:
        mask: bool (H, W).
        rgb: image of the mask.
        spec: how images are preprocessed.
        side: side of the grid.

    Returns:
        bool (side, side), at least one True.

    Raises:
        ImageError: The mask has another size than the image, or marks nothing inside the crop.
    """
    if mask.shape != rgb.shape[:2]:
        expected, got = rgb.shape[1::-1], mask.shape[::-1]
        raise ImageError(f"mask of a defect: expected {expected} pixels, the size of its image, got {got}")
    cropped = resize_crop(mask.astype(np.uint8) * np.uint8(255), spec)[:, :, 0] > 0
    place = np.arange(len(cropped)) * side // len(cropped)
    counts = np.zeros((side, side))
    np.add.at(counts, (place[:, None], place[None, :]), cropped)
    if not counts.any():
        raise ImageError("mask of a defect: nothing is marked (white) in the inspected center of the image")
    return np.asarray(counts >= min(CELL_FRACTION * (len(cropped) / side) ** 2, counts.max()))


def farthest(cells: Bool, good: F32) -> Bool:
    """Return at most :data:`MAX_CELLS` of the cells, those with the largest distances to the good patches.

    Args:
        cells: bool (side, side).
        good: float32 (side, side).
    """
    order = np.argsort(np.where(cells, -good, np.inf).ravel(), kind="stable")
    kept = np.zeros(cells.size, np.bool_)
    kept[order[: min(MAX_CELLS, int(cells.sum()))]] = True
    return kept.reshape(cells.shape)


def posed(features: F32, blocks: tuple[str, ...], cells: Bool) -> F32:
    """Return the patch tokens of cells in each encoding of an image.

    Args:
        features: float32 (B, P, D).
        blocks: names of the B encodings.
        cells: bool (side, side), in the unrotated image.

    Returns:
        float32 (B, R, D).
    """
    as_map = cells.astype(np.float32)
    turned = [apply_pose(as_map, block.removeprefix("clamp/")).ravel() > 0 for block in blocks]
    return np.stack([tokens[where] for tokens, where in zip(features, turned, strict=True)])


def _check_new(held: ClassBank, record: SupportImage) -> None:
    if held.entry.roi is not None:
        raise BankError(f"class {held.name!r} has ROIs: expected a class of whole images to remember a defect")
    enrolled = {digest for image in held.entry.images for digest in (image.sha256, image.pixels)}
    if record.sha256 in enrolled or record.pixels in enrolled - {None}:
        raise BankError(f"class {held.name!r}: {record.source} is enrolled as a good part; remove it first")
    if record.sha256 in {defect.sha256 for defect in held.entry.defects or ()}:
        raise BankError(f"class {held.name!r}: {record.source} is remembered already (sha256 {record.sha256[:12]})")
    confirmed = {digest for one in held.entry.confirmations or () if one.good for digest in (one.sha256, one.pixels)}
    if not {record.sha256, record.pixels}.isdisjoint(confirmed - {None}):
        raise BankError(
            f"class {held.name!r}: {record.source} was confirmed as good before (sha256 {record.sha256[:12]}); return to a version "
            "without this record with `visionad bank undo --to`"
        )


def _is_recorded(entry: ClassEntry, record: SupportImage) -> bool:
    """Return whether a class has a confirmation of an image."""
    known = {digest for one in entry.confirmations or () for digest in (one.sha256, one.pixels)} - {None}
    return not known.isdisjoint((record.sha256, record.pixels))
