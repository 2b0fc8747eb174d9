"""The acceptance report of one class on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...bank.names import normalize_class_name
from ...errors import VisionADError
from ...formats.manifest import ClassEntry
from ...formats.plain_text import plain
from ...inspector import Inspector
from ...pipeline.calibration import recorded_scores
from ...pipeline.self_test import read_golden, self_test
from ...system import environment
from ...teaching.audit import MIN_SUPPORTS, OUTLIER_RATIO, leave_one_out_scores
from ..benchmark.cold_start import cold_start
from . import sections
from .inputs import Inputs, Labeled
from .limits import NONE_PASSES, Canvases, compare_with_real, detection_limit, passing_images
from .performance import CALLS, latency
from .rates import CONFIDENCE
from .scorer import Scored, Scorer

FORMAT = 1
"""Version of the report's JSON."""
DEFECTS = 600
"""Painted defects by default."""
WORK = "work.jsonl"
STARTS = 3

Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]
"""Title and number of steps → a bar, whose value counts one step."""


@contextmanager
def no_progress(_what: str, _total: int) -> Iterator[Callable[[], None]]:
    """Show nothing."""
    yield lambda: None


@dataclass(frozen=True)
class Settings:
    """Settings of a qualification.

    Attributes:
        model: model folder.
        bank: bank folder.
        class_name: the class.
        preset: name of the preset that was asked for.
        defects: number of painted defects; 0 for no detection limit.
        seed: of the painted defects.
        calls: timed inspections.
        streams: inspections at a time.
        starts: fresh processes that measure the cold start; 0 for none.
        bit_depth: bits that the camera fills in 16-bit files.
    """

    model: Path
    bank: Path
    class_name: str
    preset: str | None = None
    defects: int = DEFECTS
    seed: int = 0
    calls: int = CALLS
    streams: int = 1
    starts: int = STARTS
    bit_depth: int | None = None


def qualify(
    inspector: Inspector, settings: Settings, inputs: Inputs, out: Path, progress: Progress = no_progress
) -> dict[str, Any]:
    """Measure all sections of a report.

    What is inspected is kept in ``out``, so that a stopped run goes on where it was. Times are measured anew.

    Args:
        inspector: opened with the model and the bank of ``settings``.
        settings: what to measure.
        inputs: the images.
        out: folder of the report.
        progress: shows a bar.

    Returns:
        The report, JSON types.

    Raises:
        VisionADError: The class has no valid threshold, the bank knows an image otherwise, no good image is fresh, or an image
            cannot be read.
    """
    name = normalize_class_name(settings.class_name)
    entry = calibrated_entry(inspector, name)
    check_labels(entry, inputs)
    fresh, left_out = fresh_images(entry, inputs.good)
    with closing(Scorer(inspector, name, out / WORK, settings.bit_depth)) as scorer:
        outcomes = score_all(scorer, inputs, fresh, progress)
        assert entry.threshold is not None and entry.calibration is not None
        report: dict[str, Any] = {
            **header(inspector, settings, entry),
            "promise": sections.promise(entry),
            "left_out": left_out,
            "false_rejects": sections.false_rejects(fresh, outcomes, entry.calibration.bound_false_reject),
            "misses": sections.misses(inputs.bad, outcomes) if inputs.bad else None,
            "repeatability": sections.repeatability(inputs.repeats, outcomes, entry.threshold)
            if inputs.repeats
            else None,
            "detection_limit": None,
            "why_no_limit": None if settings.defects else "it was not asked for",
            "real_defects": None,
        }
        if settings.defects and not passing_images(fresh, outcomes):
            report["why_no_limit"] = NONE_PASSES
        elif settings.defects:
            canvases = Canvases(scorer, fresh, outcomes)
            with progress("painting defects", settings.defects) as step:
                scorer.step = step
                report["detection_limit"], painted = detection_limit(scorer, canvases, settings.defects, settings.seed)
            scorer.step = lambda: None
            if inputs.masks is not None:
                report["real_defects"] = compare_with_real(
                    scorer, inputs.bad, inputs.masks, outcomes, painted, canvases.reference
                )
        report["contamination"] = contamination(inspector, name)
        with progress("timing", settings.calls) as step:
            report["latency"] = latency(
                inspector, name, [one.path for one in fresh], calls=settings.calls, streams=settings.streams,
                bit_depth=settings.bit_depth, step=step,
            )  # fmt: skip
        report["cold_start"] = start_times(inspector, settings, fresh[0].path) if settings.starts else None
        report["images"] = {one.sha256: outcomes[one.sha256]._asdict() for one in (*fresh, *inputs.bad)}
        report["inspected"], report["reused"] = scorer.computed, scorer.reused
    return report


