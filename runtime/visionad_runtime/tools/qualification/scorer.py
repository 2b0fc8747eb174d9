"""Scores of images, kept as they come, so that an interrupted qualification resumes where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import VisionADError
from ...formats.files import sha256_bytes
from ...images.decode import load
from ...images.pixels import RGB8, pixel_digest
from ...inspector import Inspector
from ...result import Result, Verdict


class Scored(NamedTuple):
    """Outcome of one image.

    Attributes:
        score: its score.
        verdict: its verdict.
        p_value: its p-value; ``None`` without a threshold.
    """

    score: float
    verdict: Verdict
    p_value: float | None


class Scorer:
    """Inspects images of one class, each once, and keeps the outcomes in a file.

    An outcome is keyed by the digests of the image, the model and the bank, the scoring, the backend, the precision and the class.
    A line that a crash tore is computed anew.

    Attributes:
        inspector: the inspector.
        class_name: the class.
        computed: images that were inspected.
        reused: images whose outcome was kept.
    """

    def __init__(
        self,
        inspector: Inspector,
        class_name: str,
        file: Path,
        bit_depth: int | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """Read what an earlier run kept.

        Args:
            inspector: with the bank.
            class_name: the class, which the bank holds.
            file: lines of JSON; made if it is missing.
            bit_depth: bits that the camera fills in 16-bit files.
            step: called after each image.

        Raises:
            VisionADError: The file cannot be read or written.
        """
        self.inspector, self.class_name = inspector, class_name
        self.computed = self.reused = 0
        self._bit_depth, self.step = bit_depth, step
        bank = inspector.require_class(class_name)
        made_by = (
            inspector.digest, bank.snapshot.digest, inspector.scoring.describe(), inspector.engine.name,
            inspector.engine.precision, class_name, bit_depth,
        )  # fmt: skip
        self._made_by = json.dumps(made_by)
        self._kept: dict[str, Scored] = {}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            text = file.read_bytes().decode("utf-8", "replace") if file.exists() else ""
            self._file = open(file, "a", encoding="utf-8")  # noqa: SIM115 - open until close()
            if text and not text.endswith("\n"):
                self._file.write("\n")
        except OSError as exc:
            raise VisionADError(f"{file}: {exc.strerror or exc}; choose another place with --out") from None
        for line in text.splitlines():
            try:
                key, score, verdict, p_value = json.loads(line)
                self._kept[key] = Scored(score, verdict, p_value)
            except (ValueError, TypeError):
                continue

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def score_file(self, path: Path, digest: str) -> Scored:
        """Return the outcome of an image file.

        Args:
            path: the file.
            digest: its sha256.

        Raises:
            ImageError: It cannot be read, or has another size than the ROIs were drawn on.
        """

        def inspect() -> Result:
            one = next(self.inspector.inspect_files([path], class_name=self.class_name, bit_depth=self._bit_depth))
            if one.error is not None:
                raise one.error
            assert one.result is not None
            return one.result

        return self._outcome(digest, inspect)

    def score_pixels(self, rgb: RGB8) -> Scored:
        """Return the outcome of an image in memory, by its pixels.

        Args:
            rgb: uint8 (H, W, 3) RGB.
        """
        what = f"pixels {pixel_digest(rgb)}"
        return self._outcome(what, lambda: self.inspector.trace_batch([rgb], self.class_name, trace=False)[0][0])

    def load(self, path: Path) -> RGB8:
        """Return the pixels of an image file, uint8 (H, W, 3) RGB.

        Raises:
            ImageError: It cannot be read.
        """
        return load(path, self._bit_depth)

    def _outcome(self, what: str, inspect: Callable[[], Result]) -> Scored:
        key = sha256_bytes(f"{self._made_by}\n{what}".encode())
        kept = self._kept.get(key)
        if kept is None:
            result = inspect()
            kept = self._kept[key] = Scored(result.score, result.verdict, result.p_value)
            self._write(key, kept)
            self.computed += 1
        else:
            self.reused += 1
        self.step()
        return kept

    def _write(self, key: str, scored: Scored) -> None:
        row: tuple[Any, ...] = (key, *scored)
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            if self.computed % 64 == 0:
                os.fsync(self._file.fileno())
        except OSError as exc:
            raise VisionADError(f"{self._file.name}: {exc.strerror or exc}; free some space and run again") from None
