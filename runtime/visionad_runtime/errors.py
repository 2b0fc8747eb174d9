"""Errors that a user can fix. Every other exception is a bug and keeps its traceback."""

from __future__ import annotations


class VisionADError(Exception):
    """A mistake of the user or a limit of the machine.

    The message says what was expected, what was got, where, and what fixes it. The command line prints it as one line and exits
    with status 2.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # libraries put line breaks into their messages


class ImageError(VisionADError):
    """An image cannot be read: missing, empty, truncated, unsupported, or too large."""


class ModelError(VisionADError):
    """A model folder is missing, damaged, or has a newer format."""


class BankError(VisionADError):
    """A bank is missing, damaged, locked, or was made with another model."""


class LostManifestError(BankError):
    """A bank's manifest is missing or damaged, but the bank's history holds a copy."""


def is_own_module(exc: ImportError) -> bool:
    """Return whether the missing module belongs to VisionAD, which makes the error a bug of this program."""
    return (exc.name or "").startswith("visionad")


def import_error_message(exc: ImportError) -> str:
    """Return which package cannot be imported, why, and the command that fixes it."""
    import traceback
    from importlib.metadata import packages_distributions

    importers = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(exc.__traceback__)]
    package = importers[-1].partition(".")[0]
    if package.startswith(("visionad", "importlib")):  # the package is not installed at all
        package = (exc.name or "visionad").partition(".")[0]
    distributions = packages_distributions().get(package)
    requirement = f"--force-reinstall {distributions[0]}" if distributions else "visionad"
    return f"{package} does not import ({' '.join(str(exc).split())[:300]}): pip install {requirement}"
