"""Open a backbone engine that passes the self-test on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..engine import registry
from ..engine.base import Engine
from .self_test import read_golden, self_test

if TYPE_CHECKING:
    from ..formats.manifest import ModelManifest, Precision


def open_engine(
    folder: Path,
    manifest: ModelManifest,
    backend: str = registry.AUTO,
    *,
    threads: int | None = None,
    batch_size: int | None = None,
    precision: Precision | None = None,
    device: str | None = None,
) -> Engine:
    """Open the model's backbone by :func:`registry.open_engine`, with the self-test as its check.

    Args:
        folder: The model folder.
        manifest: Its manifest.
        backend: ``auto`` or a backend's name.
        threads: CPU threads. Default: all cores.
        batch_size: Rows that belong together. Default: the number of the model's views.
        precision: The precision to compute in. Default: the model's own.
        device: The device to compute on, for backends that offer several.

    Raises:
        VisionADError: The backend is unknown, cannot run here, or does not take the precision or the device.
        ModelError: The backend fails its self-test, or no backend runs.
    """

    def check(engine: Engine) -> None:
        differences = self_test(engine, manifest, read_golden(folder))
        engine.info["self-test"] = ", ".join(f"{k} {v:.2g}" for k, v in differences.items())

    return registry.open_engine(
        folder,
        manifest,
        backend,
        check=check,
        threads=threads,
        batch_size=batch_size,
        precision=precision,
        device=device,
    )
