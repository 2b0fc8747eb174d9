"""Errors a user can mend. Everything else is a bug and keeps its traceback."""

from __future__ import annotations


class VisionADError(Exception):
    """The user's mistake or the box's limit: what was expected, what was got, where, and what mends it.

    The command line prints it as one line and exits with status 2.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # one line, whatever a library put into it


class ImageError(VisionADError):
    """An image cannot be read: missing, empty, truncated, of a wrong kind, or too large."""


class ModelError(VisionADError):
    """A model folder is missing, damaged, or of a newer format."""


class BankError(VisionADError):
    """A bank is missing, damaged, locked, or was made with another model."""


class LostManifestError(BankError):
    """A bank's manifest is gone or damaged, and its history holds it."""


def is_own(exc: ImportError) -> bool:
    """Whether it is a module of the runtime's that is missing: a fault of this program's."""
    return (exc.name or "").startswith("visionad")


def does_not_import(exc: ImportError) -> str:
    """Which package it is, why, and what mends that."""
    import traceback
    from importlib.metadata import packages_distributions

    importers = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(exc.__traceback__)]
    package = importers[-1].partition(".")[0]
    if package.startswith(("visionad", "importlib")):  # it is not there at all
        package = (exc.name or "visionad").partition(".")[0]
    owners = packages_distributions().get(package)
    way = f"--force-reinstall {owners[0]}" if owners else "visionad"
    return f"{package} does not import ({' '.join(str(exc).split())[:300]}): pip install {way}"
