"""What every benchmark needs: models with random weights, where the numbers were made, where they go."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("numpy", "onnxruntime", "opencv-python-headless", "pillow", "torch", "timm", "scikit-learn", "faiss-cpu")


def shared() -> Path:
    """Real pictures and weights beside the project (or at VISIONAD_SHARED)."""
    place = Path(os.environ.get("VISIONAD_SHARED", ROOT.parent / "shared"))
    if not (place / "data").is_dir():
        raise SystemExit(f"no data at {place}: set VISIONAD_SHARED to the folder that holds data/ and weights/")
    return place


def export_random(backbone: str, out: Path, seed: int = 0) -> Path:
    """Model folder of a backbone with random weights: as fast as the real one, which may not be at hand."""
    import timm
    import torch
    from safetensors.torch import save_file
    from visionad_export.exporter import export_model

    from visionad_ref import REGISTRY

    torch.manual_seed(seed)
    weights = out.with_suffix(".safetensors")
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(timm.create_model(REGISTRY[backbone].timm_name, pretrained=False, num_classes=0).state_dict(), weights)
    export_model(backbone, out, weights=weights)
    return out


def environment() -> dict[str, Any]:
    """Hardware, versions and commit."""
    cpu = next(
        (v.split(":")[1].strip() for v in _lines("/proc/cpuinfo") if v.startswith("model name")), platform.machine()
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {p: v for p in PACKAGES if (v := _version(p))},
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip(),
    }


def write(name: str, result: dict[str, Any]) -> Path:
    """Commit-ready result file ``benchmarks/results/NAME.json``."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), **result}, indent=1) + "\n")
    return path


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
