"""``visionad demo``: export, enroll, calibrate, inspect and report, with the functions of the single commands."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from PIL import Image

from ..._release import __version__
from ...bank.names import normalize_class_name
from ...errors import VisionADError
from ...formats.files import atomic_file, atomic_write
from ...formats.manifest import MANIFEST
from ...formats.model_folder import read_model
from ...images.decode import load
from ...inspector import Inspector
from ...result import FileResult
from ...teaching.calibrate import calibrate_class
from ...visualization.html import require_jinja
from ...visualization.overlay import contact_sheet, draw_overlay, save_overlay
from ...visualization.thumbnails import thumbnail
from ..evaluation.datasets.base import Dataset, Sample
from ..evaluation.datasets.masks import full_mask, load_mask
from ..evaluation.datasets.registry import open_dataset
from ..evaluation.metrics import PixelMetrics, image_metrics
from . import rendering
from .report import GOOD, UNKNOWN, Case, ClassReport, Report, mistake, write_report

BACKBONE = "efficientnet_lite0"
FALSE_REJECT = 0.05
NORMALS = math.ceil(1 / FALSE_REJECT - 1)
"""Good images besides the supports that a threshold for ``FALSE_REJECT`` needs."""
UNKNOWN_IMAGES = 3
"""Rendered images that belong to no class."""
NO_CLASS = "no class"
"""Title of these images on the page."""
CARDS = 24
"""Images of a class on the page. All images are in ``verdicts.jsonl`` and ``overlays/``."""

ExportModel = Callable[[str, Path], Mapping[str, Any]]
Progress = Callable[[str, int], AbstractContextManager[Callable[[], None]]]


def run_demo(
    out: Path,
    *,
    data: Path | None,
    shots: int,
    threads: int | None,
    export_model: ExportModel,
    say: Callable[[str], None],
    progress: Progress,
) -> str:
    """Run the demo.

    Args:
        out: folder for all output; results of an earlier run are replaced.
        data: folder in the layout of MVTec-AD (several classes or one, masks optional); ``None`` for rendered parts.
        shots: good images to enroll in each class.
        threads: CPU threads of the engine, ``None`` for all cores.
        export_model: called with a backbone's name and a folder if ``out`` has no model yet. It writes the model there and returns
            its summary with at least ``bytes`` and ``max_error``.
        say: called with each line for the user.
        progress: called with a title and a number of steps; yields the function that counts one.

    Returns:
        The closing summary.

    Raises:
        VisionADError: ``out`` holds other files, the data set is broken, or ``export_model`` fails.
    """
    require_jinja()
    _check_out(out)
    model, bank = out / "model", out / "bank"
    _export(model, export_model, say)
    if data is None:
        data = out / "parts"
        if not (data / rendering.CLASSES[-1] / "ground_truth").is_dir():
            say(f"render   {len(rendering.CLASSES)} classes of good and defective parts, with masks → {data}")
            rendering.write_dataset(data, train=shots + NORMALS)
        unknown_images = _write_unknown_images(out / "strangers")
    else:
        unknown_images = []
    dataset = open_dataset("folder", data)
    supports, normals = _split(dataset, shots)

    with Inspector.open(model, bank, threads=threads) as inspector:
        rates = _enroll_and_calibrate(inspector, supports, normals, say, progress)
    start_time = time.perf_counter()
    with Inspector.open(model, bank, threads=threads) as inspector:
        next(inspector.inspect_files([dataset.test(dataset.classes[0])[0].path]))
        first_verdict = time.perf_counter() - start_time
        outcome = _inspect(inspector, dataset, unknown_images, out, progress)

    cases = [case for group in outcome.cases.values() for case in group]
    mistakes = [case for case in (*cases, *outcome.unknown) if mistake(case) is not None]
    routed = sum(case.routed_class == case.class_name for case in cases) / len(cases)
    classes = [
        _class_report(
            name, outcome.cases[name], [read_thumbnail(p) for p in supports[name]], outcome.pixels[name], inspector
        )
        for name in dataset.classes
    ]
    aurocs = [c.image_auroc for c in classes if c.image_auroc is not None]
    median = {k: float(np.median([t[k] for t in outcome.timings])) for k in outcome.timings[0]}
    facts = [
        ("Image AUROC", f"{np.mean(aurocs):.3f}" if aurocs else "–"),
        ("Routed to the correct class", f"{routed:.1%}"),
        ("Time per image", f"{median['total']:.0f} ms"),
        ("Time to first verdict", f"{first_verdict:.1f} s"),
        ("Supports", f"{shots} per class"),
        *_environment(inspector),
    ]
    shown = [
        ClassReport(c.name, c.supports, _pick(c.cases), c.image_auroc, c.pixel_auroc, c.threshold) for c in classes
    ]
    if outcome.unknown:
        shown.append(ClassReport(NO_CLASS, [], outcome.unknown))
    write_report(
        out / "report.html",
        Report("VisionAD demo", facts, shown, _without_total(median), _notes(shown, cases, rates), _commands(out)),
    )
    row_cases = [case for entry in shown for case in _pick(entry.cases, 8)]
    with atomic_file(out / "sheet.png") as f:
        Image.fromarray(
            contact_sheet([case.overlay for case in row_cases], 8, "VisionAD demo: one class per row")
        ).save(f, "PNG")

    lines = [
        f"inspect  {len(outcome.timings)} images, {median['total']:.0f} ms each (median), "
        f"first verdict after {first_verdict:.1f} s",
        *(
            f"result   {c.name}: image AUROC {_figure(c.image_auroc)}, pixel AUROC {_figure(c.pixel_auroc)}, "
            f"{sum(mistake(k) is None for k in c.cases)} of {len(c.cases)} verdicts correct"
            for c in classes
        ),
        f"routing  {routed:.1%} of the parts were routed to their class"
        + (
            f", {sum(mistake(c) is None for c in outcome.unknown)} of {len(outcome.unknown)} images of no class were rejected"
            if unknown_images
            else ""
        ),
        f"wrong    {len(mistakes)} of {len(cases) + len(outcome.unknown)} verdicts",
        f"open     {out / 'report.html'}",
        f"         {out / 'sheet.png'}  (overlays one by one: {out / 'overlays'}, as JSON: {out / 'verdicts.jsonl'})",
    ]
    return "\n".join(lines)


def _environment(inspector: Inspector) -> list[tuple[str, str]]:
    """Return model, engine, machine and versions of the run."""
    details = ", ".join(f"{k} {v}" for k, v in inspector.engine.info.items() if k != "passed over")
    return [
        ("Backbone", inspector.manifest.identity.describe()),
        ("Engine", f"{inspector.engine.name}, {details}"),
        ("Machine", f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"),
        ("Versions", f"visionad {__version__}, ONNX Runtime {onnxruntime.__version__}, numpy {np.__version__}"),
    ]


def read_thumbnail(path: Path) -> Any:
    """Read an image as a thumbnail for the page, uint8 (h, w, 3) RGB."""
    return thumbnail(load(path), 320)


def _check_out(out: Path) -> None:
    own = {"model", "bank", "parts", "strangers", "overlays", "report.html", "sheet.png", "verdicts.jsonl"}
    if out.is_dir():
        foreign = sorted(p.name for p in out.iterdir() if p.name not in own)
        if foreign:
            raise VisionADError(f"{out} holds other files ({', '.join(foreign[:4])}); choose a new folder with --out")
    elif out.exists():
        raise VisionADError(f"{out}: expected a folder, got a file; choose a folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise VisionADError(f"cannot create the folder {out}: {exc.strerror}; choose another with --out") from None


def _export(model: Path, export_model: ExportModel, say: Callable[[str], None]) -> None:
    if (model / MANIFEST).exists():
        say(f"model    {read_model(model).identity.describe()}, from an earlier run")
        return
    summary = export_model(BACKBONE, model)
    say(
        f"export   {BACKBONE} → {model} ({summary['bytes'] / 1e6:.0f} MB, within {summary['max_error']:.1e} of PyTorch)"
    )


def _write_unknown_images(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(UNKNOWN_IMAGES)]
    for i, path in enumerate(paths):
        if not path.exists():
            with atomic_file(path) as f:
                Image.fromarray(rendering.render(rendering.UNKNOWN, i)[0]).save(f, "PNG")
    return paths


def _split(dataset: Dataset, shots: int) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    supports, normals = {}, {}
    for name in dataset.classes:
        train = dataset.train(name)
        if len(train) < shots:
            raise VisionADError(
                f"class {name!r} has {len(train)} good training images; --shots {shots} needs at least as many"
            )
        supports[name], normals[name] = train[:shots], train[shots : shots + 4 * NORMALS]
    return supports, normals


def _enroll_and_calibrate(
    inspector: Inspector,
    supports: dict[str, list[Path]],
    normals: dict[str, list[Path]],
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, float]:
    """Enroll every class, then compute the thresholds.

    Returns:
        Target false-reject rate by class; a class without a threshold is absent.
    """
    assert inspector.bank is not None
    for name in list(inspector.bank.classes):  # classes of an earlier run; the removal can be undone
        inspector.bank.remove(name)
    for name, paths in supports.items():
        with progress(f"enrolling {name}", len(paths)) as step:
            inspector.enroll_files(name, paths, calibrate=False, step=step)
        say(f"enroll   {name}: {len(paths)} good images")
    rates = {}
    for name, paths in normals.items():
        if len(paths) < 2:
            say(f"         {name}: no further good images, so there is no threshold and no verdict, only scores")
            continue
        rates[name] = max(FALSE_REJECT, 1 / (len(paths) + 1))  # the lowest rate that so few images can guarantee
        with progress(f"calibrating {name}", len(paths)) as step:
            result = calibrate_class(inspector, name, paths, rates[name], step=step, review_rate=0.0)
        say(
            f"calibrate {name}: threshold {result.threshold.value:.4f}, false rejects at most {rates[name]:.1%} on average"
        )
    return rates


@dataclass
class _Outcome:
    """Outcome of all inspections.

    Attributes:
        cases: test images by class.
        pixels: pixel metrics by class.
        unknown: images of no class.
        timings: milliseconds by stage of each image.
    """

    cases: dict[str, list[Case]]
    pixels: dict[str, PixelMetrics]
    unknown: list[Case] = field(default_factory=list)
    timings: list[dict[str, float]] = field(default_factory=list)


def _inspect(
    inspector: Inspector, dataset: Dataset, unknown_images: Sequence[Path], out: Path, progress: Progress
) -> _Outcome:
    """Inspect all test images and the images of no class, with routing. Write overlays and ``verdicts.jsonl``."""
    samples: list[Sample | None] = [s for name in dataset.classes for s in dataset.test(name)]
    paths = [*(s.path for s in samples if s is not None), *unknown_images]
    samples += [None] * len(unknown_images)
    outcome = _Outcome({name: [] for name in dataset.classes}, {name: PixelMetrics() for name in dataset.classes})
    spec, lines = inspector.manifest.identity.preprocess, []
    with progress("inspecting", len(paths)) as step:
        for sample, file in zip(samples, inspector.inspect_files(paths), strict=True):
            if file.result is None or file.rgb is None:
                raise VisionADError(f"demo: {file.error}")
            lines.append(json.dumps(file.result.to_dict(str(file.path)), ensure_ascii=False) + "\n")
            outcome.timings.append(dict(file.result.timings))
            folder = Path("strangers") if sample is None else Path(sample.class_name, sample.split, sample.defect)
            save_overlay(out / "overlays" / folder / f"{file.path.stem}.png", file.rgb, file.result)
            (outcome.unknown if sample is None else outcome.cases[sample.class_name]).append(_case(file, sample))
            if sample is not None and sample.has_mask:
                outcome.pixels[sample.class_name].add(
                    file.result.anomaly_map, load_mask(sample, spec.resize, spec.crop)
                )
            step()
    atomic_write(out / "verdicts.jsonl", "".join(lines).encode())
    return outcome


def _case(file: FileResult, sample: Sample | None) -> Case:
    result, rgb = file.result, file.rgb
    assert result is not None and rgb is not None
    drawn = draw_overlay(
        rgb, result.anomaly_map, result.geometry, result.regions, result.verdict, result.score, result.threshold,
        result.class_name, result.map_scale, caption=False,
    )  # fmt: skip
    truth = UNKNOWN if sample is None else (GOOD if sample.label == 0 else sample.defect)
    mask = None
    if sample is not None and sample.label and sample.has_mask:
        coverage = cv2.resize(full_mask(sample).astype(np.float32), (320, 320), interpolation=cv2.INTER_AREA)
        mask = np.asarray(coverage) > 0
    return Case(
        image_path=str(file.path),
        class_name=normalize_class_name(sample.class_name) if sample is not None else NO_CLASS,
        truth=truth,
        score=result.score,
        threshold=result.threshold,
        verdict=result.verdict,
        overlay=thumbnail(drawn, 320),
        image=thumbnail(rgb, 320),
        routed_class=result.class_name,
        class_margin=result.class_margin,
        mask=mask,
    )


def _class_report(
    name: str, cases: list[Case], supports: list[Any], pixels: PixelMetrics, inspector: Inspector
) -> ClassReport:
    image = image_metrics([c.score for c in cases], [int(c.truth != GOOD) for c in cases]).values["image_auroc"]
    pixel = pixels.compute().values["pixel_auroc"]
    return ClassReport(
        name,
        supports,
        cases,
        image,
        pixel,
        inspector.require_class(name).classes[normalize_class_name(name)].entry.threshold,
    )


def _pick(cases: Sequence[Case], limit: int = CARDS) -> list[Case]:
    """Select at most ``limit`` cases: mistakes first, then defects and good parts evenly."""
    mistakes = [c for c in cases if mistake(c) is not None]
    defects = [c for c in cases if mistake(c) is None and c.truth != GOOD]
    good = [c for c in cases if mistake(c) is None and c.truth == GOOD]
    room = max(0, limit - len(mistakes))
    defect_count = min(len(defects), max(room - len(good), -(-2 * room // 3)))
    return (mistakes + _evenly(defects, defect_count) + _evenly(good, room - defect_count))[:limit]


def _evenly(cases: list[Case], count: int) -> list[Case]:
    count = min(count, len(cases))
    return [cases[i * len(cases) // count] for i in range(count)]


def _without_total(timings: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in timings.items() if k != "total"}


def _notes(shown: Sequence[ClassReport], cases: Sequence[Case], rates: dict[str, float]) -> list[str]:
    count = sum(len(c.cases) for c in shown if c.name != NO_CLASS)
    notes = ["Every image was routed by its content. No class was given."]
    if rates:
        notes.append(
            "Thresholds come from good parts only (split conformal). False rejects are on average at most "
            + "; ".join(f"{name} {rate:.1%}" for name, rate in rates.items())
            + "."
        )
    if count < len(cases):
        notes.append(f"{count} of {len(cases)} images are shown: all mistakes, and an even selection of the others.")
    return notes


def _commands(out: Path) -> list[str]:
    model, bank = out / "model", out / "bank"
    return [
        f"visionad bank add {model} {bank} --class my_part good_images/",
        f"visionad calibrate {model} {bank} --class my_part more_good_images/ --max-false-reject 0.05",
        f"visionad predict {model} {bank} new_images/ --json --overlays overlays/",
        f"visionad parity {model} {bank} new_images/",
        "visionad demo --data your_mvtec_style_folder/ --out your_demo",
    ]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
