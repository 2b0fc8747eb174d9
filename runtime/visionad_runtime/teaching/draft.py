"""A draft: a class under preparation, in a bank of its own. The line goes on with the class as it is until the draft goes live.

Supports, regions and threshold of a draft become one version of the bank, so no part in between is without a threshold. Whatever a
person does is written at once; a page or a station that is closed in the middle finds the draft again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..bank.adopt import adopt_class
from ..bank.layout import MASKS
from ..bank.supports import png_file, read_kept, support_record
from ..errors import BankError, ImageError, VisionADError
from ..formats.files import atomic_write
from ..formats.manifest import ClassEntry
from ..formats.roi import RoiSpec
from ..images import decode
from ..images.pixels import RGB8, pixel_digest, to_rgb
from ..inspector import Inspector
from ..pipeline.calibration import type_threshold
from ..pipeline.leave_one_out import leave_one_out
from ..result import Result
from ..scoring.conformal import promise_in_words
from .audit import OUTLIER_RATIO, leave_one_out_scores
from .calibrate import calibrate_class
from .draft_state import (
    BANK,
    COLLECTED,
    CollectedPart,
    Decision,
    DraftChangedError,
    NotReadyError,
    read_state,
    remove_draft,
    write_state,
)
from .rebuild import change_roi, image_size

MAX_PARTS = 8
"""Good parts that a page teaches. More come by `visionad bank add`."""
HIGHEST = 5
"""Collected parts with the highest scores: each must be looked at before the threshold counts."""


class Flip(NamedTuple):
    """An image of a kept part, or the part itself, and its score with the draft.

    Attributes:
        part: number in the records.
        score: with the draft.
        was: its verdict then.
        was_good: what a person said of it; ``None`` if nobody did.
    """

    part: int
    score: float
    was: str
    was_good: bool | None


class Draft:
    """A draft and the inspector that encodes and scores for it. One thread uses it.

    Args:
        folder: of the draft, which exists.
        inspector: with the draft's bank.
    """

    def __init__(self, folder: Path, inspector: Inspector) -> None:
        self.folder, self._inspector = folder, inspector
        self.state = read_state(folder)
        self.effect: list[Flip] = []

    @property
    def name(self) -> str:
        """The class."""
        return self.state.class_name

    @property
    def entry(self) -> ClassEntry | None:
        """The class as the draft has it; ``None`` before its first part."""
        bank = self._inspector.bank
        assert bank is not None
        held = bank.classes.get(self.name)
        return None if held is None else held.entry

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the images.

        Raises:
            NotReadyError: There is no part yet.
        """
        if self.entry is None:
            raise NotReadyError("no_parts", "take a good part first: regions are drawn on its image")
        assert self._inspector.bank is not None
        return image_size(self._inspector.bank, self.name)

    def check_size(self, roi: RoiSpec) -> None:
        """Check that regions were drawn on images of this size.

        Raises:
            NotReadyError: There is no part yet.
            ImageError: They were not.
        """
        (width, height), drawn = self.image_size, roi.image_size
        if drawn != (width, height):
            raise ImageError(
                f"regions of interest: expected them drawn on images of {width}x{height} pixels, got {drawn[0]}x{drawn[1]}"
            )

    # -- changes ------------------------------------------------------------------------------------------------------

    def check(self, version: int) -> None:
        """Check that nobody has changed the draft since a version.

        Raises:
            DraftChangedError: Somebody has.
        """
        if version != self.state.version:
            raise DraftChangedError(self.state.who, self.state.version)

    def add(self, rgb: RGB8, source: str, who: str) -> None:
        """Add a good part.

        Args:
            rgb: uint8 (H, W, 3) RGB or (H, W) gray, the pixels that the camera gave.
            source: where it came from.
            who: the person.

        Raises:
            ImageError: It has another size than the other parts.
            BankError: It is in the draft already, or there are :data:`MAX_PARTS`.
        """
        entry, full = self.entry, to_rgb(rgb) if rgb.ndim == 2 else rgb
        images = () if entry is None else entry.images
        if len(images) >= MAX_PARTS:
            raise BankError(f"a draft holds at most {MAX_PARTS} good parts; take one out first")
        size = (full.shape[1], full.shape[0])
        if (expected := next((image.size for image in images if image.size is not None), size)) != size:
            raise ImageError(
                f"{source}: expected {expected[0]}x{expected[1]} pixels as the other parts have, got {size[0]}x{size[1]}; it is "
                "not from this camera"
            )
        data = png_file(full)
        self._inspector.enroll_image(self.name, support_record(data, full, source), full, data, ".png")
        self._scores_changed(who)

    def remove(self, support: str, who: str) -> None:
        """Take a part out.

        Args:
            support: sha256 of the part.
            who: the person.

        Raises:
            BankError: There is no such part.
        """
        entry = self.entry
        bank = self._inspector.bank
        assert bank is not None
        if entry is None or support not in [image.sha256 for image in entry.images]:
            raise BankError(f"the draft has no part {support[:12]}")
        last = len(entry.images) == 1
        bank.remove(
            self.name, None if last else support, calibrate=None if last else self._inspector.automatic_calibration()
        )
        decisions = {name: one for name, one in self.state.decisions.items() if name != support}
        self._scores_changed(who, decisions=decisions)

    def decide(self, support: str, reason: str, who: str) -> None:
        """Note why a part that stands out is good all the same.

        Raises:
            VisionADError: There is no such part, or no reason.
        """
        if not reason.strip():
            raise VisionADError("expected a reason in words, got none")
        if self.entry is None or support not in [image.sha256 for image in self.entry.images]:
            raise BankError(f"the draft has no part {support[:12]}")
        self._change(who, decisions={**self.state.decisions, support: Decision(reason=reason.strip()[:500], who=who)})

    def set_regions(self, roi: RoiSpec | None, who: str) -> None:
        """Change what is inspected. All parts are encoded anew, and thresholds from collected parts are dropped.

        Raises:
            VisionADError: There is no part yet, or the regions do not fit the images.
        """
        self.check_size(
            RoiSpec(image_size=self.image_size) if roi is None else roi
        )  # before masks of that size are made
        mask = None
        if roi is not None and roi.mask is not None:
            try:
                mask = (self.folder / BANK / MASKS / f"{roi.mask}.png").read_bytes()
            except OSError as exc:
                raise BankError(f"the mask {roi.mask[:12]} of the class cannot be read: {exc.strerror}") from None
        change_roi(self._inspector, self.name, roi, mask)
        self._scores_changed(who)

    def collect(self, on: bool, who: str) -> None:
        """Begin to collect all parts of the line, or end it. A new beginning drops what was collected before.

        Raises:
            NotReadyError: There is no part to compare with.
        """
        if on and self.entry is None:
            raise NotReadyError("no_parts", "take a good part first: the line's parts are compared with it")
        if on:
            self._drop_collected()
            self._change(who, collecting=True, collected=(), without_image=0, why_ended="")
        else:
            self._change(who, collecting=False)

    def end_collecting(self, why: str) -> None:
        """End collecting, because the line is not as it was."""
        if self.state.collecting:
            self._note(collecting=False, why_ended=why)

    def take(self, part: int, name: str, camera: str, rgb: RGB8 | None) -> None:
        """Score a part of the line, whatever its verdict was. Images with the same pixels count once.

        Args:
            part: number in the records.
            name: its text.
            camera: that took the image.
            rgb: uint8 (H, W, 3) or (H, W); ``None`` if there is none.
        """
        if not self.state.collecting:
            return
        if rgb is None:
            self._note(without_image=self.state.without_image + 1)
            return
        full = to_rgb(rgb) if rgb.ndim == 2 else rgb
        digest = pixel_digest(full)
        entry = self.entry
        known = {one.pixels for one in self.state.collected} | {i.pixels for i in (entry.images if entry else ())}
        if digest in known:
            return
        try:
            ((result, _),) = self._inspector.trace_batch([full], self.name, trace=False)
        except ImageError as exc:  # another size than the regions were drawn on
            self.end_collecting(str(exc))
            return
        path = self.folder / COLLECTED / f"{digest}.png"
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, png_file(full))
        one = CollectedPart(part=part, name=name, camera=camera, pixels=digest, score=result.score)
        self._note(collected=(*self.state.collected, one))

    def look(self, pixels: str, strike: bool, reason: str, who: str) -> None:
        """Note that a person has looked at a collected part, and whether it counts.

        Args:
            pixels: digest of its image.
            strike: whether it does not count.
            reason: why it does not.
            who: the person.

        Raises:
            VisionADError: There is no such part, or no reason to strike it out.
        """
        if pixels not in [one.pixels for one in self.state.collected]:
            raise VisionADError(f"no part {pixels[:12]} was collected")
        if strike and not reason.strip():
            raise VisionADError("expected a reason in words, got none")
        update = {"looked": True, "struck": reason.strip()[:500] if strike else "", "who": who if strike else ""}
        collected = [one.model_copy(update=update) if one.pixels == pixels else one for one in self.state.collected]
        self._change(who, collected=tuple(collected))

    def use_threshold(self, max_false_reject: float, who: str) -> None:
        """Calibrate the draft with the collected parts that count, as ``visionad calibrate`` does with the same images.

        Raises:
            VisionADError: There are too few parts for the rate, or the highest ones were not looked at.
        """
        counted = [one for one in self.state.collected if not one.struck]
        unseen = [one for one in self._highest() if not one.looked]
        if unseen:
            raise NotReadyError("not_looked", f"look at the {len(unseen)} highest parts first, and strike out bad ones")
        paths = [self.folder / COLLECTED / f"{one.pixels}.png" for one in counted]
        calibrate_class(self._inspector, self.name, paths, max_false_reject)
        self._change(who, collecting=False)

    def type_threshold(self, value: float, reason: str, who: str) -> None:
        """Set a threshold that a person typed, in place of the calibrated one. It promises nothing.

        Args:
            value: scores above it are anomalous.
            reason: why, in words.
            who: the person.

        Raises:
            VisionADError: The value is not positive and finite, or there is no reason.
            NotReadyError: There is no score of a good part to compare it with.
        """
        if self.entry is None or self.entry.calibration is None:
            raise NotReadyError(
                "no_threshold", "take a second good part first: a threshold is compared with good parts"
            )
        bank = self._inspector.bank
        assert bank is not None
        bank.update(
            self.name, f"threshold {value:g} by hand", lambda held: type_threshold(held.entry, value, who, reason)
        )
        self._change(who)

    def go_live(self, live: Path, who: str) -> int:
        """Put parts, regions and threshold into the line's bank, as one version.

        Args:
            live: bank folder of the line.
            who: the person.

        Returns:
            The bank's new version.

        Raises:
            NotReadyError: Something is missing or undecided.
            BankError: The bank cannot be written, or its class was changed since the draft was begun. Nothing was changed.
        """
        entry = self.entry
        if entry is None:
            raise NotReadyError("no_parts", "the draft has no good part yet")
        if entry.threshold is None:
            raise NotReadyError(
                "no_threshold", "the draft has no threshold yet: take a second good part, or collect parts"
            )
        undecided = [part["support"] for part in self._parts(entry) if part["stands_out"] and part["decided"] is None]
        if undecided:
            raise NotReadyError(
                "undecided", f"{len(undecided)} parts stand out: say why they are good, or take them out"
            )
        what = f"draft of {self.name} by {who}: {len(entry.images)} parts"
        manifest = adopt_class(self.folder / BANK, live, self.name, what, expected=self.state.base)
        remove_draft(self.folder)
        return manifest.version

    def try_on(self, part: int, path: Path, was: str, was_good: bool | None) -> None:
        """Score an archived part with the draft.

        Args:
            part: number in the records.
            path: its image.
            was: its verdict then.
            was_good: what a person said of it.

        Raises:
            VisionADError: There is no part in the draft, or the image cannot be read or has another size.
        """
        ((result, _),) = self._inspector.trace_batch([decode.load(path)], self.name, trace=False)
        self.effect.append(Flip(part, result.score, was, was_good))

    # -- looking ------------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """Return the draft as the page shows it."""
        entry, state = self.entry, self.state
        record = None if entry is None else entry.calibration
        counted = [one.score for one in state.collected if not one.struck]
        facts: dict[str, Any] = {
            **state.model_dump(mode="json", exclude={"collected", "decisions", "base"}),
            "is_new": not state.base,
            "parts": [] if entry is None else self._parts(entry),
            "threshold": None if entry is None else entry.threshold,
            "review_threshold": None if entry is None else entry.review_threshold,
            "good_scores": [] if record is None else list(record.scores),
            "by_hand": None if entry is None or entry.by_hand is None else entry.by_hand.model_dump(mode="json"),
            "promise": None,
            "collected": [one.model_dump(mode="json") for one in state.collected],
            "counted": len(counted),
            "look_first": [one.pixels for one in self._highest()],
            "regions": None if entry is None or entry.roi is None else entry.roi.model_dump(mode="json"),
            "image_size": None,
            "effect": self.effect_facts(None if entry is None else entry.threshold),
        }
        if entry is not None and entry.promising is not None and record is not None:
            facts["promise"] = {
                "rate": record.guaranteed_false_reject, "bound": record.bound_false_reject, "normals": record.normals,
                "wanted": record.max_false_reject, "words": promise_in_words(record.normals, record.max_false_reject),
            }  # fmt: skip
        if entry is not None:
            facts["image_size"] = list(self.image_size)
        return facts

    def effect_facts(self, threshold: float | None) -> dict[str, Any]:
        """Return what a threshold would have done with the parts that were tried: counts, and the parts that differ."""
        tried = self._tried_parts()
        ids = set() if threshold is None else {one.part for one in tried if one.score > threshold}
        good = [one for one in tried if one.was_good is True]
        bad = [one for one in tried if one.was_good is False]
        return {
            "tried": len(tried),
            "threshold": threshold,
            "more": [one.part for one in tried if one.was == "ok" and one.part in ids],
            "fewer": [one.part for one in tried if one.was == "anomalous" and one.part not in ids],
            "good": len(good),
            "good_rejected": sum(one.part in ids for one in good),
            "bad": len(bad),
            "bad_caught": sum(one.part in ids for one in bad),
            "scores": [one._asdict() for one in tried],
        }

    def image(self, which: str) -> tuple[RGB8, Result | None]:
        """Return a part's image, and its inspection: a support without itself, a collected part as it is.

        Args:
            which: sha256 of a support, or pixel digest of a collected part.

        Raises:
            VisionADError: There is no such part.
        """
        entry = self.entry
        for place, image in enumerate(() if entry is None else entry.images):
            if image.sha256 == which:
                assert self._inspector.bank is not None
                rgb = read_kept(self._inspector.bank.folder, image.kept, image.bit_depth)
                if rgb is None:
                    raise VisionADError(f"the image of part {which[:12]} is not kept in the bank")
                alone = entry is not None and len(entry.images) == 1
                result = None if alone else self._inspector.trace_batch([rgb], self.name, place, trace=False)[0][0]
                return rgb, result
        if which in [one.pixels for one in self.state.collected]:
            rgb = decode.load(self.folder / COLLECTED / f"{which}.png")
            return rgb, self._inspector.trace_batch([rgb], self.name, trace=False)[0][0]
        raise VisionADError(f"the draft has no part {which[:12]}")

    # -- inside -------------------------------------------------------------------------------------------------------

    def _highest(self) -> list[CollectedPart]:
        """Return the parts that must be looked at: the highest that count."""
        counted = [one for one in self.state.collected if not one.struck]
        return sorted(counted, key=lambda one: -one.score)[:HIGHEST]

    def _tried_parts(self) -> list[Flip]:
        """Return the parts that were tried, in their order: each is as bad as the worst of its images of the class."""
        parts: dict[int, Flip] = {}
        for one in self.effect:
            held = parts.get(one.part, one)
            worst = min(held.was, one.was, key=lambda was: {"anomalous": 0, "ok": 2}.get(was, 1))
            parts[one.part] = one._replace(score=max(held.score, one.score), was=worst)
        return list(parts.values())

    def _parts(self, entry: ClassEntry) -> list[dict[str, Any]]:
        bank = self._inspector.bank
        assert bank is not None
        scores = leave_one_out_scores(
            bank.classes[self.name], self._inspector.scoring, recorded=self._inspector.holds(entry)
        )
        alone: Sequence[float | None] = [None] * len(entry.images)
        if not scores and len(entry.images) == 2:
            alone = [one.score for one in leave_one_out(bank.classes[self.name], self._inspector.scoring)]
        rows = []
        for place, image in enumerate(entry.images):
            decision = self.state.decisions.get(image.sha256)
            rows.append(
                {
                    "support": image.sha256,
                    "source": image.source,
                    "score": scores[place].score if scores else alone[place],
                    "ratio": scores[place].ratio if scores else None,
                    "stands_out": bool(scores and scores[place].is_outlier),
                    "limit": OUTLIER_RATIO,
                    "decided": None if decision is None else decision.model_dump(mode="json"),
                }
            )
        return rows

    def _scores_changed(self, who: str, **update: Any) -> None:
        """Note a change after which scores with the draft are others. What was collected with the old ones is dropped."""
        why = "parts or regions of the draft were changed" if self.state.collecting else self.state.why_ended
        self.effect = []
        self._drop_collected()
        self._change(who, collecting=False, collected=(), without_image=0, why_ended=why, **update)

    def _drop_collected(self) -> None:
        shutil.rmtree(self.folder / COLLECTED, ignore_errors=True)

    def _change(self, who: str, **update: Any) -> None:
        """Write what a person changed."""
        self._note(**update, who=who, version=self.state.version + 1)

    def _note(self, **update: Any) -> None:
        """Write what the line added: it makes nobody's view of the draft an old one."""
        self.state = self.state.model_copy(update=update)
        write_state(self.folder, self.state)
