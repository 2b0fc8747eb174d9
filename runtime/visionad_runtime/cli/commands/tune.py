"""``visionad tune``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ...errors import VisionADError
from ..console import complain, say
from ..options import BitDepth, JsonFlag, ThreadsOption
from ..outputs import check_output_folder

if TYPE_CHECKING:
    from ...formats.manifest import Precision
    from ...tools.qualification.choice import Measured
    from ...tools.qualification.inputs import Labeled

PRESETS = "paper,full-image,full-image-weighted"


def tune(
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="train/good, test/good and test/DEFECT in the layout of MVTec AD"),
    ] = None,
    good: Annotated[Path | None, typer.Option(metavar="DIR", help="images of good parts")] = None,
    bad: Annotated[Path | None, typer.Option(metavar="DIR", help="images of defects")] = None,
    budget_ms: Annotated[
        float | None, typer.Option(min=0.1, metavar="N", help="highest median latency, file to verdict")
    ] = None,
    backbones: Annotated[
        str,
        typer.Option(
            metavar="NAME[=WEIGHTS],…", help="backbones to export, or model folders that were exported before"
        ),
    ] = "dinov2_vits14_reg",
    presets: Annotated[str, typer.Option(metavar="NAME,…", help="presets to try")] = PRESETS,
    backends: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="backends to try [default: those that run here]")
    ] = None,
    precisions: Annotated[
        str | None, typer.Option(metavar="P,…", help="precisions to try [default: the model's, and bf16 where offered]")
    ] = None,
    shots: Annotated[str, typer.Option(metavar="N,…", help="numbers of good parts to enroll")] = "1,2,4,8",
    tiles: Annotated[bool, typer.Option(help="try tiles on elongated images")] = True,
    images: Annotated[
        int, typer.Option(min=2, metavar="N", help="good images, and as many bad ones, to measure on")
    ] = 24,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder of the report and of the exported models")] = Path(
        "tune"
    ),
    seed: Annotated[int, typer.Option(min=0, help="seed of the choice of images")] = 0,
    threads: ThreadsOption = None,
    bit_depth: BitDepth = None,
    as_json: JsonFlag = False,
) -> int:
    """Measure models, presets, backends, precisions, shots and tiles on your images here, and recommend a set-up.

    The report is tune.html and tune.json in --out. A stopped run resumes. Exit status 1 if nothing stays within --budget-ms.
    """
    from ...formats.files import atomic_write_together
    from ...tools.qualification.tune import Choices, choose_images
    from ...tools.qualification.tune import tune as run
    from ...tools.qualification.tune_page import tune_page
    from ...visualization.html import require_jinja

    require_jinja()
    check_output_folder("--out", out)
    train, test_good, bads = _read(root, good, bad, bit_depth)
    asked = [_precision(name) for name in (_names("--precisions", precisions) if precisions else ())]
    preset_names = _names("--presets", presets)
    choices = Choices(
        models={},
        presets=preset_names,
        backends=_names("--backends", backends) if backends else (),
        precisions=asked,
        shots=_shots(shots),
        tiles=tiles,
        budget_ms=budget_ms,
        max_images=images,
        seed=seed,
        threads=threads,
        bit_depth=bit_depth,
    )
    chosen = choose_images(train, test_good, bads, choices)
    models: dict[str, Path] = {}
    for text in _names("--backbones", backbones):
        models |= _models(text, preset_names, out / "models")

    def step(done: int, total: int, measured: Measured, left: float) -> None:
        figures = [] if measured.latency_ms is None else [f"{measured.latency_ms:.0f} ms"]
        figures += [] if measured.auroc is None else [f"AUROC {measured.auroc:.3f}"]
        figures += [] if measured.status == "measured" else [measured.status]
        remaining = "" if done == total else f"; about {max(1, round(left / 60))} min left"
        complain(f"{done} of {total}: {measured.candidate.name()}: {', '.join(figures)}{remaining}")

    report = run(_with_models(choices, models), chosen, out, step)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write_together({out / "tune.html": tune_page(report).encode(), out / "tune.json": text.encode()})
    if as_json:
        say(json.dumps(report, ensure_ascii=False))
    else:
        for note in report["notes"]:
            complain(note)
        say(report["sentence"])
        for command in report["commands"]:
            say(command)
        say(f"written to {out / 'tune.html'} and {out / 'tune.json'}")
    return 0 if report["recommended"] is not None else 1


def _with_models(choices: Any, models: dict[str, Path]) -> Any:
    from dataclasses import replace

    return replace(choices, models=models)


def _read(
    root: Path | None, good: Path | None, bad: Path | None, bit_depth: int | None
) -> tuple[Sequence[Labeled], Sequence[Labeled], Sequence[Labeled]]:
    """Return good images to enroll from, further good images, and bad ones."""
    from ...tools.qualification.inputs import read_inputs

    notes: list[str] = []
    if (root is None) == (good is None):
        raise VisionADError("expected --root DIR, or --good DIR and optionally --bad DIR")
    if root is not None:
        if bad is not None:
            raise VisionADError("--bad: --root holds the bad images in test/; leave out --bad, or give --good instead")
        train, test = root / "train" / "good", root / "test"
        if not train.is_dir():
            raise VisionADError(f"--root {root}: expected train/good with good images; give --good DIR otherwise")
        trained = read_inputs(train, bit_depth=bit_depth, note=notes.append)
        tested = (
            read_inputs(test / "good", test, bit_depth=bit_depth, note=notes.append)
            if (test / "good").is_dir()
            else None
        )
        found = (trained.good, tested.good if tested else (), tested.bad if tested else ())
    else:
        assert good is not None
        inputs = read_inputs(good, bad, bit_depth=bit_depth, note=notes.append)
        found = (inputs.good, (), inputs.bad)
    for line in notes:
        complain(line)
    return found


def _models(text: str, presets: Sequence[str], folder: Path) -> dict[str, Path]:
    """Return model folders by name: the one that is given, or a backbone exported once for each image size of the presets."""
    from ...formats.manifest import MANIFEST

    if (Path(text) / MANIFEST).is_file():
        return {Path(text).name: Path(text)}
    backbone, _, weights = text.partition("=")
    try:
        from visionad_export.config import ExportConfig
        from visionad_export.exporter import export_model
    except ModuleNotFoundError as exc:
        raise VisionADError(
            f"--backbones {text}: no model folder, and exporting one needs {exc.name}: pip install 'visionad[export]'"
        ) from None
    sizes: dict[tuple[int | None, int | None], Any] = {}
    for preset in presets:
        settings = ExportConfig(backbone=backbone, preset=preset, weights=Path(weights) if weights else None).resolved()
        size = settings.resize, settings.crop
        if size not in sizes or len(settings.views or ()) > len(sizes[size].views or ()):
            sizes[size] = settings
    models = {}
    for (resize, crop), settings in sizes.items():
        name = f"{backbone.replace(':', '-').replace('/', '-')}-{resize}-{crop}"
        target = folder / name
        if not (target / MANIFEST).is_file():
            complain(f"exporting {name}")
            folder.mkdir(parents=True, exist_ok=True)
            export_model(backbone, target, **settings.arguments())
        models[name] = target
    return models


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise VisionADError(f"{option} {text!r}: expected names separated by commas")
    return list(dict.fromkeys(names))


def _precision(name: str) -> Precision:
    from ...formats.manifest import Precision, parse_precision

    parsed = parse_precision(name)
    if parsed is None:
        raise VisionADError(f"--precisions {name}: expected {', '.join(get_args(Precision))}")
    return parsed


def _shots(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise VisionADError(f"--shots {text}: expected numbers from 1 separated by commas, e.g. 1,2,4")
    return numbers
