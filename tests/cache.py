"""What is costly to make and depends on little, such as exported models: made once and kept between runs.

Entries lie below ``$XDG_CACHE_HOME/visionad-tests`` (``~/.cache`` without it). The key is the entry's name, the content of every
module of the project that the exporter imports, directly or not, and the versions of the libraries that write models. Entries that
nobody used for two weeks are removed. Delete the folder at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "visionad-tests"
LIBRARIES = ("torch", "timm", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy", "pillow", "safetensors")
PROJECT = ("visionad_export", "visionad_ref", "visionad_runtime")
KEPT_SECONDS = 14 * 24 * 3600


def get(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of a cache entry; make it first where it is missing.

    Args:
        name: Of the entry, with every setting that ``make`` depends on.
        make: Fills an empty folder. Runs in one process only, however many ask at once.

    Returns:
        The folder. It is shared with other processes, so read only.
    """
    folder = FOLDER / hashlib.sha256(f"{inputs()} {name}".encode()).hexdigest()[:32]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _remove_unused()
            with tempfile.TemporaryDirectory(dir=FOLDER, prefix="part-") as place:
                part = Path(place) / "entry"
                part.mkdir()
                make(part)
                part.rename(folder)  # complete or not there
        os.utime(folder)
    return folder


@cache
def inputs() -> str:
    """Return the digest of the sources and libraries that an exported model depends on."""
    digest = hashlib.sha256(sys.version.encode())
    for library in LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    for path in _sources("visionad_export.exporter"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return "none"


def _sources(module: str) -> list[Path]:
    """Return the files of a module and of all modules of the project that it imports, directly or not."""
    import grimp

    graph = grimp.build_graph(*PROJECT, cache_dir=None)
    specs = [find_spec(name) for name in sorted({module, *graph.find_upstream_modules(module)})]
    return [Path(spec.origin) for spec in specs if spec and spec.origin]


def _remove_unused() -> None:
    for folder in FOLDER.iterdir():
        try:
            unused = time.time() - folder.stat().st_mtime > KEPT_SECONDS
        except FileNotFoundError:  # another process was first
            continue
        if unused and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def export_tiny(weights: Path, **changes: Any) -> Path:
    """Export the tiny model with other settings, once for all tests and workers.

    Args:
        weights: The fixture ``tiny_weights``.
        changes: Arguments of ``export_model`` that differ from those of the fixture ``tiny_model``.

    Returns:
        The model folder. Read only; copy it to change it. ``summary.json`` beside it holds what ``export_model`` returned.
    """
    arguments: dict[str, Any] = {"resize": 72, "crop": 64, "layers": (0, 1), **changes}

    def export(folder: Path) -> None:
        from visionad_export.exporter import export_model

        summary = export_model("deit_tiny_patch16_224", folder / "model", weights=weights, **arguments)
        (folder / "summary.json").write_text(json.dumps(summary), "utf-8")

    return get(f"tiny-model, summary {sorted(arguments.items())}", export) / "model"
