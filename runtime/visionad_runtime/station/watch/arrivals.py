"""Inspect the images that arrive in a folder: the loop between the source, the inspector, the output and the journal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ...errors import BankError, VisionADError
from ...result import FileResult
from ..judging.judge import Judge
from .detected import DetectedFile
from .folder_source import FolderSource
from .journal import Journal

MAX_FAILURES = 1
"""Images in a row that may fail for an unforeseen reason. After that it is not the image's fault."""


class ResultOutput(Protocol):
    """Where results go.

    Attributes:
        counts: images by verdict, and those without one.
    """

    counts: Counter[str]

    def add(self, one: FileResult, name: Path, /) -> Mapping[str, Any]:
        """Output the result of an image and return its JSON object."""

    def error(self, path: Path, error: Exception | None, /) -> Mapping[str, Any]:
        """Output why an image has no result and return its JSON object."""


class ArrivalLoop:
    """Inspects files of a folder one by one.

    Args:
        judge: it sees bank changes of other processes before each image.
        source: files of the folder. It is asked to hand an unreadable file over again.
        output: where results go.
        journal: notes each image before the next one starts; ``None``: no journal.
        class_name: class of the parts; it skips routing.
        bit_depth: bits that the camera fills in 16-bit files.
        notify: told of a new version of the bank, in words.
    """

    def __init__(
        self,
        judge: Judge,
        source: FolderSource,
        output: ResultOutput,
        journal: Journal | None,
        class_name: str | None,
        bit_depth: int | None,
        notify: Callable[[str], object],
    ) -> None:
        self._judge, self._source, self._output, self._journal = judge, source, output, journal
        self._class_name, self._bit_depth, self._notify = class_name, bit_depth, notify
        self._failures = 0

    def run(self, stopped: Callable[[], bool]) -> None:
        """Inspect files until the source ends, or until ``stopped`` says so.

        Raises:
            Exception: Two images in a row failed for an unforeseen reason. A restart begins with the second one.
        """
        for file in self._source:
            if stopped():
                return
            if self._judge.refresh():
                assert self._judge.inspection.bank is not None
                manifest = self._judge.inspection.bank.manifest
                self._notify(f"bank version {manifest.version} from here on: {manifest.change}")
            facts = self._inspect(file)
            if facts is not None and self._journal is not None:
                self._journal.append(file, facts)

    def _inspect(self, file: DetectedFile) -> Mapping[str, Any] | None:
        """Return what the journal notes; ``None`` for an image that will be inspected later."""
        path, output = file.image.path, self._output
        try:
            outcome = self._judge.judge_file(path, self._class_name, self._bit_depth)
        except BankError as exc:  # the class was removed; it may come back
            output.counts["not inspected"] += 1
            output.error(path, exc)
            return None
        except Exception as exc:  # one image must not end the loop, at every restart again
            self._failures += 1
            if self._failures > MAX_FAILURES:
                raise
            output.counts["not inspected"] += 1
            problem = f"{path}: could not be inspected: {type(exc).__name__}: {exc}"
            return output.error(path, VisionADError(problem))
        self._failures = 0
        if outcome.error is not None and self._source.retry(file):
            return None
        said = output.add(outcome, file.image.name)
        if outcome.error is not None and not os.path.lexists(path):  # moved away: it is inspected when it comes back
            return None
        return said
