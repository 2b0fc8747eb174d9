"""Which presets there are: the files of ``presets/``. It imports nothing heavy, so that help texts can list them."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger("visionad")

FOLDER = Path(__file__).parent / "presets"
RENAMED = {"sharp": "full-image", "keen": "full-image-weighted"}
"""Old name → name. Both are accepted until the release :data:`RENAMED_UNTIL`, which drops this table."""
RENAMED_UNTIL = "0.3.0"


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def preset_help() -> str:
    """Return what help texts say of the values that ``--preset`` takes."""
    return f"{', '.join(preset_names())}, or the path of a TOML file (docs/presets.md)"


def preset_file(preset: str) -> Path | None:
    """Return the file of a preset, ``None`` if there is none.

    Args:
        preset: a name, an old name (the log says the new one), or the path of a file, which ends in ``.toml``.
    """
    if preset.endswith(".toml"):
        return Path(preset)
    if preset in RENAMED:
        name = RENAMED[preset]
        log.warning("preset %s is now called %s; release %s drops the old name", preset, name, RENAMED_UNTIL)
        preset = name
    return FOLDER / f"{preset}.toml" if preset in preset_names() else None
