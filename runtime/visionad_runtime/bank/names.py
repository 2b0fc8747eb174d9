"""Names of classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

from ..errors import BankError


def normalize_class_name(name: str) -> str:
    """A class name in the form in which banks store it (NFC), however its letters are composed."""
    return unicodedata.normalize("NFC", name)


def check_class_name(name: str) -> str:
    """A class name as stored (NFC).

    Raises:
        BankError: empty, longer than 100 characters, with leading or trailing blanks or control characters.
    """
    name = normalize_class_name(name)
    if not name or len(name) > 100 or name != name.strip() or not name.isprintable():
        raise BankError(f"class name {name!r}: expected 1 to 100 printable characters without blanks at either end")
    return name


def unknown_class_message(folder: Path, name: str, known: Mapping[str, object]) -> str:
    """The message for a class the bank does not have."""
    return f"bank {folder} has no class {name!r}; it has {', '.join(map(repr, sorted(known))) or 'no class yet'}"
