"""``visionad calibrate``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from ..console import complain, progress, say
from ..options import (
    BackendOption,
    BankArg,
    BitDepth,
    ClassOption,
    DeviceOption,
    JsonFlag,
    MaybePaths,
    ModelArg,
    PrecisionOption,
    PresetOption,
    ThreadsOption,
    ViewsOption,
)
from ..results import require_bank
from .bank_threshold import tell_if_dropped


def calibrate(
    model: ModelArg,
    bank: BankArg,
    class_name: ClassOption,
    paths: MaybePaths = None,
    max_false_reject: Annotated[
        float | None,
        typer.Option(
            help="fraction of good parts that may be anomalous, required [default: 0.01, or the best that so few promise]"
        ),
    ] = None,
    review_rate: Annotated[
        float, typer.Option(help="fraction of good parts that may be for review or anomalous; 0 for no review")
    ] = 0.05,
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: PresetOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
    as_json: JsonFlag = False,
) -> None:
    """Compute a class's thresholds from good parts only.

    Without PATH, every enrolled part is scored against the others.
    """
    from ...bank.supports import depth_warnings
    from ...formats.manifest import as_dict
    from ...images.discover import find_images
    from ...inspector import Inspector
    from ...scoring.conformal import promise_in_words
    from ...teaching.calibrate import calibrate_class

    notes: list[str] = []
    images = [f.path for f in find_images(paths, notes=notes)] if paths else []
    require_bank(bank)
    with (
        Inspector.open(
            model,
            bank,
            backend=backend,
            precision=precision,
            device=device,
            threads=threads,
            preset=preset,
            views=views,
        ) as inspector,
    ):
        classes = inspector.require_class(class_name).classes
        for line in (*notes, *depth_warnings(classes, class_name, bit_depth)):
            complain(line)
        before = classes[class_name].entry
        count = len(images) or len(classes[class_name].entry.images)
        with progress(f"calibrating {class_name}", count) as step:
            result = calibrate_class(
                inspector, class_name, images, max_false_reject, bit_depth, step, review_rate=review_rate
            )
        after = inspector.require_class(class_name).classes[class_name].entry
    for line in result.notes:
        complain(line)
    if not images:
        tell_if_dropped(class_name, before, after)
    threshold, record = result.threshold, result.record
    if as_json:
        review = result.limits.review
        facts = {
            "class": class_name,
            "threshold": threshold.value,
            "review_threshold": None if review is None else review.value,
            "bank_version": result.bank_version,
        }
        say(json.dumps({**facts, "skipped": result.skipped, **as_dict(record)}, ensure_ascii=False))
        return
    say(f"class {class_name}: threshold {threshold.value:.4f} from {threshold.normals} good images ({record.method})")
    say(
        f"a further good part is rejected with probability at most {threshold.mean_bound:.4f} on average over calibrations; "
        f"this threshold's own rate is below {threshold.upper_bound:.4f} at {record.confidence:.0%} confidence"
    )
    if result.limits.review is not None:
        share = result.limits.review.mean_bound
        say(
            f"review from {result.limits.review.value:.4f} on: at most {share:.4f} of good parts, anomalous ones included"
        )
    say(promise_in_words(threshold.normals, record.max_false_reject))
    if "leave-one-out" in record.method:
        say("enrolled images were scored leave-one-out; for an audited rate, give images that are not enrolled")
    for path in result.skipped:
        say(f"skipped, it is the only support of the class: {path}")
    say(f"bank version {result.bank_version}")
