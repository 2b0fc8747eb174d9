"""Inspector: inspection, and what a person teaches: enroll supports, confirm parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..bank.folder import split_tiles
from ..bank.layout import Layout, new_layout
from ..bank.memory_bank import ClassBank, SupportTokens
from ..bank.names import normalize_class_name
from ..bank.store import Calibrate, same_supports
from ..bank.supports import (
    NewSupport,
    array_supports,
    check_new,
    check_not_defective,
    check_not_enrolled,
    kept_suffix,
    load_support,
    png_file,
    read_supports,
)
from ..engine.base import Tokens
from ..errors import BankError, ImageError
from ..formats.manifest import ClassEntry, Confirmation, Precision, SupportImage
from ..formats.roi import RoiSpec, tile_counts
from ..images import arrays, discover, pixels
from ..pipeline.calibration import (
    AutomaticCalibration,
    GoodScore,
    Rates,
    other_scores,
    recorded_scores,
    with_limits,
    without_defective,
)
from ..pipeline.leave_one_out import leave_one_out
from ..preprocess import prepare, support_encodings
from ..result import Result
from ..scoring.spec import ScoringSpec
from .inspection import Inspection

Selection = Literal["all", "accepted"]


class Inspector(Inspection):
    """A model, a bank and an engine, ready to inspect and to be taught. Any thread may call it.

    >>> inspector = Inspector.open("model", "bank")          # doctest: +SKIP
    >>> inspector.inspect(cv2.imread("part.png")).verdict    # doctest: +SKIP
    'ok'

    Use ``with Inspector.open(...) as inspector:`` to release GPU memory at the end.
    """

    def encode_support(self, rgb: pixels.RGB8, layout: Layout | None = None) -> SupportTokens:
        """Encode a good image in all poses and views, in the order of the bank's blocks.

        Patch tokens are those of the tiles. Class tokens are those of the whole image with ignored areas filled, as routing looks
        at it.

        Args:
            rgb: uint8 (H, W, 3) RGB or (H, W) gray.
            layout: what of it is inspected; ``None`` for all of it.

        Raises:
            ImageError: The image has another size than the ROIs were drawn on.
        """
        blocks, spec = self._require_bank().manifest.blocks, self.manifest.identity.preprocess

        def encode(image: pixels.RGB8) -> Tokens:
            return self.encode(support_encodings(prepare(image, spec, self._threads), blocks))

        if layout is None:
            tokens = encode(rgb)
            assert tokens.cls is not None
            return SupportTokens((tokens.patch[:, None],), tokens.cls)
        whole = encode(layout.whole(rgb))
        assert whole.cls is not None
        patches = np.stack([encode(crop).patch for crop in layout.cut(rgb)], axis=1)
        return SupportTokens(split_tiles(patches, tile_counts(layout.spec)), whole.cls)

    def encode_class(
        self, class_name: str, support: SupportImage, rgb: pixels.RGB8, layout: Layout | None = None
    ) -> ClassBank:
        """Return a class whose only support is this image, without enrolling it. ``layout`` is for a class that is new."""
        layout = layout or self.layout_of(class_name)
        tokens = self.encode_support(rgb, layout)
        entry = ClassEntry(images=(support,), roi=None if layout is None else layout.spec)
        return ClassBank(class_name, entry, self._require_bank().manifest.blocks, [tokens], layout)

    def layout_of(self, class_name: str, roi: RoiSpec | None = None, mask: bytes | None = None) -> Layout | None:
        """Return what is inspected of a class: as the bank holds it, or, for a new class, as given. ``None`` for whole images.

        Args:
            class_name: the class.
            roi: regions for a new class, or those that an existing class must have; ``None`` for those that it has.
            mask: PNG file of ``roi.mask``.

        Raises:
            BankError: The class has other ROIs, or nothing is left to inspect.
            ImageError: The mask has another size than the images, or is no PNG file.
        """
        class_name = normalize_class_name(class_name)
        held = self._require_bank().classes.get(class_name)
        if held is None:
            return new_layout(class_name, roi, self.manifest.identity, mask)
        if roi is not None and roi != held.entry.roi:
            raise BankError(
                f"class {class_name!r} has {'other ROIs' if held.entry.roi else 'no ROIs'}; `visionad bank roi` changes them for "
                "all of its supports"
            )
        return held.layout

    def enroll(
        self,
        class_name: str,
        images: Sequence[NDArray[np.uint8]],
        *,
        colour: str = "bgr",
        color: str | None = None,
        roi: RoiSpec | None = None,
        mask: bytes | None = None,
    ) -> int:
        """Enroll good images in a new or existing class.

        The bank on disk changes first. Later inspections use the new version without a restart. From the second image on the class
        has a threshold, at the best rate that so many images can promise.

        Args:
            class_name: the class.
            images: uint8 (H, W, 3) arrays in ``colour`` order, or gray (H, W).
            colour: ``"bgr"`` as OpenCV returns it, or ``"rgb"``.
            color: same as ``colour``, and overrides it.
            roi: what is inspected, for a new class; an existing one keeps its own.
            mask: PNG file of ``roi.mask``.

        Returns:
            The bank's new version.

        Raises:
            ImageError: An array has another type or shape, or another size than the ROIs were drawn on. Nothing was changed.
            BankError: An image is enrolled already, the class has other ROIs, or the bank cannot be written. Nothing was changed.
        """
        decoded = arrays.from_arrays(images, colour if color is None else color)
        rgbs = [pixels.to_rgb(image) if image.ndim == 2 else image for image in decoded]  # gray and RGB give one digest
        layout = self.layout_of(class_name, roi, mask)
        supports = [
            self.new_support(record, rgb, png_file(rgb), ".png", layout)
            for record, rgb in zip(array_supports(rgbs), rgbs, strict=True)
        ]
        return self.enroll_supports(class_name, supports, layout=layout)

    def enroll_files(
        self,
        class_name: str,
        paths: Sequence[Path | str],
        *,
        bit_depth: int | None = None,
        keep_images: bool = True,
        keep_versions: int | None = None,
        roi: RoiSpec | None = None,
        mask: bytes | None = None,
        calibrate: bool = True,
        step: Callable[[], None] = lambda: None,
    ) -> int:
        """Enroll image files: all or none.

        Args:
            class_name: the class.
            paths: files of good images.
            bit_depth: bits that the camera fills in 16-bit files.
            keep_images: whether the bank keeps a copy of each file, to show it and to encode it anew.
            keep_versions: number of latest versions that the bank keeps from now on; ``None`` leaves it as it is.
            roi: what is inspected, for a new class; an existing one keeps its own.
            mask: PNG file of ``roi.mask``.
            calibrate: whether the class gets thresholds from its supports. Without, it keeps those that it has.
            step: called after each image.

        Returns:
            The bank's new version.

        Raises:
            ImageError: A file cannot be read, is given twice, changes meanwhile, or has another size than the ROIs were drawn
                on; or ``paths`` is not a list.
            BankError: An image is enrolled already, the class has other ROIs, or the bank cannot be written.
        """
        files = list(discover.as_paths(paths))
        records = read_supports(files, bit_depth)
        # fail before minutes of encoding; the bank checks again when it commits
        check_new(self._require_bank().classes, class_name, records)
        layout, supports = self.layout_of(class_name, roi, mask), []
        for path, record in zip(files, records, strict=True):
            data, rgb = load_support(path, record, bit_depth)
            supports.append(self._file_support(path, record, rgb, data if keep_images else None, layout))
            step()
        return self.enroll_supports(class_name, supports, keep_versions, calibrate, layout=layout)

    def _file_support(
        self, path: Path, record: SupportImage, rgb: pixels.RGB8, file: bytes | None, layout: Layout | None
    ) -> NewSupport:
        try:
            return self.new_support(record, rgb, file, path.suffix, layout)
        except ImageError as exc:
            raise ImageError(f"{path}: {exc}") from None

    def new_support(
        self, record: SupportImage, rgb: pixels.RGB8, file: bytes | None, suffix: str, layout: Layout | None
    ) -> NewSupport:
        """Encode an image for :meth:`enroll_supports`.

        Args:
            record: its record.
            rgb: its pixels.
            file: its file, to be kept in the bank; ``None`` keeps no copy.
            suffix: ending of the file's name.
            layout: what is inspected.
        """
        return NewSupport(record, self.encode_support(rgb, layout), file, kept_suffix(suffix))

    def enroll_supports(
        self,
        class_name: str,
        supports: Sequence[NewSupport],
        keep_versions: int | None = None,
        calibrate: bool = True,
        *,
        layout: Layout | None = None,
        judged: Callable[[ClassBank], ClassEntry] | None = None,
        rates: Rates | None = None,
    ) -> int:
        """Enroll images that :meth:`new_support` has encoded with ``layout``. Return and errors are those of :meth:`enroll`.

        ``judged`` is what :meth:`judged` returned, if the images are confirmed as well, in the same version. ``rates`` are those of
        :meth:`automatic_calibration`.
        """
        with self._lifetime.in_use():
            bank = self._require_bank()
            if not supports:
                raise BankError(f"class {class_name!r}: no image given")
            roi, mask = (None, None) if layout is None else (layout.spec, layout.mask)
            automatic = self.automatic_calibration(rates) if calibrate else None
            return bank.add(
                class_name, supports, roi=roi, mask=mask, calibrate=automatic, keep=keep_versions, judged=judged
            )

    def enroll_image(self, class_name: str, record: SupportImage, rgb: pixels.RGB8, file: bytes, suffix: str) -> int:
        """Enroll one decoded image with its record. Return and errors are those of :meth:`enroll`."""
        check_new(self._require_bank().classes, class_name, [record])  # before it is encoded
        layout = self.layout_of(class_name)
        return self.enroll_supports(class_name, [self.new_support(record, rgb, file, suffix, layout)], layout=layout)

    def automatic_calibration(self, rates: Rates | None = None) -> Calibrate:
        """Return what calibrates a class when its supports change, for the scoring of :meth:`calibrated_with`.

        Args:
            rates: tolerated rates of a class that has no calibration; ``None`` for the defaults.
        """

        def calibrate(changed: ClassBank, old: ClassEntry | None) -> ClassEntry:
            spec, precision = self.calibrated_with(old)
            return AutomaticCalibration(spec, precision, self._threads, rates or Rates())(changed, old)

        return calibrate

    def calibrated_with(self, entry: ClassEntry | None) -> tuple[ScoringSpec, Precision]:
        """Return the scoring and precision that a change of a class calibrates it for.

        An inspector that was opened without views or preset keeps those that the class was calibrated with. One that was opened
        with others calibrates for its own.

        Args:
            entry: the class before the change; ``None`` for a new one.
        """
        record = None if entry is None else entry.calibration
        default = replace(ScoringSpec.of(self.manifest), views=self._require_bank().manifest.views)
        if record is None or self.scoring != default:
            return self.scoring, self.engine.precision
        return ScoringSpec.of(record), "bf16" if record.precision == "bf16" else self.engine.precision

    def confirm(
        self,
        class_name: str,
        images: Sequence[NDArray[np.uint8]],
        good: bool = True,
        selection: Selection = "all",
        *,
        colour: str = "bgr",
        color: str | None = None,
    ) -> int:
        """Record parts that a person judged. Scores of good parts tighten the promise; those that defective parts gave are dropped.

        Only parts that were chosen regardless of their verdict count. Accepted parts alone have low scores because they were
        accepted: a threshold from them would reject more good parts than it promises. They are recorded, and do not count.

        Args:
            class_name: the class.
            images: uint8 (H, W, 3) arrays in ``colour`` order, or gray (H, W).
            good: whether the parts are good.
            selection: ``all`` for consecutive parts whatever their verdict, ``accepted`` for parts with the verdict ok only.
            colour: ``"bgr"`` as OpenCV returns it, or ``"rgb"``.
            color: same as ``colour``, and overrides it.

        Returns:
            The bank's new version.

        Raises:
            ImageError: An array has another type or shape.
            BankError: The class is unknown, or an image is enrolled or was confirmed before.
        """
        rgbs = arrays.from_arrays(images, colour if color is None else color)
        full = [pixels.to_rgb(image) if image.ndim == 2 else image for image in rgbs]
        return self.confirm_images(class_name, list(zip(array_supports(full), full, strict=True)), good, selection)

    def confirm_files(
        self,
        class_name: str,
        paths: Sequence[Path | str],
        good: bool = True,
        selection: Selection = "all",
        enroll: bool = False,
        *,
        bit_depth: int | None = None,
        step: Callable[[], None] = lambda: None,
        notes: list[str] | None = None,
    ) -> int:
        """Record image files that a person judged. See :meth:`confirm`.

        ``enroll`` enrolls good parts as well, in the same version, with the errors of :meth:`enroll_files`. ``notes`` gets a line
        for each good part that does not look like one that was accepted, or like one of the class.
        """
        if enroll and not good:
            raise BankError(f"class {class_name!r}: only good parts can be enrolled")
        files = list(discover.as_paths(paths))
        records = read_supports(files, bit_depth)
        held = self.require_class(class_name).classes[normalize_class_name(class_name)]
        self._check_unconfirmed(held, class_name, records, good)  # fail before minutes of encoding
        layout, judged, supports = self.layout_of(class_name), [], []
        for path, record in zip(files, records, strict=True):
            data, rgb = load_support(path, record, bit_depth)
            judged.append((record, rgb))
            if enroll:
                supports.append(self._file_support(path, record, rgb, data, layout))
            step()
        if enroll:
            change = self.judged(class_name, judged, good, selection, notes)
            return self.enroll_supports(class_name, supports, layout=layout, judged=change)
        return self.confirm_images(class_name, judged, good, selection, notes)

    def confirm_images(
        self,
        class_name: str,
        images: Sequence[tuple[SupportImage, pixels.RGB8]],
        good: bool,
        selection: Selection,
        notes: list[str] | None = None,
    ) -> int:
        """Record judged images with their records. See :meth:`confirm`."""
        class_name = normalize_class_name(class_name)
        what = f"{'good' if good else 'defective'} parts" + ("" if selection == "all" else ", accepted ones only")
        change = self.judged(class_name, images, good, selection, notes)
        return self.require_class(class_name).update(class_name, f"confirm {class_name}: {len(images)} {what}", change)

    def judged(
        self,
        class_name: str,
        images: Sequence[tuple[SupportImage, pixels.RGB8]],
        good: bool,
        selection: Selection,
        notes: list[str] | None = None,
    ) -> Callable[[ClassBank], ClassEntry]:
        """Score images that a person judged. Return the change that records them, for ``Bank.update``. See :meth:`confirm`."""
        class_name = normalize_class_name(class_name)
        bank = self.require_class(class_name)
        self._check_unconfirmed(bank.classes[class_name], class_name, [record for record, _ in images], good)
        scored_with = bank.classes[class_name].entry
        spec, precision = self.calibrated_with(scored_with)
        results = self._scored(class_name, [rgb for _, rgb in images], spec)
        if notes is not None and good:
            for (record, _), result in zip(images, results, strict=True):
                notes += doubts(record.source, result, selection)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        # a score in another precision is none of the calibration's, and the class keeps the scores that it has
        counted = good and selection == "all" and precision == self.engine.precision
        confirmations = tuple(
            Confirmation(
                sha256=record.sha256, source=record.source, pixels=record.pixels, good=good, selection=selection,
                score=result.score, counted=counted, created=now,
            )
            for (record, _), result in zip(images, results, strict=True)
        )  # fmt: skip

        def changed(current: ClassBank) -> ClassEntry:
            self._check_unconfirmed(current, class_name, [record for record, _ in images], good)
            same_scoring = self.calibrated_with(current.entry) == (spec, precision)
            if not same_scoring or not same_supports(current.entry, scored_with):
                raise BankError(
                    f"class {class_name!r} of bank {bank.folder} was changed while the parts were scored; nothing was stored, "
                    "confirm them again"
                )
            entry = current.entry.model_copy(
                update={"confirmations": (*(current.entry.confirmations or ()), *confirmations)}
            )
            new = [GoodScore.of(c.score, c, "confirmed") for c in confirmations]
            return self._with_scores(current, entry, new) if counted else without_defective(entry)

        return changed

    def _scored(self, name: str, rgbs: Sequence[pixels.RGB8], spec: ScoringSpec) -> list[Result]:
        """Inspect images of a class with a scoring."""
        if spec == self.scoring:
            return [result for result, _ in self.trace_batch(rgbs, name, trace=False)]
        with self._lifetime.in_use(), self.with_bank(self._require_bank(), spec) as other:
            return [result for result, _ in other.trace_batch(rgbs, name, trace=False)]

    def _with_scores(self, current: ClassBank, entry: ClassEntry, new: Sequence[GoodScore]) -> ClassEntry:
        """Return the entry with thresholds from the scores that it has of other images, and new ones."""
        record = entry.calibration
        spec, precision = self.calibrated_with(current.entry)
        holds = record is not None and spec.holds_for(record, precision)
        if holds:
            scores = other_scores(recorded_scores(entry), new)
        else:
            left_out = leave_one_out(current, spec, threads=self._threads) if len(entry.images) > 1 else ()
            scores = [GoodScore.of(s.score, entry.images[s.support], "leave-one-out") for s in left_out]
        level = entry.map_scale[0] if entry.map_scale else 0.0
        return with_limits(
            entry, [*scores, *new], Rates.of(record), spec, precision, level,
            bit_depth=None if record is None else record.bit_depth, automatic=True,
            by_hand=record.by_hand if record is not None and holds else None,
        )  # fmt: skip

    def _check_unconfirmed(self, bank: ClassBank, name: str, records: Sequence[SupportImage], good: bool) -> None:
        check_not_enrolled({name: bank}, name, records)
        known = {digest for c in bank.entry.confirmations or () for digest in (c.sha256, c.pixels)} - {None}
        for record in records:
            if not known.isdisjoint((record.sha256, record.pixels)):
                raise BankError(
                    f"class {name!r}: {record.source} was confirmed before (sha256 {record.sha256[:12]}); `visionad bank undo` "
                    "takes the last change back"
                )
            if good:
                check_not_defective(bank.entry, name, record.source, *(d for d in (record.sha256, record.pixels) if d))


def doubts(source: str, result: Result, selection: Selection = "all") -> list[str]:
    """Return a line for each reason to look at an image that a person called a good part of a class.

    Args:
        source: where the image came from.
        result: its result, with the class given.
        selection: how the parts were chosen, as for :meth:`Inspector.confirm`.
    """
    lines = []
    if result.class_mismatch is not None:
        lines.append(f"look at {source}: it is nearer to {result.class_mismatch}")
    if selection == "accepted" and result.threshold is not None and result.verdict in ("anomalous", "review"):
        lines.append(f"look at {source}: its verdict is {result.verdict}, so it is none of the accepted parts")
    return lines
