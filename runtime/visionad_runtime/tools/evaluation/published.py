"""Published numbers of VisionAD (arXiv 2504.11895), for comparison. DINOv2-R ViT-L/14, resize 448, crop 392.

If the authors logged 13 seeds (MVTec-AD and VisA at 1, 2 and 4 shots), the row has their means, the fairest expectation. Other
rows are the paper's own, over 5 seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ...formats.manifest import ModelManifest
from ...scoring.spec import PAPER, ScoringSpec

METRICS = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_aupro")
"""The seven metrics, in the order of every table."""

BACKBONE = "dinov2_vitl14_reg"


@dataclass(frozen=True)
class Published:
    """One published row, values in 0..1.

    Attributes:
        seeds: number of seeds.
        mean: means by metric.
        image_auroc_std: standard deviation of the image AUROC over the seeds, if known.
        by_class: image AUROC by class, if known.
    """

    seeds: int
    mean: Mapping[str, float]
    image_auroc_std: float | None
    by_class: Mapping[str, float]

    @property
    def label(self) -> str:
        """Title of the row."""
        return f"published, DINOv2-R ViT-L, {self.seeds} seeds"


def published(dataset: str, shots: int) -> Published | None:
    """Return a published row.

    Args:
        dataset: name of the layout.
        shots: supports per class.

    Returns:
        The row, or ``None`` if there is none.
    """
    row = _ROWS.get((dataset, shots))
    if row is None:
        return None
    seeds, std, *values = row
    column = (1, 2, 4).index(shots) if shots in (1, 2, 4) else None
    classes = _IMAGE_AUROC.get(dataset, {}) if column is not None else {}
    return Published(
        int(seeds or 0),
        MappingProxyType({name: value / 100 for name, value in zip(METRICS, values, strict=True) if value is not None}),
        None if std is None else std / 100,
        MappingProxyType({name: per_shot[column] / 100 for name, per_shot in classes.items() if column is not None}),
    )


def classes_of(dataset: str) -> frozenset[str]:
    """Return the classes of a published mean; empty if they are not known."""
    return frozenset(_IMAGE_AUROC.get(dataset, {}))


def same_model(manifest: ModelManifest, scoring: ScoringSpec) -> bool:
    """Return whether the published row was measured with this backbone, these layers, sizes and scoring."""
    identity = manifest.identity
    return (
        identity.backbone == BACKBONE
        and identity.layers == tuple(range(4, 19))
        and (identity.preprocess.resize, identity.preprocess.crop) == (448, 392)
        and scoring == PAPER
    )


# (layout, shots) → seeds, spread of the image AUROC over them, then METRICS; percent.
_ROWS: dict[tuple[str, int], tuple[float | None, ...]] = {
    ("mvtec", 1): (13, 0.5, 97.0, 98.9, 96.6, 96.1, 61.4, 61.1, 92.3),
    ("mvtec", 2): (13, 0.4, 97.9, 99.2, 97.3, 96.6, 63.4, 62.8, 93.1),
    ("mvtec", 4): (13, 0.2, 98.5, 99.5, 97.9, 96.9, 64.5, 63.8, 93.6),
    ("mvtec", 8): (5, None, 98.9, 99.6, 98.2, 97.1, 65.6, 64.7, 94.0),
    ("visa", 1): (13, 0.9, 93.6, 94.1, 89.8, 97.3, 45.3, 49.8, 90.6),
    ("visa", 2): (13, 0.5, 94.9, 95.2, 91.1, 97.7, 47.8, 52.1, 91.6),
    ("visa", 4): (13, 0.5, 95.6, 95.8, 92.2, 98.0, 49.5, 53.4, 92.3),
    ("visa", 8): (5, None, 96.3, 96.4, 93.1, 98.2, 51.2, 54.8, 92.9),
    ("real-iad", 1): (5, 1.2, 70.8, 66.7, 68.8, 95.7, 25.5, 31.2, 84.9),
    ("real-iad", 2): (5, None, 74.7, 70.1, 70.5, 96.4, 29.4, 34.7, 86.5),
    ("real-iad", 4): (5, None, 79.1, 74.7, 72.9, 97.3, 34.0, 39.2, 88.9),
}

# Image AUROC at 1, 2 and 4 shots, means of 13 seeds; percent.
_IMAGE_AUROC: dict[str, dict[str, tuple[float, float, float]]] = {
    "mvtec": {
        "carpet": (99.9, 100.0, 100.0),
        "grid": (99.1, 99.3, 99.4),
        "leather": (100.0, 100.0, 100.0),
        "tile": (99.9, 99.9, 100.0),
        "wood": (98.9, 99.0, 99.1),
        "bottle": (97.9, 98.9, 99.4),
        "cable": (93.4, 94.5, 95.2),
        "capsule": (94.6, 95.2, 96.8),
        "hazelnut": (99.0, 100.0, 100.0),
        "metal_nut": (96.6, 98.2, 99.0),
        "pill": (97.7, 98.2, 98.5),
        "screw": (80.5, 87.4, 91.8),
        "toothbrush": (99.1, 99.3, 99.8),
        "transistor": (98.6, 99.2, 99.5),
        "zipper": (99.3, 99.5, 99.8),
    },
    "visa": {
        "candle": (96.0, 96.6, 97.0),
        "capsules": (96.6, 97.0, 97.1),
        "cashew": (95.2, 95.8, 96.4),
        "chewinggum": (99.4, 99.4, 99.6),
        "fryum": (97.4, 97.3, 97.6),
        "macaroni1": (91.6, 94.5, 95.4),
        "macaroni2": (75.5, 79.8, 82.6),
        "pcb1": (92.9, 93.5, 93.8),
        "pcb2": (92.5, 93.1, 94.1),
        "pcb3": (90.3, 93.6, 95.9),
        "pcb4": (98.1, 99.3, 99.5),
        "pipe_fryum": (97.6, 98.3, 98.7),
    },
}
