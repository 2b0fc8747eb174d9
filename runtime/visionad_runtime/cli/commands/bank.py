"""``visionad bank``: enroll, remove, undo, list, verify and audit good parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import VisionADError
from ..console import complain, progress, say
from ..options import (
    BackendOption,
    BankArg,
    BitDepth,
    ClassOption,
    JsonFlag,
    ModelArg,
    PathsArg,
    ThreadsOption,
    as_stored,
)
from ..results import require_bank
from ..rois import IgnoreOption, RoiOption, describe, parse_rois, read_spec
from .bank_threshold import promise_line, tell_if_dropped, tell_if_replaced

if TYPE_CHECKING:
    from ...formats.manifest import ClassEntry
    from ...inspector.inspector import Selection


def bank_add(
    model: ModelArg,
    bank: BankArg,
    paths: PathsArg,
    class_name: ClassOption,
    shots: Annotated[int | None, typer.Option(min=1, help="enroll only this many of the images")] = None,
    seed: Annotated[
        int | None, typer.Option(help="select them at random, as the paper's runs do [default: the first by name]")
    ] = None,
    choose: Annotated[
        int | None,
        typer.Option("--choose", min=1, help="enroll the images that represent the others best [1 to 24]"),
    ] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
    roi: RoiOption = None,
    ignore: IgnoreOption = None,
    no_images: Annotated[
        bool,
        typer.Option("--no-images", help="keep no copy of the images in the bank; it cannot encode them anew then"),
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", min=1, metavar="N", help="keep the latest N versions from now on [default: all of them]"
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Enroll good images in a new or existing class, all or none of them."""
    from ...bank.names import check_class_name
    from ...bank.supports import depth_warnings, read_supports
    from ...images.decode import load
    from ...images.discover import find_images
    from ...inspector import Inspector
    from ...pipeline.calibration import MAX_AUTOMATIC
    from ...teaching.audit import leave_one_out_scores
    from ...teaching.sampling import sample_support_paths
    from ...teaching.selection import select_support

    class_name = check_class_name(class_name)
    if seed is not None and shots is None:
        raise VisionADError("--seed chooses among images; say how many with --shots")
    if choose is not None and shots is not None:
        raise VisionADError("--choose and --shots both say how many images to enroll; give one of them")
    regions = parse_rois(roi)
    notes: list[str] = []
    images = [f.path for f in find_images(paths, notes=notes)]
    if shots is not None:
        if shots > len(images):
            raise VisionADError(f"--shots {shots}: only {len(images)} images were found")
        images = sample_support_paths(images, shots, seed)
    read_supports(images, bit_depth)  # reports a bad file before the model is loaded
    height, width = load(images[0], bit_depth).shape[:2] if regions or ignore is not None else (0, 0)
    spec, mask = read_spec(regions, ignore, (width, height))
    with Inspector.open(model, bank, backend=backend, threads=threads, lazy_bank=True) as inspector:
        assert inspector.bank is not None
        layout = inspector.layout_of(class_name, spec, mask)
        for line in (*notes, *depth_warnings(inspector.bank.classes, class_name, bit_depth)):
            complain(line)
        if choose is not None:
            with progress(f"comparing {class_name}", len(images)) as step:
                images = select_support(
                    inspector, class_name, images, choose, bit_depth=bit_depth, layout=layout, step=step
                )
        with progress(f"enrolling {class_name}", len(images)) as step:
            version = inspector.enroll_files(
                class_name, images, bit_depth=bit_depth, keep_images=not no_images, keep_versions=keep, roi=spec, mask=mask,
                step=step,
            )  # fmt: skip
    enrolled = inspector.bank.classes[class_name]
    total = len(enrolled.entry.images)
    scored = leave_one_out_scores(enrolled, inspector.scoring, recorded=True) if total <= MAX_AUTOMATIC else []
    outliers = [s for s in scored if s.is_outlier]
    if as_json:
        facts = {"class": class_name, "added": len(images), "shots": total, "bank_version": version}
        named = [{"sha256": s.image.sha256, "source": s.image.source, "ratio": s.ratio} for s in outliers]
        say(json.dumps({**facts, "images": [str(p) for p in images], "odd": named}, ensure_ascii=False))
        return
    if choose is not None:
        for path in images:
            say(f"chosen: {path}")
    say(f"enrolled {len(images)} in class {class_name} ({total} in all), bank version {version}")
    say(promise_line(enrolled.entry))
    for s in outliers:
        say(outlier_line(bank, class_name, s))


def outlier_line(bank: Path, class_name: str, outlier: Any) -> str:
    """Return the advice for a support that stands out from the others of its class."""
    return (
        f"look at {outlier.image.source}: it differs from the others {outlier.ratio:.1f} times as much as they do; "
        f"if it is not good, `visionad bank remove {bank} --class {class_name} --image {outlier.image.sha256[:12]}`"
    )


