"""Images that are sent to a station, inspected by its worker beside the line's parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..queue import UploadedImage, UploadQueue
from .link import Answer, FrontLink
from .metrics import StationMetrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAP_SHAPE = (256, 256)


class SentResult(NamedTuple):
    """Result of an image that was sent.

    Attributes:
        facts: object of ``visionad predict --json``.
        map_bytes: anomaly map, float32 (256, 256).
    """

    facts: dict[str, Any]
    map_bytes: bytes

    @property
    def score(self) -> float:
        """Score of the image."""
        return float(self.facts["score"])

    @property
    def verdict(self) -> str:
        """Verdict of the image."""
        return str(self.facts["verdict"])

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """Map, float32 (256, 256)."""
        import numpy as np

        return np.frombuffer(self.map_bytes, np.float32).reshape(MAP_SHAPE)

    def to_dict(self, image: str) -> dict[str, Any]:
        """Return the object that ``visionad predict --json`` prints."""
        return {**self.facts, "image": image}


class StationService(UploadQueue):
    """Images that clients send to a station: whoever comes first is served first, between two parts of the line.

    Args:
        link: to the front.
        metrics: told how many images wait, and are being received.
    """

    def __init__(self, link: FrontLink, metrics: StationMetrics) -> None:
        super().__init__(metrics.waiting.set, metrics.receiving.set)
        self._link = link

    async def inspect(self, upload: UploadedImage, class_name: str | None) -> SentResult:
        """Inspect an image.

        Raises:
            CommandError: The worker cannot inspect it, or is not there.
        """
        answer = await self._ask("inspect", upload, class_name)
        return SentResult(answer.value, answer.blobs[0])

    async def overlay(self, upload: UploadedImage, class_name: str | None) -> bytes:
        """Inspect an image, and return its overlay as PNG. Errors are those of :meth:`inspect`."""
        return (await self._ask("overlay", upload, class_name)).blobs[0]

    async def is_ready(self) -> bool:
        """Return whether the worker is there with a class, and there is a place for an image."""
        facts = (await self._link.ask("ready")).value["facts"]
        return bool(facts.get("classes")) and not self.full

    async def _ask(self, command: str, upload: UploadedImage, class_name: str | None) -> Answer:
        values: dict[str, Any] = {"shape": list(upload.rgb.shape), "name": upload.name, "class": class_name}
        return await self._link.ask(command, (upload.rgb.tobytes(),), **values)
