"""VisionAD beside anomalib's AnomalyDINO and PatchCore: `python benchmarks/peers/run.py`.

The same backbone weights, support files (by the published choice), test files, threads and metric code; each method on each set
in a fresh process, one after the other in one run. anomalib lives in an environment of its own, made on the first run from
``requirements.txt`` beside this file (about 6 GB), and is never imported here: files go between.

Every figure is of the whole image, whatever a method sees of it: VisionAD's default cuts a margin off, so its map is pasted into
the full frame with the lowest value in the margin (``protocol.py``); its presets ``full-image`` and
``full-image-weighted``, which see all of it, stand
beside it.

``--weights default`` compares with what the peers would download themselves (DINOv2 ViT-S/14, WideResNet-50-2), VisionAD on the
same DINOv2 ViT-S/14. It needs the model hub and writes result files of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import common
import protocol
from safetensors.torch import save_file
from visionad_export.config import ExportConfig
from visionad_export.exporter import export_model
from visionad_ref.backbone import REGISTRY, Spec, load
from visionad_runtime.errors import VisionADError
from visionad_runtime.scoring.preset import load_preset
from visionad_runtime.teaching.sampling import sample_support_paths
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset

HERE = Path(__file__).resolve().parent
SETS = {"mvtec_bottle": "folder", "magnetic_tile": "folder", "adfi_hazelnut": "folder", "deeppcb": "deeppcb"}
SHOTS, SEEDS = (1, 4), (0, 1, 2)
CAPTION = """\
{sets}; supports by the published choice, {seeds}; the same support and test files, backbone weights, threads ({threads}) and metric
code for all. Mean ± standard deviation over the seeds, in percent (of a set of several classes, of their mean).

All figures are of the **whole image**: raw maps, before any normalisation, brought bilinearly to 256 × 256 of it and held
against masks of it. The peers see the whole image, and so do VisionAD's presets *full-image*
and *full-image-weighted*. Its default, *paper*, cuts
a margin off; its map is pasted into the full frame with 0, the lowest value, in the margin, so that a defect there counts as
missed.

*ms*: one image at a time, warm, from file to score and map, the class given; median over images, then seeds. *Peak*: resident
memory of the whole process, libraries and enrollment included (anomalib imports all its models with any of them). *Rows*: of the
memory bank. The peers run in torch, as anomalib's own engine runs them; their exports to OpenVINO or ONNX are not measured.
"""

Options = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A method with all its settings. ``export``: VisionAD's model folder; ``peer``: options of the peers' worker."""

    name: str
    backbone: str
    uses: str
    export: Options = field(default_factory=dict)
    peer: Options = field(default_factory=dict)


# --- the methods ------------------------------------------------------------------------------------------------------


def local_entries(folder: Path) -> list[Entry]:
    """Real weights that need no hub; ``folder`` takes the CNN's in timm's keys."""
    deit, lite = REGISTRY["deit_tiny_patch16_224"], REGISTRY["efficientnet_lite0"]
    deit_file = common.shared() / "weights" / deit.backbone / "model.safetensors"
    lite_file = folder / "efficientnet_lite0.safetensors"
    save_file(load(lite.backbone).backbone.net.state_dict(), lite_file)
    layers = ("blocks.2", "blocks.4")
    return [
        visionad("DeiT-Tiny/16", deit.backbone, weights=deit_file),
        visionad("DeiT-Tiny/16", deit.backbone, "full-image", weights=deit_file),
        visionad("DeiT-Tiny/16", deit.backbone, "full-image-weighted", weights=deit_file),
        anomalydino("DeiT-Tiny/16", 448, "the paper's size", in_its_place(deit, deit_file)),
        anomalydino("DeiT-Tiny/16", 256, "anomalib's 252 as a multiple of 16", in_its_place(deit, deit_file)),
        visionad("EfficientNet-Lite0", lite.backbone),
        visionad("EfficientNet-Lite0", lite.backbone, "full-image"),
        visionad("EfficientNet-Lite0", lite.backbone, "full-image-weighted"),
        patchcore("EfficientNet-Lite0", "coreset 10 %", {"layers": layers}, in_its_place(lite, lite_file)),
        patchcore(
            "EfficientNet-Lite0",
            "all patches",
            {"layers": layers, "coreset_sampling_ratio": 1.0},
            in_its_place(lite, lite_file),
        ),
    ]


