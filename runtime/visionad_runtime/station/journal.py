"""The journal: a line of JSON for each inspected image, on disk before the next one begins."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import VisionADError
from .folder_source import DetectedFile


class Journal:
    """A file to which a JSON line is added for each image, on disk before the next image begins. An existing one is continued.

    Raises:
        VisionADError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as exc:
            raise VisionADError(f"journal {path} cannot be used: {exc.strerror}; choose another place") from None

    def noted(self, ones: Collection[DetectedFile]) -> set[DetectedFile]:
        """Those of them that it has a line of.

        Raises:
            VisionADError: it cannot be read, or holds other things.
        """
        wanted = {(one.image.name.as_posix(), *one.stamp): one for one in ones}
        found, end = set[DetectedFile](), 0
        try:
            self._file.seek(0)
            for number, line in enumerate(self._file, 1):
                torn = line.rstrip(b"\0")  # which some file systems leave where data were to be
                if not line.endswith(b"\n") and (torn.startswith(_BEGIN) or _BEGIN.startswith(torn)):
                    self._file.truncate(end)  # the power went while it was written: that image is inspected again
                    break
                end += len(line)
                one = wanted.get(self._key(line, number))
                if one is not None:
                    found.add(one)
        except OSError as exc:
            raise VisionADError(f"journal {self.path} cannot be used: {exc.strerror}; choose another place") from None
        return found

    def add(self, one: DetectedFile, facts: Mapping[str, Any]) -> None:
        """Note what was found of an image.

        Raises:
            VisionADError: it could not be written.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"name": one.image.name.as_posix(), **one.stamp._asdict(), "time": now, **facts}
        try:
            self._file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise VisionADError(f"journal {self.path} could not be written: {exc.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # a full disk, which was said
            self._file.close()

    def _key(self, line: bytes, number: int) -> tuple[str, int, int]:
        try:
            facts = json.loads(line)
            return str(facts["name"]), int(facts["bytes"]), int(facts["modified_ns"])
        except (ValueError, KeyError, TypeError):
            raise VisionADError(
                f"{self.path}, line {number}: expected a line of `visionad watch --journal`; choose another file"
            ) from None


_BEGIN = b'{"name": '
