"""Class names."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ..errors import BankError
from ..formats.files import sha256_bytes

LONGEST_FOLDER = 200
"""Characters of a folder name, all ASCII. File systems take 255 bytes."""
_DEVICES = frozenset(
    ("CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(10)))
)


def normalize_class_name(name: str) -> str:
    """Return a class name in Unicode normalization form C, in which banks store it."""
    return unicodedata.normalize("NFC", name)


def check_class_name(name: str) -> str:
    """Return a class name as stored, after checking it.

    Raises:
        BankError: The name is empty, longer than 100 characters, nothing but dots, or has control characters or blanks at either
            end.
    """
    name = normalize_class_name(name)
    if name and not name.strip("."):
        raise BankError(f"class name {name!r}: expected more than dots, which stand for folders")
    if not name or len(name) > 100 or name != name.strip() or not name.isprintable():
        raise BankError(f"class name {name!r}: expected 1 to 100 printable characters without blanks at either end")
    return name


def folder_name(name: str) -> str:
    """Return one plain name of a folder for a class: any system takes it, and other classes have others.

    Args:
        name: the class, whatever its name is.

    Returns:
        1 to 200 characters of letters, digits, blanks and ``-._~%``; neither ``.`` nor ``..``, nor a device of Windows.
    """
    name = normalize_class_name(name)
    text = quote(name, safe=" ", errors="surrogatepass")
    if (
        len(text) > LONGEST_FOLDER
    ):  # a sign that quoting never leaves so, and the digest: no other name comes out like this
        text = f"{text[: LONGEST_FOLDER - 50]}%~{sha256_bytes(name.encode(errors='surrogatepass'))[:32]}"
    end = len(text.rstrip(". "))
    text = text[:end] + "".join(
        f"%{ord(sign):02X}" for sign in text[end:]
    )  # Windows drops them; `..` is another folder
    if text.partition(".")[0].rstrip().upper() in _DEVICES:
        text = f"%{ord(text[0]):02X}{text[1:]}"
    return text or "%"


def unknown_class_message(folder: Path, name: str, classes: Mapping[str, object]) -> str:
    """Return the error message for a class that the bank does not hold.

    Args:
        folder: folder of the bank.
        name: name that was asked for.
        classes: classes of the bank, by name.
    """
    return f"bank {folder} has no class {name!r}; it has {', '.join(map(repr, sorted(classes))) or 'no class yet'}"
