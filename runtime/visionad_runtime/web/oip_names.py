"""Names of the Open Inference Protocol v2: the model, its inputs and outputs; and what an output needs of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL = "visionad"
VERSION = "1"
HEADER = "inference-header-content-length"
"""Length of the JSON before binary tensors, in bytes."""
INPUTS = (("image", "UINT8", [-1, -1, -1, 3]), ("file", "BYTES", [-1]), ("class", "BYTES", [-1]))
OUTPUTS = (
    ("score", "FP32", [-1]),
    ("verdict", "BYTES", [-1]),
    ("result", "BYTES", [-1]),
    ("anomaly_map", "FP32", [-1, 256, 256]),
)
DEFAULT_OUTPUTS = ("score", "verdict", "result")


class InspectedImage(Protocol):
    """A result, as answers need it."""

    @property
    def score(self) -> float:
        """Score of the image."""

    @property
    def verdict(self) -> str:
        """Verdict of the image."""

    @property
    def anomaly_map(self) -> NDArray[np.float32]:
        """Map, float32 (256, 256)."""

    def to_dict(self, image: str) -> dict[str, Any]:
        """Return the object that ``visionad predict --json`` prints."""
