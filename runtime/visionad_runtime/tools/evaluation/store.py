"""Finished units of an evaluation on disk, by key, and the digests that the keys are made of."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import VisionADError
from ...formats.files import atomic_write, sha256_bytes
from .datasets.base import Dataset

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class EvaluationUnit:
    """One class with one seed's supports.

    ``result`` is its entry of the JSON file. ``arrays``: ``scores`` (n,), ``labels`` (n,), the points ``roc``, ``pr`` and ``pro``
    of its pixel curves (m, 2), and ``image_K`` and ``overlay_K``, JPEG bytes of the K-th of ``result["worst"]``.
    """

    result: dict[str, Any]
    arrays: Arrays


class Store:
    """Units by key: ``KEY.json`` beside ``KEY.npz``. The JSON file is written last and holds the other's sha256, so a unit is there
    whole or not at all; a damaged one counts as not there."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise VisionADError(
                    f"work folder {folder} cannot be made: {exc.strerror}; choose another with --work"
                ) from None

    def get(self, key: str) -> EvaluationUnit | None:
        """Return a finished unit, ``None`` if it is not there whole."""
        if self.folder is None:
            return None
        try:
            held = json.loads((self.folder / f"{key}.json").read_bytes())
            data = (self.folder / f"{key}.npz").read_bytes()
            if sha256_bytes(data) != held["npz_sha256"]:
                return None
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return EvaluationUnit(held["result"], {name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, key: str, unit: EvaluationUnit) -> None:
        """Keep a finished unit."""
        if self.folder is None:
            return
        stream = io.BytesIO()
        np.savez(stream, **unit.arrays)  # type: ignore[arg-type, unused-ignore]
        atomic_write(self.folder / f"{key}.npz", stream.getvalue())
        held = {"npz_sha256": sha256_bytes(stream.getvalue()), "result": unit.result}
        atomic_write(self.folder / f"{key}.json", json.dumps(held, ensure_ascii=False, indent=1).encode())


def relative(root: Path, path: Path) -> str:
    """Return a path as the JSON file names it: below the data set's root, with forward slashes."""
    return Path(os.path.relpath(path, root)).as_posix()


def files_digest(root: Path, paths: Iterable[Path]) -> str:
    """Return a digest of names and sizes."""
    return digest([[relative(root, path), path.stat().st_size] for path in paths])


def samples_digest(dataset: Dataset, name: str) -> str:
    """Return a digest of a class's test samples: files, labels, boxes."""
    samples = dataset.test(name)
    files = files_digest(dataset.root, [p for s in samples for p in (s.path, *s.masks)])
    return digest([files, [[s.label, s.defect, len(s.masks), s.boxes] for s in samples]])


def digest(facts: Any) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of ``facts`` as JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
