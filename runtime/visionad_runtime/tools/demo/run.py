"""``visionad demo``: export, enroll, calibrate, inspect and report, through the same functions as the single commands."""

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

from ..._version import __version__
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
from . import rendering as parts
from .report import GOOD, UNKNOWN, Case, ClassReport, Report, mistake, write_report

BACKBONE = "efficientnet_lite0"
FALSE_REJECT = 0.05
NORMALS = math.ceil(1 / FALSE_REJECT - 1)
"""Good images, besides the enrolled ones, that a threshold for ``FALSE_REJECT`` takes."""
STRANGERS = 3
CARDS = 24
"""Images a class shows on the page; all of them are in ``verdicts.jsonl`` and ``overlays/``."""

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
    """Run the demo into a folder and report its steps; return the closing summary.

    Args:
        out: folder for everything the demo writes; results of an earlier run are replaced.
        data: an MVTec-style folder (several classes, or one class's folder; masks optional), or ``None`` for rendered parts.
        shots: good images to enroll of each class.
        threads: CPU threads of the engine, ``None`` for all cores.
        export_model: called with a backbone's name and a folder if ``out`` has no model yet; writes the model there and
            returns its summary with at least ``bytes`` and ``max_error``.
        say: called with each line for the user.
        progress: called with a title and a number of steps; gives the function that counts one.

    Raises:
        VisionADError: ``out`` holds other things, the data set is broken, or what ``export_model`` raises.
    """
    require_jinja()
    _check_out(out)
    model, bank = out / "model", out / "bank"
    _export(model, export_model, say)
    if data is None:
        data = out / "parts"
        if not (data / parts.CLASSES[-1] / "ground_truth").is_dir():
            say(f"draw     {len(parts.CLASSES)} classes of parts, good and bad, with masks → {data}")
            parts.write_dataset(data, train=shots + NORMALS)
        strangers = _write_strangers(out / "strangers")
    else:
        strangers = []
    dataset = open_dataset("folder", data)
    supports, normals = _split(dataset, shots)

    with Inspector.open(model, bank, threads=threads) as inspector:
        rates = _teach(inspector, supports, normals, say, progress)
    start_time = time.perf_counter()
    with Inspector.open(model, bank, threads=threads) as inspector:
        next(inspector.inspect_files([dataset.test(dataset.classes[0])[0].path]))
        first_verdict = time.perf_counter() - start_time
        seen = _inspect(inspector, dataset, strangers, out, progress)

    stranger_cases = seen.strangers
    every = [c for group in seen.cases.values() for c in group]
    wrong = [c for c in (*every, *stranger_cases) if mistake(c) is not None]
    routed = sum(c.routed_class == c.class_name for c in every) / len(every)
    classes = [
        _class_report(name, seen.cases[name], [thumb(p) for p in supports[name]], seen.pixels[name], inspector)
        for name in dataset.classes
    ]
    aurocs = [c.image_auroc for c in classes if c.image_auroc is not None]
    median = {k: float(np.median([t[k] for t in seen.timings])) for k in seen.timings[0]}
    facts = [
        ("Image AUROC", f"{np.mean(aurocs):.3f}" if aurocs else "–"),
        ("Routed to the right class", f"{routed:.1%}"),
        ("An image takes", f"{median['total']:.0f} ms"),
        ("First verdict after", f"{first_verdict:.1f} s"),
        ("Good images shown", f"{shots} a class"),
        *_ran_on(inspector),
    ]
    shown = [
        ClassReport(c.name, c.supports, _pick(c.cases), c.image_auroc, c.pixel_auroc, c.threshold) for c in classes
    ]
    if stranger_cases:
        shown.append(ClassReport("strangers", [], stranger_cases))
    write_report(
        out / "report.html",
        Report("VisionAD demo", facts, shown, _without_total(median), _notes(shown, every, rates), _commands(out)),
    )
    picked = [c for entry in shown for c in _pick(entry.cases, 8)]
    with atomic_file(out / "sheet.png") as f:
        Image.fromarray(contact_sheet([c.overlay for c in picked], 8, "VisionAD demo: every row one class")).save(
            f, "PNG"
        )

    lines = [
        f"inspect  {len(seen.timings)} images, {median['total']:.0f} ms each (median), first verdict after {first_verdict:.1f} s",
        *(
            f"result   {c.name}: image AUROC {_figure(c.image_auroc)}, pixel AUROC {_figure(c.pixel_auroc)}, "
            f"{sum(mistake(k) is None for k in c.cases)} of {len(c.cases)} verdicts right"
            for c in classes
        ),
        f"routing  {routed:.1%} of the parts found their class"
        + (
            f", {sum(mistake(c) is None for c in stranger_cases)} of {len(stranger_cases)} strangers were told apart"
            if strangers
            else ""
        ),
        f"wrong    {len(wrong)} of {len(every) + len(stranger_cases)} verdicts",
        f"look at  {out / 'report.html'}",
        f"         {out / 'sheet.png'}  (overlays one by one: {out / 'overlays'}, as JSON: {out / 'verdicts.jsonl'})",
    ]
    return "\n".join(lines)


