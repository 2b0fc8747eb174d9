"""Accuracy on real images, runtime and reference side by side: `python benchmarks/accuracy.py`.

One shot (the first file by name), the paper's three views, each data set by itself. The two engines share no code from file to
score, so equal tables show that the runtime computes the method.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import common
from visionad_export.exporter import export_model
from visionad_export.reference.predictor import ReferencePredictor
from visionad_runtime.tools.evaluation.datasets.registry import open_dataset
from visionad_runtime.tools.evaluation.protocol import evaluate
from visionad_runtime.tools.evaluation.published import METRICS

SETS = (("folder", "mvtec_bottle"), ("folder", "adfi_hazelnut"), ("folder", "magnetic_tile"))
BACKBONE = "deit_tiny_patch16_224"


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/accuracy.json``."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    shared, rows = common.shared(), []
    weights = shared / "weights" / BACKBONE / "model.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        export_model(BACKBONE, model, weights=weights)
        reference = partial(ReferencePredictor, model, weights=weights)
        for layout, name in SETS:
            dataset = open_dataset(layout, shared / "data" / name)
            results = {
                engine: evaluate(model, dataset, 1, open_predictor=open_predictor).to_dict()["results"][0]
                for engine, open_predictor in (("runtime", None), ("reference", reference))
            }
            for engine, result in results.items():
                rows.append(
                    {"set": name, "engine": engine, "images": result["images"], **{m: result[m] for m in METRICS}}
                )
            pairs = [(results["runtime"][m], results["reference"][m]) for m in METRICS]
            rows[-2]["largest_difference"] = max(abs(a - b) for a, b in pairs if a is not None and b is not None)
            print(f"{name}: runtime and reference differ by at most {rows[-2]['largest_difference']:.1e}", flush=True)
    print("| set | images | " + " | ".join(METRICS) + " |\n|" + "---|" * (len(METRICS) + 2))
    for row in rows:
        if row["engine"] == "runtime":
            figures = " | ".join("–" if row[m] is None else f"{row[m]:.3f}" for m in METRICS)
            print(f"| {row['set']} | {row['images']} | {figures} |")
    print(
        f"written to {common.write('accuracy', {'backbone': BACKBONE, 'shots': 1, 'rows': rows}).relative_to(common.ROOT)}"
    )


if __name__ == "__main__":
    main()
