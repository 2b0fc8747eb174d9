"""Errors a user can mend. Everything else is a bug and keeps its traceback."""

from __future__ import annotations


class VisionADError(Exception):
    """The user's mistake or the box's limit: what was wanted, what was found, where, and what mends it.

    The command line prints it as one line and exits with status 2.
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # one line, whatever a library put into it


class PictureError(VisionADError):
    """A picture cannot be read: missing, empty, truncated, of a wrong kind, or too large."""


class ModelError(VisionADError):
    """A model folder is missing, damaged, or of a newer format."""


class BankError(VisionADError):
    """A bank is missing, damaged, locked, or was made with another model."""


class LostManifestError(BankError):
    """A bank's manifest is gone or damaged, and its history holds it."""
