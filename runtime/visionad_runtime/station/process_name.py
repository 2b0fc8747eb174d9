"""Names of the station's processes, as ``ps`` and ``top`` show them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def name_process(role: str) -> None:
    """Name this process ``visionad-ROLE``, where the system lets it. Linux keeps 15 letters."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(f"visionad-{role}")
