"""Finished units of an evaluation on disk, and the digests that form their keys."""

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
    """One class with the supports of one seed.

    Attributes:
        result: its entry of the JSON file.
        arrays: ``scores`` (n,) and ``labels`` (n,); points of its pixel curves ``roc``, ``pr`` and ``pro`` (m, 2); JPEG bytes
            ``picture_K`` and ``overlay_K`` of the K-th of ``result["worst"]``.
    """

    result: dict[str, Any]
    arrays: Arrays


class Store:
    """Units by key, as ``KEY.json`` and ``KEY.npz``.

    The JSON file is written last and holds the sha256 of the other, so a unit is complete or absent. A damaged unit counts as
    absent.
    """

    def __init__(self, folder: Path | None) -> None:
        """Use a folder and create it; ``None`` keeps nothing.

        Raises:
            VisionADError: the folder cannot be created.
        """
        self.folder = folder
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as exc:
                raise VisionADError(
                    f"work folder {folder} cannot be created: {exc.strerror}; choose another with --work"
                ) from None

    def get(self, key: str) -> EvaluationUnit | None:
        """Return a finished unit; ``None`` if it is absent or damaged."""
        if self.folder is None:
            return None
        try:
            record = json.loads((self.folder / f"{key}.json").read_bytes())
            data = (self.folder / f"{key}.npz").read_bytes()
            if sha256_bytes(data) != record["npz_sha256"]:
                return None
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return EvaluationUnit(record["result"], {name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def put(self, key: str, unit: EvaluationUnit) -> None:
        """Write a finished unit."""
        if self.folder is None:
            return
        stream = io.BytesIO()
        np.savez(stream, **unit.arrays)  # type: ignore[arg-type, unused-ignore]
        atomic_write(self.folder / f"{key}.npz", stream.getvalue())
        record = {"npz_sha256": sha256_bytes(stream.getvalue()), "result": unit.result}
        atomic_write(self.folder / f"{key}.json", json.dumps(record, ensure_ascii=False, indent=1).encode())


def relative(root: Path, path: Path) -> str:
    """Return a path relative to the data set's root with forward slashes, as in the JSON file."""
    return Path(os.path.relpath(path, root)).as_posix()


def files_digest(root: Path, paths: Iterable[Path]) -> str:
    """Return a digest of the names and sizes of files."""
    return digest([[relative(root, path), path.stat().st_size] for path in paths])


def samples_digest(dataset: Dataset, name: str) -> str:
    """Return a digest of a class's test samples: files, labels and boxes."""
    samples = dataset.test(name)
    files = files_digest(dataset.root, [p for s in samples for p in (s.path, *s.masks)])
    kinds = sorted((dataset.saturations(name) or {}).items())
    facts = [[s.label, s.defect, len(s.masks), s.boxes, s.condition] for s in samples]
    return digest([files, facts, kinds])


def digest(facts: Any) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of ``facts`` as JSON."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