def default_entries() -> list[Entry]:
    """The peers' own weights, from the hub."""
    return [
        visionad("DINOv2 ViT-S/14", "dinov2_vits14"),
        visionad("DINOv2 ViT-S/14", "dinov2_vits14", "full-image"),
        visionad("DINOv2 ViT-S/14", "dinov2_vits14", "full-image-weighted"),
        anomalydino("DINOv2 ViT-S/14", 448, "the paper's size", {}),
        anomalydino("DINOv2 ViT-S/14", None, "anomalib's size", {}),
        patchcore("WideResNet-50-2", "coreset 10 %", {}, {}),
        patchcore("WideResNet-50-2", "all patches", {"coreset_sampling_ratio": 1.0}, {}),
    ]


def visionad(label: str, backbone: str, preset: str = "paper", **settings: Any) -> Entry:
    """VisionAD by a preset (``docs/guides/presets.md``)."""
    chosen = ExportConfig(backbone=backbone, preset=preset).resolved()
    spec = REGISTRY[backbone]
    tokens = "mean of blocks" if spec.kind == "vit" else "stages"
    uses = f"each support in 6 poses a view, {tokens} {spec.layers[0]} to {spec.layers[-1]}, exact search"
    return Entry(
        f"VisionAD, {preset}",
        label,
        f"preset {preset}: {load_preset(preset).about}; {uses}",
        export={"backbone": backbone, **chosen.arguments(), **settings},
    )


def anomalydino(label: str, size: int | None, why: str, place: Options) -> Entry:
    """anomalib's AnomalyDINO with its defaults, but for the size of the image (None: its default)."""
    uses = f"anomalib's defaults: last block after the norm, 1 neighbour, no masking, no coreset; {why}"
    options = {"method": "anomalydino", "arguments": {}, "image_size": size, **place}
    return Entry(f"AnomalyDINO, {size or 252} px", label, uses, peer=options)


def patchcore(label: str, what: str, arguments: Options, place: Options) -> Entry:
    """anomalib's PatchCore with its defaults, but for the coreset's ratio and the names of another backbone's layers."""
    strides = "blocks of stride 8 and 16, as layer2 and layer3 are" if "layers" in arguments else "layer2 and layer3"
    uses = f"anomalib's defaults: {strides}, 9 neighbours, 256 pixels; {what}"
    options = {"method": "patchcore", "arguments": arguments, "image_size": None, **place}
    return Entry(f"PatchCore, {what}", label, uses, peer=options)


def in_its_place(spec: Spec, weights: Path) -> Options:
    """A backbone for the peers' worker to use, with the mean and deviation its weights were trained with."""
    return {
        "backbone": spec.timm_name.split(".")[0],
        "weights": str(weights),
        "mean": spec.mean,
        "std": spec.std,
    }


