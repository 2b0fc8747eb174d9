"""Routing per image on real data: `python benchmarks/routing.py`. The evidence behind the limits in `routing.py`.

Banks of 1 to 4 classes out of four data sets, 1 or 4 supports a class. Images of enrolled classes should be routed to
them, images of classes that are not enrolled, and synthetic ones, should be told to be strangers.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import common
import numpy as np
from visionad_runtime.bank.memory_bank import ClassBank, SupportTokens
from visionad_runtime.bank.routing import THRESHOLDS, Router
from visionad_runtime.formats.manifest import ClassEntry
from visionad_runtime.formats.model_folder import read_model
from visionad_runtime.images.decode import load
from visionad_runtime.pipeline.opening import open_engine
from visionad_runtime.pipeline.self_test import read_golden
from visionad_runtime.preprocess import prepare
from visionad_runtime.tools.demo.rendering import CLASSES, UNKNOWN, render

BACKBONES = (("deit_tiny_patch16_224", "fused"), ("deit_tiny_patch16_224", "final"), ("efficientnet_lite0", "fused"))
RATES = ("right", "taken_for_another", "own_unknown", "other_set_unknown", "synthetic_unknown")


def images(data: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """Data set → (candidates for support, images to route), each sorted."""
    images_by_set = {
        name: (sorted(data.glob(f"{folder}/train/good/*")), sorted(data.glob(f"{folder}/test/*/*")))
        for name, folder in (("bottle", "mvtec_bottle"), ("hazelnut", "adfi_hazelnut"), ("tile", "magnetic_tile"))
    }
    boards = data / "deeppcb/PCBData"
    return {**images_by_set, "board": (sorted(boards.glob("*/*/*_temp.jpg")), sorted(boards.glob("*/*/*_test.jpg")))}


def strangers() -> list[np.ndarray]:
    """Images of nothing in the data sets, uint8 RGB."""
    rng = np.random.default_rng(0)
    flat = [np.full((300, 300, 3), v, np.uint8) for v in (0, 128, 255)]
    ramp = np.broadcast_to(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (300, 400, 3)).copy()
    checker = np.repeat(((np.indices((320, 320)).sum(0) // 32) % 2 * 255).astype(np.uint8)[..., None], 3, 2)
    drawn = [render(name, 1)[0] for name in (*CLASSES, UNKNOWN) if name != "pcb"]  # a drawn board is a board
    return [*flat, ramp, checker, rng.integers(0, 256, (300, 400, 3), dtype=np.uint8), *drawn]


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/routing.json``."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--every", type=int, default=1, help="use every n-th image")
    args = options.parse_args()
    from visionad_export.exporter import export_model

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for backbone, kind in BACKBONES:
            model = Path(folder) / f"{backbone}-{kind}"
            weights = common.shared() / "weights" / backbone / "model.safetensors"
            export_model(backbone, model, weights=weights if weights.exists() else None, class_token=kind)
            rows += measure(model, f"{backbone}, {kind} class token", args.every)
    print(
        "| backbone | classes | shots | right | taken for another | own, unknown | stranger, unknown: other sets | synthetic |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        rates = " | ".join("–" if r[k] is None else f"{r[k]:.1%}" for k in RATES)
        print(f"| {r['backbone']} | {r['classes']} | {r['shots']} | {rates} |")
    print(f"written to {common.write('routing', {'rows': rows}).relative_to(common.ROOT)}")


def measure(model: Path, label: str, every: int) -> list[dict[str, object]]:
    """Rates over all banks of each size."""
    manifest = read_model(model)
    engine, spec = open_engine(model, manifest), manifest.identity.preprocess
    stranger, limits = read_golden(model)["class_token"], THRESHOLDS[manifest.identity.class_token]

    def token(rgb: np.ndarray) -> np.ndarray:
        cls = engine.encode(prepare(rgb, spec)[None]).cls
        assert cls is not None
        return cls[0]

    sets = images(common.shared() / "data")
    supports = {name: [token(load(p)) for p in train[:4]] for name, (train, _) in sets.items()}
    queries = {name: [token(load(p)) for p in (train[4:] + test)[::every]] for name, (train, test) in sets.items()}
    synthetic = [token(rgb) for rgb in strangers()]
    rows = []
    for shots, size in itertools.product((1, 4), range(1, 5)):
        counts = {name: [0, 0] for name in RATES}
        for names in itertools.combinations(sets, size):
            router = Router({n: _class(n, supports[n][:shots]) for n in names}, stranger, limits)
            for name, tokens in queries.items():
                for t in tokens:
                    found = router.route(t)
                    if name in names:
                        _count(counts["right"], found.is_known and found.nearest == name)
                        _count(counts["taken_for_another"], found.is_known and found.nearest != name)
                        _count(counts["own_unknown"], not found.is_known)
                    else:
                        _count(counts["other_set_unknown"], not found.is_known)
            for t in synthetic:
                _count(counts["synthetic_unknown"], not router.route(t).is_known)
        rates = {k: hits / total if total else None for k, (hits, total) in counts.items()}
        rows.append({"backbone": label, "classes": size, "shots": shots, **rates})
    return rows


def _class(name: str, tokens: list[np.ndarray]) -> ClassBank:
    no_patches = np.zeros((1, 1, 1, 1), np.float32)
    supports = [SupportTokens((no_patches,), token[None]) for token in tokens]
    return ClassBank(name, ClassEntry(images=()), ("e",), supports)


def _count(pair: list[int], hit: bool) -> None:
    pair[0] += hit
    pair[1] += 1


if __name__ == "__main__":
    main()
