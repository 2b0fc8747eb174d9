"""Judge images one after another: with the bank that is on disk, and with an eye on the promise of their class."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from ...images.pixels import RGB8
from ...inspector.inspection import Inspection
from ...result import FileResult, Result
from .promise_watch import PromiseWatch


class Judge:
    """What ``visionad watch``, ``visionad serve`` and a station's worker do with each image.

    They differ in where images come from and results go. Any thread may call it.

    Args:
        inspection: what inspects. The caller closes it.
        notify: told once, in words, when the promise of a class is void.
        evidence: whether results name the nearest good patch of each region.

    Attributes:
        inspection: the same.
        promises: alarms of the classes.
    """

    def __init__(
        self, inspection: Inspection, notify: Callable[[str], object] = lambda _: None, *, evidence: bool = False
    ) -> None:
        self.inspection, self.promises, self._evidence = inspection, PromiseWatch(inspection, notify), evidence
        self._following = threading.Lock()

    def refresh(self) -> bool:
        """As :meth:`Inspection.refresh`: load the bank version that another process has committed. Return whether there was one."""
        return self.inspection.refresh()

    def judge(self, rgb: RGB8, class_name: str | None) -> Result:
        """Inspect a part of the line.

        Args:
            rgb: uint8 (H, W, 3) RGB or (H, W) gray.
            class_name: class of the part; it skips routing.

        Returns:
            The result, whose promise is void if the alarm of its class stands.

        Raises:
            VisionADError: As :meth:`Inspection.inspect`.
        """
        return self._follow(self.look(rgb, class_name))

    def look(self, rgb: RGB8, class_name: str | None) -> Result:
        """Inspect an image that is no part of the line: it is no evidence for or against a promise. Otherwise as :meth:`judge`."""
        ((result, _),) = self.inspection.trace_batch([rgb], class_name, trace=False, evidence=self._evidence)
        return result

    def judge_file(self, path: Path, class_name: str | None, bit_depth: int | None) -> FileResult:
        """Decode and inspect an image file of a part.

        Args:
            path: of the file.
            class_name: class of the part; it skips routing.
            bit_depth: bits that the camera fills in files of 16 bits.

        Returns:
            Pixels and result, or the error of a file that cannot be read.

        Raises:
            VisionADError: As :meth:`Inspection.inspect_files`.
        """
        (outcome,) = self.inspection.inspect_files(
            [path], class_name=class_name, bit_depth=bit_depth, evidence=self._evidence
        )
        return outcome if outcome.result is None else outcome._replace(result=self._follow(outcome.result))

    def _follow(self, result: Result) -> Result:
        with self._following:
            return self.promises.follow(result)