# --- running them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """Where things are during a run."""

    entries: Sequence[Entry]
    models: Path
    peers: Path
    threads: int

    def export(self) -> None:
        """Make VisionAD's model folders; fails early where weights are missing or the hub is out of reach."""
        for number, entry in enumerate(self.entries):
            if entry.export:
                export_model(out=self.models / str(number), **entry.export)

    def rows(self, name: str, shots: int, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
        """All methods on one set: one row a method, class and seed."""
        dataset = open_dataset(SETS[name], common.shared() / "data" / name)
        masks = {part: protocol.masks_of(dataset.test(part)) for part in dataset.classes}
        units = [
            (part, seed, sample_support_paths(dataset.train(part), shots, seed))
            for part in dataset.classes
            for seed in seeds
        ]
        for number, entry in enumerate(self.entries):
            job = [
                {"supports": [str(p) for p in supports], "pictures": [str(s.path) for s in dataset.test(part)]}
                for part, _, supports in units
            ]
            with tempfile.TemporaryDirectory() as folder:
                done = self._process(number, entry, job, Path(folder))
                facts = done["facts"]
                side = facts["input"][0]
                for i, ((part, seed, supports), unit) in enumerate(zip(units, done.pop("units"), strict=True)):
                    scores, maps = unit.pop("scores"), _maps(Path(folder) / f"{i}.npy", len(dataset.test(part)))
                    yield {
                        "set": name,
                        "class": part,
                        "method": entry.name,
                        "backbone": entry.backbone,
                        "shots": shots,
                        "seed": seed,
                        "supports": [p.name for p in supports],
                        **protocol.measure(
                            scores, maps, dataset.test(part), masks[part], facts.get("resize", side), side
                        ),
                        **unit,
                        **done,
                    }

    def _process(self, number: int, entry: Entry, units: list[Options], folder: Path) -> dict[str, Any]:
        """Do a job in a fresh process of the environment the method lives in."""
        options = {"model": str(self.models / str(number))} if entry.export else entry.peer
        (folder / "job.json").write_text(json.dumps({"options": options, "threads": self.threads, "units": units}))
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        environment = {**os.environ, **limits}
        if entry.export:
            command = [sys.executable, str(HERE / "visionad_worker.py")]
        else:
            command = [str(self.peers / "bin" / "python"), str(HERE / "anomalib_worker.py")]
            environment.pop("PYTHONPATH", None)
        done = subprocess.run([*command, str(folder)], capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{done.stderr}\n{entry.name} on {entry.backbone} failed, see above")
        return dict(json.loads((folder / "done.json").read_text()))


def _maps(path: Path, count: int) -> Iterator[NDArray[np.float32]]:
    with open(path, "rb") as file:
        for _ in range(count):
            yield np.load(file)


def peers_environment(folder: Path) -> None:
    """Make the peers' virtual environment, unless it is there with these very requirements."""
    requirements, stamp = HERE / "requirements.txt", folder / "requirements.txt"
    if stamp.is_file() and stamp.read_bytes() == requirements.read_bytes():
        return
    print(f"making {folder} from {requirements.relative_to(common.ROOT)}: about 6 GB, some minutes", flush=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "--requirement", str(requirements)]):
        if subprocess.run(command).returncode:
            raise SystemExit(f"{folder} could not be made, see above; the command was {' '.join(command)}")
    stamp.write_bytes(requirements.read_bytes())


# --- the table --------------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each set, number of shots and method, in the order they were run."""
    lines = [
        "| set | shots | method | backbone | input | image AUROC | pixel AUROC | AUPRO | ms | peak MB | rows |",
        "|" + "---|" * 5 + "---:|" * 6,
    ]
    for key, group in groupby(rows, lambda r: (r["set"], r["shots"], r["method"], r["backbone"])):
        rows_of_key = list(group)
        cells = [*map(str, key), _input(rows_of_key[0]["facts"]), *(_spread(rows_of_key, m) for m in protocol.METRICS)]
        cells += [f"{statistics.median(r['ms'] for r in rows_of_key):.0f}", f"{rows_of_key[0]['peak_rss_mb']:.0f}"]
        lines.append(f"| {' | '.join([*cells, str(rows_of_key[0]['bank_rows'])])} |")
    return "\n".join(lines)


def _input(facts: dict[str, Any]) -> str:
    side = facts["input"][0]
    views = f"{len(facts['views'])} × " if "views" in facts else ""
    return f"{views}{side}²" + (f" of {facts['resize']}²" if facts.get("resize", side) != side else "")


def _spread(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """Mean and deviation over the seeds of the mean over the classes, in percent."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row[metric] is None:
            return "–"
        by_seed.setdefault(row["seed"], []).append(100 * row[metric])
    means = [statistics.fmean(values) for values in by_seed.values()]
    return f"{statistics.fmean(means):.1f}" + (f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else "")


def page(entries: Sequence[Entry], rows: Sequence[dict[str, Any]], environment: dict[str, Any], threads: int) -> str:
    """The whole Markdown file."""
    sets = ", ".join(dict.fromkeys(r["set"] for r in rows))
    caption = CAPTION.format(sets=sets, seeds="seeds " + ", ".join(map(str, SEEDS)), threads=threads)
    notes = [f"| {e.name} | {e.backbone} | {e.uses} |" for e in entries]
    made = f"{environment['date']}, {environment['cpu']}, {environment['cores']} cores, commit {environment['commit']}"
    versions = {name: text for r in rows for name, text in r["versions"].items() if name in ("anomalib", "onnxruntime")}
    made += "".join(f", {name} {version}" for name, version in versions.items())
    shots = " ".join(map(str, dict.fromkeys(r["shots"] for r in rows)))
    command = f"python benchmarks/peers/run.py --shots {shots}"
    return "\n".join(
        (
            f"# VisionAD beside its peers\n\n`{command}`, {made}. Raw figures in the JSON file beside.\n",
            caption,
            table(rows),
            "\n| method | backbone | what it uses |\n|---|---|---|",
            *notes,
            "",
        )
    )


def main() -> None:
    """Measure, print the table, write ``benchmarks/results/peers.json`` and ``.md`` (unless ``--quick``)."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--weights", choices=("local", "default"), default="local", help="whose weights [local]")
    options.add_argument("--venv", type=Path, default=common.ROOT / ".venv-peers", help="the peers' environment")
    options.add_argument(
        "--sets", nargs="+", choices=SETS, default=list(SETS)[:3], metavar="NAME", help=", ".join(SETS)
    )
    options.add_argument("--shots", nargs="+", type=int, default=list(SHOTS), metavar="K", help="supports [1 4]")
    options.add_argument("--threads", type=int, default=2, help="of every method [2]")
    options.add_argument("--quick", action="store_true", help="one set, one shot, one seed; prints, writes nothing")
    args = options.parse_args()
    peers_environment(args.venv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        entries = default_entries() if args.weights == "default" else local_entries(Path(folder))
        bench = Bench(entries, Path(folder) / "models", args.venv.absolute(), args.threads)
        try:
            bench.export()
            for name in args.sets[:1] if args.quick else args.sets:
                for shots in args.shots[:1] if args.quick else args.shots:
                    for row in bench.rows(name, shots, SEEDS[:1] if args.quick else SEEDS):
                        rows.append(row)
                        print(
                            f"{name}, {shots} shots, seed {row['seed']}: {row['method']}, {row['ms']:.0f} ms",
                            flush=True,
                        )
        except VisionADError as exc:
            hub = "--weights default needs the model hub: " if args.weights == "default" else ""
            raise SystemExit(f"{hub}{exc}") from None
    print(table(rows))
    if args.quick:
        return
    file = "peers" if args.weights == "local" else "peers_default_weights"
    peers = next(r for r in rows if "anomalib" in r["versions"])
    facts_by_method = {(r["method"], r["backbone"]): r["facts"] for r in rows}
    facts = {
        "peers_environment": {"python": peers["python"], "versions": peers["versions"]},
        "threads": args.threads,
        "weights": args.weights,
        "methods": [
            {"method": e.name, "backbone": e.backbone, "uses": e.uses, **facts_by_method[e.name, e.backbone]}
            for e in entries
        ],
        "rows": [{k: v for k, v in r.items() if k not in ("python", "versions", "facts")} for r in rows],
    }
    path = common.write(file, facts)
    path.with_suffix(".md").write_text(page(entries, rows, common.environment(), args.threads))
    print(f"written to {path.relative_to(common.ROOT)} and {path.with_suffix('.md').name}")


if __name__ == "__main__":
    main()