def _ran_on(inspector: Inspector) -> list[tuple[str, str]]:
    """Model, engine, box and versions that the figures are of."""
    details = ", ".join(f"{k} {v}" for k, v in inspector.engine.info.items() if k != "passed over")
    return [
        ("Backbone", inspector.manifest.identity.describe()),
        ("Engine", f"{inspector.engine.name}, {details}"),
        ("Machine", f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"),
        ("Versions", f"visionad {__version__}, ONNX Runtime {onnxruntime.__version__}, numpy {np.__version__}"),
    ]


def thumb(path: Path) -> Any:
    """Small RGB image of a file for the page."""
    return thumbnail(load(path), 320)


def _check_out(out: Path) -> None:
    ours = {"model", "bank", "parts", "strangers", "overlays", "report.html", "sheet.png", "verdicts.jsonl"}
    if out.is_dir():
        foreign = sorted(p.name for p in out.iterdir() if p.name not in ours)
        if foreign:
            raise VisionADError(f"{out} holds other things ({', '.join(foreign[:4])}); choose a new folder with --out")
    elif out.exists():
        raise VisionADError(f"{out} is a file; choose a folder with --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise VisionADError(f"cannot make folder {out}: {exc.strerror}; choose another with --out") from None


def _export(model: Path, export_model: ExportModel, say: Callable[[str], None]) -> None:
    if (model / MANIFEST).exists():
        say(f"model    {read_model(model).identity.describe()}, from an earlier run")
        return
    summary = export_model(BACKBONE, model)
    say(
        f"export   {BACKBONE} → {model} ({summary['bytes'] / 1e6:.0f} MB, within {summary['max_error']:.1e} of PyTorch)"
    )


def _write_strangers(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03d}.png" for i in range(STRANGERS)]
    for i, path in enumerate(paths):
        if not path.exists():
            with atomic_file(path) as f:
                Image.fromarray(parts.render(parts.UNKNOWN, i)[0]).save(f, "PNG")
    return paths


def _split(dataset: Dataset, shots: int) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    supports, normals = {}, {}
    for name in dataset.classes:
        train = dataset.train(name)
        if len(train) < shots:
            raise VisionADError(f"class {name!r} has {len(train)} good training images, --shots wants {shots}")
        supports[name], normals[name] = train[:shots], train[shots : shots + 4 * NORMALS]
    return supports, normals


def _teach(
    inspector: Inspector,
    supports: dict[str, list[Path]],
    normals: dict[str, list[Path]],
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, float]:
    """Enroll every class, then set the thresholds; returns class → the false-reject rate that its threshold keeps."""
    assert inspector.bank is not None
    for name in list(inspector.bank.classes):  # an earlier run's: made anew, undoable as any change
        inspector.bank.remove(name)
    for name, paths in supports.items():
        with progress(f"enrolling {name}", len(paths)) as step:
            inspector.enroll_files(name, paths, step=step)
        say(f"enroll    {name}: {len(paths)} good images")
    rates = {}
    for name, paths in normals.items():
        if len(paths) < 2:
            say(f"         {name}: no further good images, so no threshold and no verdict, only scores")
            continue
        rates[name] = max(FALSE_REJECT, 1 / (len(paths) + 1))  # the lowest that so few can promise
        with progress(f"calibrating {name}", len(paths)) as step:
            done = calibrate_class(inspector, name, paths, rates[name], step=step)
        say(
            f"calibrate {name}: threshold {done.threshold.value:.4f}, false rejects at most {rates[name]:.1%} on average"
        )
    return rates


@dataclass
class _Seen:
    """What inspecting everything gave: cases and pixel metrics by class, the strangers' cases, each image's timings."""

    cases: dict[str, list[Case]]
    pixels: dict[str, PixelMetrics]
    strangers: list[Case] = field(default_factory=list)
    timings: list[dict[str, float]] = field(default_factory=list)


def _inspect(inspector: Inspector, dataset: Dataset, strangers: Sequence[Path], out: Path, progress: Progress) -> _Seen:
    """Inspect all test images and strangers, routed; writes overlays and ``verdicts.jsonl``."""
    samples: list[Sample | None] = [s for name in dataset.classes for s in dataset.test(name)]
    paths = [*(s.path for s in samples if s is not None), *strangers]
    samples += [None] * len(strangers)
    seen = _Seen({name: [] for name in dataset.classes}, {name: PixelMetrics() for name in dataset.classes})
    spec, lines = inspector.manifest.identity.preprocess, []
    with progress("inspecting", len(paths)) as step:
        for sample, one in zip(samples, inspector.inspect_files(paths), strict=True):
            if one.result is None or one.rgb is None:
                raise VisionADError(f"demo: {one.error}")
            lines.append(json.dumps(one.result.to_dict(str(one.path)), ensure_ascii=False) + "\n")
            seen.timings.append(dict(one.result.timings))
            place = Path("strangers") if sample is None else Path(sample.class_name, sample.split, sample.defect)
            save_overlay(out / "overlays" / place / f"{one.path.stem}.png", one.rgb, one.result)
            (seen.strangers if sample is None else seen.cases[sample.class_name]).append(_case(one, sample))
            if sample is not None and sample.has_mask:
                seen.pixels[sample.class_name].add(one.result.anomaly_map, load_mask(sample, spec.resize, spec.crop))
            step()
    atomic_write(out / "verdicts.jsonl", "".join(lines).encode())
    return seen


def _case(one: FileResult, sample: Sample | None) -> Case:
    result, rgb = one.result, one.rgb
    assert result is not None and rgb is not None
    drawn = draw_overlay(
        rgb, result.anomaly_map, result.geometry, result.regions, result.verdict, result.score, result.threshold,
        result.class_name, result.map_scale, caption=False,
    )  # fmt: skip
    truth = UNKNOWN if sample is None else (GOOD if sample.label == 0 else sample.defect)
    mask = None
    if sample is not None and sample.label and sample.has_mask:
        share = cv2.resize(full_mask(sample).astype(np.float32), (320, 320), interpolation=cv2.INTER_AREA)
        mask = np.asarray(share) > 0
    return Case(
        image_path=str(one.path),
        class_name=normalize_class_name(sample.class_name) if sample is not None else "strangers",
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


def _pick(cases: Sequence[Case], most: int = CARDS) -> list[Case]:
    """Mistakes first, then defects and good parts evenly, at most ``most``."""
    wrong = [c for c in cases if mistake(c) is not None]
    bad = [c for c in cases if mistake(c) is None and c.truth != GOOD]
    good = [c for c in cases if mistake(c) is None and c.truth == GOOD]
    room = max(0, most - len(wrong))
    of_bad = min(len(bad), max(room - len(good), -(-2 * room // 3)))
    return (wrong + _evenly(bad, of_bad) + _evenly(good, room - of_bad))[:most]


def _evenly(cases: list[Case], count: int) -> list[Case]:
    count = min(count, len(cases))
    return [cases[i * len(cases) // count] for i in range(count)]


def _without_total(timings: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in timings.items() if k != "total"}


def _notes(shown: Sequence[ClassReport], every: Sequence[Case], rates: dict[str, float]) -> list[str]:
    count = sum(len(c.cases) for c in shown if c.name != "strangers")
    notes = ["Every image was routed to its class by its content alone; no class was given."]
    if rates:
        notes.append(
            "Thresholds come from good parts alone: split conformal, false rejects on average at most "
            + "; ".join(f"{name} {rate:.1%}" for name, rate in rates.items())
            + "."
        )
    if count < len(every):
        notes.append(f"{count} of {len(every)} images are shown: all mistakes, then an even choice of the rest.")
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