def bank_remove(
    bank: BankArg,
    class_name: ClassOption,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="SHA", help="only the support whose sha256 starts with these digits, 4 or more"
        ),
    ] = None,
) -> None:
    """Remove a class, or one of its supports."""
    from ...bank.history import remove_offline
    from ...bank.store import Bank
    from ...pipeline.calibration import recalibrate

    after = None
    if image is None:
        version, change = remove_offline(bank, class_name), f"remove {class_name}"
    else:
        opened = Bank.open(bank, lazy=True)
        before = opened.classes.get(class_name)
        version, change = opened.remove(class_name, image, calibrate=recalibrate), opened.manifest.change
        after = opened.classes[class_name].entry
        if after.threshold is None:
            change += "; its threshold was dropped, and its parts are for review until `visionad calibrate`"
        tell_if_replaced(class_name, None if before is None else before.entry, after)
        tell_if_dropped(class_name, None if before is None else before.entry, after)
    say(f"bank version {version}: {change} (`visionad bank undo` restores it)")
    if after is not None and after.threshold is not None:
        say(promise_line(after))


def bank_confirm(
    model: ModelArg,
    bank: BankArg,
    paths: PathsArg,
    class_name: ClassOption,
    good: Annotated[
        bool | None, typer.Option("--good/--defect", help="what a person found the parts to be", show_default=False)
    ] = None,
    selection: Annotated[
        str,
        typer.Option(
            metavar="all|accepted",
            help="all: consecutive parts whatever their verdict; accepted: parts with verdict ok only, which do not count",
        ),
    ] = "all",
    enroll: Annotated[bool, typer.Option("--enroll", help="enroll the good parts too, as further supports")] = False,
    remember: Annotated[
        Path | None,
        typer.Option(
            metavar="MASK", help="remember the defect of the one image: a mask of its size, white on the defect"
        ),
    ] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
    as_json: JsonFlag = False,
) -> None:
    """Record parts that a person judged. Good ones, chosen regardless of their verdict, tighten the promise."""
    from ...images.discover import find_images
    from ...inspector import Inspector
    from ...teaching.remember import remember_file

    if good is None:
        raise VisionADError("expected --good or --defect: what did the person find the parts to be?")
    chosen: Selection | None = "all" if selection == "all" else "accepted" if selection == "accepted" else None
    if chosen is None:
        raise VisionADError(f"--selection {selection}: expected all or accepted")
    if enroll and not good:
        raise VisionADError("--enroll: only good parts can be enrolled; leave it out with --defect")
    if remember is not None and good:
        raise VisionADError("--remember: only a defect can be remembered; leave it out with --good")
    require_bank(bank)
    notes: list[str] = []
    doubtful: list[str] = []
    images = [f.path for f in find_images(paths, notes=notes)]
    for line in notes:
        complain(line)
    if remember is not None and len(images) != 1:
        raise VisionADError(f"--remember {remember}: expected one image, the one of the mask, got {len(images)}")
    with (
        Inspector.open(model, bank, backend=backend, threads=threads) as inspector,
        progress(f"confirming {class_name}", len(images)) as step,
    ):
        before = inspector.require_class(class_name).classes[class_name].entry
        if remember is not None:
            version = remember_file(inspector, class_name, images[0], remember, bit_depth)
            step()
        else:
            version = inspector.confirm_files(
                class_name, images, good=good, selection=chosen, enroll=enroll, bit_depth=bit_depth, step=step,
                notes=doubtful,
            )  # fmt: skip
        entry = inspector.require_class(class_name).classes[class_name].entry
    for line in doubtful:
        complain(line)
    tell_if_replaced(class_name, before, entry)
    if remember is None:
        tell_if_dropped(class_name, before, entry)
    record = entry.promising
    counted = sum(one.counted for one in (entry.confirmations or ())[-len(images) :]) if good else 0
    if as_json:
        facts = {
            "class": class_name,
            "confirmed": len(images),
            "good": good,
            "selection": selection,
            "counted": counted,
            "remembered": len(entry.defects or ()),
        }
        promise = None if record is None else {"guaranteed": record.guaranteed_false_reject, "normals": record.normals}
        limits = {"threshold": entry.threshold, "review_threshold": entry.review_threshold}
        say(json.dumps({**facts, **limits, "promise": promise, "bank_version": version}, ensure_ascii=False))
        return
    what = "good" if good else "defective"
    say(
        f"recorded {len(images)} {what} parts of class {class_name}, bank version {version} (`visionad bank undo` takes them back)"
    )
    if not counted:
        why = (
            "defects say nothing about good parts"
            if not good
            else "parts that were accepted have low scores for that reason"
            if chosen == "accepted"
            else "the threshold holds for scores in another precision; `visionad calibrate` makes one for this one"
        )
        say(f"they do not count towards the promise: {why}")
    if remember is not None:
        say(
            f"the class remembers {len(entry.defects or ())} defects; scores of held-out and confirmed parts were dropped, "
            "`visionad calibrate` with good images brings the promise back"
        )
    if entry.calibration is not None:
        say(promise_line(entry))


