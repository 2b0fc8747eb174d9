"""Names and files of the presets. It imports nothing heavy, so that help texts can list them."""

from __future__ import annotations

import logging
from pathlib import Path

from .. import _release

log = logging.getLogger("visionad")

FOLDER = Path(__file__).parent / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def preset_help() -> str:
    """Return the help text for the values of ``--preset``."""
    return f"{', '.join(preset_names())}, or the path of a TOML file (docs/guides/presets.md)"


def preset_file(preset: str) -> Path | None:
    """Return the file of a preset, or ``None`` for an unknown name.

    Args:
        preset: a name, a deprecated name (a warning is logged), or a path that ends in ``.toml``.
    """
    if preset.endswith(".toml"):
        return Path(preset)
    if preset in _release.PRESETS:
        renamed = _release.PRESETS[preset]
        log.warning("preset %s", _release.notice(preset, renamed))
        preset = renamed.name
    return FOLDER / f"{preset}.toml" if preset in preset_names() else None
