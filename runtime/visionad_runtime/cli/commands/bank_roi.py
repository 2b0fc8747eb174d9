"""``visionad bank roi`` and ``visionad bank rebuild``: what is inspected of a class, and the same parts for another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from ...errors import VisionADError
from ..console import progress, say
from ..options import (
    BackendOption,
    BankArg,
    ClassOption,
    DeviceOption,
    JsonFlag,
    ModelArg,
    PrecisionOption,
    PresetOption,
    ThreadsOption,
    ViewsOption,
)
from ..results import require_bank
from ..rois import IgnoreOption, RoiOption, describe, parse_rois, read_spec
from .bank_threshold import promise_line, tell_if_dropped, tell_if_replaced


def bank_roi(
    model: ModelArg,
    bank: BankArg,
    class_name: ClassOption,
    roi: RoiOption = None,
    ignore: IgnoreOption = None,
    whole: Annotated[bool, typer.Option("--whole", help="inspect the whole image again")] = False,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what is inspected of a class, or change it: the options replace all that was set before."""
    from ...bank.names import unknown_class_message
    from ...bank.store import Bank
    from ...formats.manifest import BankManifest, ModelManifest, as_dict, read_manifest
    from ...inspector import Inspector
    from ...teaching.rebuild import change_roi, image_size

    changes = bool(roi) or ignore is not None or whole
    if whole and (roi or ignore is not None):
        raise VisionADError("--whole inspects whole images; leave it out, or leave --roi and --ignore out")
    regions = parse_rois(roi)
    manifest = read_manifest(bank, BankManifest)
    if class_name not in manifest.classes:
        raise VisionADError(unknown_class_message(bank, class_name, manifest.classes))
    if changes:
        identity = read_manifest(model, ModelManifest).identity
        size = image_size(Bank.open(bank, identity, lazy=True), class_name)
        spec, mask = read_spec(regions, ignore, size)
        with Inspector.open(model, bank, backend=backend, threads=threads, lazy_bank=True) as inspector:
            count = len(manifest.classes[class_name].images)
            with progress(f"encoding {class_name}", count) as step:
                change_roi(inspector, class_name, spec, mask, step)
        before, manifest = manifest.classes[class_name], read_manifest(bank, BankManifest)
        tell_if_replaced(class_name, before, manifest.classes.get(class_name))
        tell_if_dropped(class_name, before, manifest.classes[class_name])
    entry = manifest.classes[class_name]
    if as_json:
        shown = None if entry.roi is None else as_dict(entry.roi)
        say(json.dumps({"class": class_name, "roi": shown, "bank_version": manifest.version}, ensure_ascii=False))
        return
    for line in describe(entry.roi):
        say(f"{class_name}: {line}")
    if changes:
        threshold = "no threshold" if entry.threshold is None else f"threshold {entry.threshold:.4f}"
        say(f"{len(entry.images)} images encoded anew, {threshold}, bank version {manifest.version}")
        say(promise_line(entry))


def bank_rebuild(
    model: ModelArg,
    bank: BankArg,
    new: Annotated[Path, typer.Argument(metavar="NEWBANK", help="folder of the new bank")],
    backend: BackendOption = "auto",
    precision: PrecisionOption = None,
    device: DeviceOption = None,
    preset: PresetOption = None,
    views: ViewsOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Enroll the same parts into a new bank, for another model or preset. Thresholds are computed anew from the supports."""
    from ...bank.store import Bank
    from ...inspector import Inspector
    from ...teaching.rebuild import find_images, rebuild_bank

    require_bank(bank)
    source = Bank.open(bank, lazy=True)
    for held in source.classes.values():
        find_images(bank, held)  # reports a missing image before the model is loaded
    if new.exists() and (not new.is_dir() or any(new.iterdir())):
        raise VisionADError(f"{new}: expected a new or empty folder for the new bank; choose another")
    count = sum(len(held.entry.images) for held in source.classes.values())
    with (
        _whole_or_nothing(new),
        Inspector.open(
            model, new, backend=backend, precision=precision, device=device, threads=threads, preset=preset, views=views
        ) as inspector,
    ):
        with progress("encoding", count) as step:
            rebuild_bank(source, inspector, step)
        assert inspector.bank is not None
        made = inspector.bank.manifest
    for name, entry in made.classes.items():
        threshold = "no threshold" if entry.threshold is None else f"threshold {entry.threshold:.4f}"
        say(f"{name}: {len(entry.images)} images, {threshold}")
        say(f"{name}: {promise_line(entry)}")
        tell_if_replaced(name, source.classes[name].entry, entry)
        tell_if_dropped(name, source.classes[name].entry, entry)
    say(f"{len(made.classes)} classes of {bank} in {new}, made with {made.identity.describe()}")


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[None]:
    """Empty a folder that was new or empty if what fills it fails: a part of a bank looks sound, and keeps the next try out."""
    existed = folder.is_dir()
    try:
        yield
    except BaseException:
        for one in folder.iterdir() if folder.is_dir() else ():
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one, ignore_errors=True)
            else:
                one.unlink(missing_ok=True)
        if not existed and folder.is_dir():
            folder.rmdir()
        raise