def bank_undo(
    bank: BankArg,
    to: Annotated[
        int | None,
        typer.Option("--to", min=1, metavar="VERSION", help="a version that `bank info` lists, undone ones included"),
    ] = None,
) -> None:
    """Undo the last change, or return to a version."""
    from ...bank.history import undo

    restored = undo(bank, to)
    say(f"bank version {restored.version}: {restored.change}; classes: {', '.join(restored.classes) or 'none'}")


def bank_info(bank: BankArg, as_json: JsonFlag = False) -> None:
    """List the classes, supports, thresholds and versions of a bank."""
    from ...bank.folder import restorable_versions
    from ...formats.manifest import BankManifest, as_dict, read_manifest

    manifest = read_manifest(bank, BankManifest)
    restorable = [v for v in restorable_versions(bank) if v != manifest.version]
    if as_json:
        classes = {
            n: {"shots": len(e.images), "bytes": tokens_size(bank, e), **as_dict(e)}
            for n, e in manifest.classes.items()
        }
        say(
            json.dumps(
                {
                    **as_dict(manifest),
                    "kept": restorable,
                    "model_digest": manifest.identity.digest(),
                    "classes": classes,
                },
                ensure_ascii=False,
            )
        )
        return
    say(f"version {manifest.version} ({manifest.created}): {manifest.change}")
    say(f"made with {manifest.identity.describe()}, views {', '.join(manifest.views)}")
    for name, entry in manifest.classes.items():
        threshold = f"threshold {entry.threshold:.4f}" if entry.threshold is not None else "no threshold"
        if (by_hand := entry.by_hand) is not None:
            threshold += f" by hand of {by_hand.who} ({by_hand.reason})"
        say(f"{name}: {len(entry.images)} shots, {tokens_size(bank, entry) / 1e6:.1f} MB, {threshold}")
        for line in describe(entry.roi) if entry.roi is not None else ():
            say(f"  {line}")
        for image in entry.images:
            say(f"  {image.sha256[:12]}  {image.source}")
        for defect in entry.defects or ():
            say(f"  {defect.sha256[:12]}  {defect.source}, a remembered defect")
    if restorable:
        say(f"`visionad bank undo {bank} --to VERSION` restores any of: {', '.join(map(str, restorable))}")


def tokens_size(bank: Path, entry: ClassEntry) -> int:
    """Return the bytes of the files that hold a class's tokens; a missing file counts as 0."""
    from ...bank.folder import support_file

    files = {support_file(bank, image.tokens) for image in entry.images if image.tokens is not None}
    files |= {support_file(bank, defect.tokens) for defect in entry.defects or ()}
    if entry.file is not None:
        files.add(bank / entry.file)
    return sum(path.stat().st_size for path in files if path.exists())


def bank_verify(bank: BankArg) -> None:
    """Read the whole bank and check every digest, shape and row."""
    from ...bank.history import verify

    manifest = verify(bank)
    say(f"sound: version {manifest.version}, {len(manifest.classes)} classes")


def bank_audit(
    model: ModelArg,
    bank: BankArg,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", callback=as_stored, help="[default: every class]")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Score each support against the others of its class, to find one that should not have been enrolled."""
    from ...bank.names import unknown_class_message
    from ...bank.store import Bank
    from ...formats.manifest import ModelManifest, read_manifest
    from ...scoring.preset import scoring_for
    from ...teaching.audit import leave_one_out_scores

    manifest = read_manifest(model, ModelManifest)
    opened = Bank.open(bank, manifest.identity)
    if class_name is not None and class_name not in opened.classes:
        raise VisionADError(unknown_class_message(bank, class_name, opened.classes))
    spec = scoring_for(manifest, opened.manifest.views)
    for name in opened.classes if class_name is None else [class_name]:
        scores = leave_one_out_scores(opened.classes[name], spec)
        if as_json:
            rows = [
                {
                    "sha256": s.image.sha256,
                    "source": s.image.source,
                    "score": s.score,
                    "ratio": s.ratio,
                    "odd": s.is_outlier,
                }
                for s in scores
            ]
            say(json.dumps({"class": name, "pictures": rows}, ensure_ascii=False))
            continue
        if not scores:
            say(f"{name}: fewer than three images; an outlier cannot be told from the others")
        for s in sorted(scores, key=lambda s: -s.ratio):
            say(f"{name}: {s.score:.4f}, {s.ratio:.2f} times the others' median  {s.image.source}")
        for s in scores:
            if s.is_outlier:
                say(outlier_line(bank, name, s))