def calibrated_entry(inspector: Inspector, name: str) -> ClassEntry:
    """Return the entry of a class, after checking that its threshold is valid here.

    Raises:
        BankError: The bank does not hold the class.
        VisionADError: The class has no threshold, or one by hand, or one for another scoring or precision.
    """
    entry = inspector.require_class(name).classes[name].entry
    if entry.threshold is None or entry.calibration is None:
        raise VisionADError(
            f"class {name!r} has no threshold, so there is no verdict to qualify; enroll a second good part, or run "
            "`visionad calibrate` with good images"
        )
    if not inspector.holds(entry):
        raise VisionADError(inspector.calibration_warnings()[0])
    if entry.by_hand is not None:
        raise VisionADError(
            f"the threshold of class {name!r} was typed by {entry.by_hand.who} and promises nothing, so there is no promise to "
            "qualify; `visionad bank threshold --calibrated` or `visionad calibrate` replaces it"
        )
    return entry


def check_labels(entry: ClassEntry, inputs: Inputs) -> None:
    """Check that the bank does not know an image as the opposite: an image of a good part as a defect, or a defect as good.

    Images are compared by content. Of several judgements of a part the last one holds.

    Args:
        entry: the class.
        inputs: the images.

    Raises:
        VisionADError: It does. The message names the image and what the bank knows it as.
    """
    good, defect = "as a good part", "as a defect"
    judged = {
        digest: good if one.good else defect
        for one in entry.confirmations or ()
        for digest in (one.sha256, one.pixels)
        if digest is not None
    }
    judged |= dict.fromkeys((one.sha256 for one in entry.defects or ()), defect)
    used = dict.fromkeys((d for s in recorded_scores(entry) for d in s.digests), f"used for the calibration {good}")
    used |= dict.fromkeys((d for i in entry.images for d in (i.sha256, i.pixels) if d is not None), f"enrolled {good}")
    taken = {digest: f"confirmed {known}" for digest, known in judged.items()} | used
    for option, images, opposite in (("--good", inputs.good, defect), ("--bad", inputs.bad, good)):
        wrong = [
            (one, known) for one in images if opposite in (known := taken.get(one.sha256) or taken.get(one.pixels, ""))
        ]
        if wrong:
            one, known = wrong[0]
            more = f", and {len(wrong) - 1} more images are like it" if len(wrong) > 1 else ""
            raise VisionADError(f"{option}: {one.path} was {known}{more}; take it away")


