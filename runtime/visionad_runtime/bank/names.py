"""Class names."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from ..errors import BankError


def normalize_class_name(name: str) -> str:
    """Return a class name in Unicode normalization form C, in which banks store it."""
    return unicodedata.normalize("NFC", name)


def check_class_name(name: str) -> str:
    """Return a class name as stored, after checking it.

    Raises:
        BankError: The name is empty, longer than 100 characters, or has control characters or blanks at either end.
    """
    name = normalize_class_name(name)
    if not name or len(name) > 100 or name != name.strip() or not name.isprintable():
        raise BankError(f"class name {name!r}: expected 1 to 100 printable characters without blanks at either end")
    return name


def unknown_class_message(folder: Path, name: str, classes: Mapping[str, object]) -> str:
    """Return the error message for a class that the bank does not hold.

    Args:
        folder: folder of the bank.
        name: name that was asked for.
        classes: classes of the bank, by name.
    """
    return f"bank {folder} has no class {name!r}; it has {', '.join(map(repr, sorted(classes))) or 'no class yet'}"
