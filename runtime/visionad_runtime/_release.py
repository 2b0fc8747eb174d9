"""This release: its version, and the deprecated names that later releases remove.

``tests/unit/test_deprecated.py`` fails when the version reaches a release named here, or when the changelog does not list a name.
"""

from __future__ import annotations

from typing import NamedTuple

__version__ = "0.1.0"


class Renamed(NamedTuple):
    """Replacement of a deprecated name.

    Attributes:
        name: the name to use instead.
        until: the release that removes the deprecated name.
    """

    name: str
    until: str


API = {"PictureError": Renamed("ImageError", "0.3.0")}
"""Names of the package ``visionad_runtime``."""
PRESETS = {"sharp": Renamed("full-image", "0.3.0"), "keen": Renamed("full-image-weighted", "0.3.0")}
"""Values of ``--preset``."""


def notice(old: str, renamed: Renamed) -> str:
    """Return the sentence that a user of a deprecated name is told."""
    return f"{old} is now called {renamed.name}; release {renamed.until} drops the old name"