def fresh_images(entry: ClassEntry, good: Sequence[Labeled]) -> tuple[list[Labeled], dict[str, int]]:
    """Return the good images that neither are enrolled nor set the threshold, and how many were left out for either reason.

    An image that set the threshold says nothing about the realized rate: it was counted when the threshold was chosen. Images are
    compared by content: files first, then pixels. Held-out images of an earlier release's calibration are known by path only.

    Args:
        entry: the class.
        good: good images.

    Raises:
        VisionADError: None is left.
    """
    scores = recorded_scores(entry)
    confirmed = [c for c in entry.confirmations or () if c.counted]
    known = dict.fromkeys((d for s in scores for d in s.digests), "calibration")
    known |= dict.fromkeys((d for c in confirmed for d in (c.sha256, c.pixels) if d is not None), "calibration")
    known |= dict.fromkeys(
        (d for image in entry.images for d in (image.sha256, image.pixels) if d is not None), "enrolled"
    )
    sources = {s.source for s in scores if not s.digests}
    fresh, left_out = [], {"enrolled": 0, "calibration": 0}
    for one in good:
        why = known.get(one.sha256)
        if why is None and plain(str(one.path.absolute())) in sources:
            why = "calibration"
        why = why or known.get(one.pixels)
        if why is None:
            fresh.append(one)
        else:
            left_out[why] += 1
    if not fresh:
        raise VisionADError(
            f"--good: expected good images that are neither enrolled nor set the threshold, but all {len(good)} are "
            f"({left_out['enrolled']} enrolled, {left_out['calibration']} of the calibration); give images of other parts"
        )
    return fresh, left_out


def score_all(scorer: Scorer, inputs: Inputs, fresh: Sequence[Labeled], progress: Progress) -> dict[str, Scored]:
    """Inspect all images, and return the outcome of each by its sha256.

    Raises:
        ImageError: An image cannot be read.
    """
    repeats = [one for parts in (inputs.repeats or {}).values() for files in parts.values() for one in files]
    images = [*fresh, *inputs.bad, *repeats]
    with progress("inspecting", len(images)) as step:
        scorer.step = step
        outcomes = {one.sha256: scorer.score_file(one.path, one.sha256) for one in images}
    scorer.step = lambda: None
    return outcomes


def header(inspector: Inspector, settings: Settings, entry: ClassEntry) -> dict[str, Any]:
    """Return what was qualified: digests, versions, the self-test's differences."""
    assert inspector.bank is not None
    model, bank = inspector.manifest, inspector.bank
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "confidence": CONFIDENCE,
        "class": normalize_class_name(settings.class_name),
        "model": {"folder": str(settings.model), "describe": model.identity.describe(), "sha256": inspector.digest},
        "bank": {
            "folder": str(settings.bank),
            "version": bank.manifest.version,
            "sha256": bank.snapshot.digest,
            "supports": [image.sha256 for image in entry.images],
        },
        "scoring": {**inspector.scoring.fields(), "views": list(inspector.scoring.views), "preset": settings.preset},
        "roi": None if entry.roi is None else {"sha256": entry.roi.digest(), "names": list(entry.roi.names)},
        "mask": None if entry.roi is None else entry.roi.mask,
        "backend": {
            "name": inspector.engine.name,
            "precision": inspector.engine.precision,
            "self_test": self_test(inspector.engine, model, read_golden(settings.model)),
        },
        "environment": environment(),
    }


def contamination(inspector: Inspector, name: str) -> dict[str, Any]:
    """Return the leave-one-out scores of the supports, and which of them stand out."""
    assert inspector.bank is not None
    held = inspector.bank.classes[name]
    rows = [
        {
            "sha256": s.image.sha256,
            "source": s.image.source,
            "score": s.score,
            "ratio": s.ratio,
            "outlier": s.is_outlier,
        }
        for s in leave_one_out_scores(held, inspector.scoring, recorded=True)
    ]
    return {
        "supports": len(held.entry.images),
        "limit": OUTLIER_RATIO,
        "rows": rows,
        "outliers": sum(row["outlier"] for row in rows),
        "why_empty": None if rows else f"expected {MIN_SUPPORTS} supports or more to tell an outlier",
    }


def start_times(inspector: Inspector, settings: Settings, image: Path) -> dict[str, Any]:
    """Measure how long a fresh process takes to its first verdict.

    Raises:
        VisionADError: A process failed.
    """
    return cold_start(
        settings.model, settings.bank, image, inspector.engine.name, inspector.threads, list(inspector.views),
        normalize_class_name(settings.class_name), settings.starts, "not measured", {"precision": inspector.engine.precision},
    )  # fmt: skip
