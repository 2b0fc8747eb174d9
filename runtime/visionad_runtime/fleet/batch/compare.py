"""Compare two batch runs: what another bank, model or setting changes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from ...errors import VisionADError
from ..parquet import read_parquet
from ..storage import FileMissingError, open_storage
from .record import RUN_FILE, read_record

TOLERANCE = 1e-5
"""Differences of scores up to this are those of CPUs, GPUs and numbers of threads."""
COLUMNS = ("id", "image", "class", "score", "threshold", "verdict", "error")
ERROR = "error"


class Row(NamedTuple):
    """What a run says of an image."""

    class_name: str | None
    score: float | None
    threshold: float | None
    verdict: str


class Change(NamedTuple):
    """An image whose outcome differs."""

    image: str
    before: Row
    after: Row

    @property
    def move(self) -> float:
        """Difference of the scores; 0 if one is missing."""
        if self.before.score is None or self.after.score is None:
            return 0.0
        return self.after.score - self.before.score

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``compare --json`` prints."""
        sides = {
            name: {"class": row.class_name, "score": row.score, "threshold": row.threshold, "verdict": row.verdict}
            for name, row in (("before", self.before), ("after", self.after))
        }
        return {"image": self.image, **sides}


@dataclass(frozen=True)
class Comparison:
    """Difference of two runs.

    Attributes:
        images: number of images in both.
        only: number of images in the first and in the second run alone.
        flips: class → (verdict before, verdict after) → number of images. The class is that of the second run, else of the first.
        flipped: images with another verdict, largest move first.
        moved: number of images whose score differs by more than the tolerance.
        largest: images with the largest moves.
        runs: records of both runs.
    """

    images: int
    only: tuple[int, int]
    flips: dict[str, dict[tuple[str, str], int]]
    flipped: list[Change]
    moved: int
    largest: list[Change]
    runs: tuple[dict[str, Any], dict[str, Any]]

    def to_dict(self, worst: int) -> dict[str, Any]:
        """Return the object that ``compare --json`` prints, with the ``worst`` images of each kind."""
        return {
            "images": self.images,
            "only_in_a": self.only[0],
            "only_in_b": self.only[1],
            "flips": {
                name: [{"before": a, "after": b, "images": n} for (a, b), n in sorted(kinds.items())]
                for name, kinds in sorted(self.flips.items())
            },
            "flipped": len(self.flipped),
            "moved": self.moved,
            "flipped_images": [change.to_dict() for change in self.flipped[:worst]],
            "largest_moves": [change.to_dict() for change in self.largest[:worst]],
            "runs": [{k: run.get(k) for k in ("run", "model", "bank", "bank_version", "backend")} for run in self.runs],
        }


def compare(first: str, second: str, tolerance: float = TOLERANCE, keep: int = 100) -> Comparison:
    """Compare two runs image by image, by the image's name; those that stand there several times by class, then by order.

    Args:
        first: URL of a run's folder, or of a folder with one run.
        second: the same.
        tolerance: largest difference of scores that is no move.
        keep: number of largest moves to return.

    Raises:
        VisionADError: A run is missing, damaged or not complete, or no image is in both.
    """
    (record_a, a), (record_b, b) = read_run(first), read_run(second)
    pairs = [(image, *pair) for image in sorted(a.keys() & b.keys()) for pair in _pair(a[image], b[image])]
    if not pairs:
        raise VisionADError(f"{first} and {second} have no image in common; compare runs over the same source")
    flips: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    flipped, moves = [], []
    for pair in pairs:
        change = Change(*pair)
        if change.before.verdict != change.after.verdict:
            name = change.after.class_name or change.before.class_name or ""
            flips[name][change.before.verdict, change.after.verdict] += 1
            flipped.append(change)
        if abs(change.move) > tolerance:
            moves.append(change)
    flipped.sort(key=lambda change: -abs(change.move))
    moves.sort(key=lambda change: -abs(change.move))
    only = (sum(map(len, a.values())) - len(pairs), sum(map(len, b.values())) - len(pairs))
    kinds = {name: dict(counts) for name, counts in flips.items()}
    return Comparison(len(pairs), only, kinds, flipped, len(moves), moves[:keep], (record_a, record_b))


def _pair(a: Sequence[Row], b: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield the rows of an image that belong together: those of one class, then the others, in order."""
    left: tuple[list[Row], list[Row]] = ([], list(b))
    for row in a:
        same = next((i for i, other in enumerate(left[1]) if other.class_name == row.class_name), None)
        if same is None:
            left[0].append(row)
        else:
            yield row, left[1].pop(same)
    yield from zip(*left, strict=False)


def read_run(url: str) -> tuple[dict[str, Any], dict[str, list[Row]]]:
    """Return the record of a run and the rows of each image, in the source's order. A row that stands twice counts once.

    Raises:
        VisionADError: There is no run, its record or a part is damaged, or blocks are missing.
    """
    storage = open_storage(url)
    try:
        record = read_record(storage)
    except FileMissingError:
        names = [name.partition("/")[0] for name in storage.list("") if name.endswith(f"/{RUN_FILE}")]
        if len(names) != 1:
            listed = f"it has {', '.join(names)}" if names else "it has none"
            raise VisionADError(f"{url}: expected one run of `visionad batch`; {listed}") from None
        return read_run(f"{url.rstrip('/')}/{names[0]}")
    parts = sorted(name for name in storage.list("") if name.startswith("part-") and name.endswith(".parquet"))
    if len(parts) != record["blocks"]:
        raise VisionADError(
            f"{url}: {len(parts)} of {record['blocks']} blocks are finished; run `visionad batch` again to the end"
        )
    rows: dict[int, tuple[str, Row]] = {}
    for part in parts:
        try:
            table = read_parquet(storage.read(part), COLUMNS).select(COLUMNS)
        except (pa.ArrowException, KeyError, OSError, FileMissingError) as exc:
            raise VisionADError(f"{url}/{part} is damaged ({exc}); delete it and run `visionad batch` again") from None
        for row in table.to_pylist():
            verdict = ERROR if row["error"] is not None else row["verdict"]
            rows[row["id"]] = row["image"], Row(row["class"], row["score"], row["threshold"], verdict)
    images: dict[str, list[Row]] = defaultdict(list)
    for _, (image, one) in sorted(rows.items()):
        images[image].append(one)
    return record, images
