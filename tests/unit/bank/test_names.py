"""Class names: what a new class may be called, and the one plain folder name that any class has."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from visionad_runtime.bank.names import check_class_name, folder_name
from visionad_runtime.errors import BankError

DANGEROUS = (
    ".", "..", "...", "../..", "/", "/etc", "a/../../b", "..\\x", "C:\\x", "NUL", "con", "com1.txt", "aux .x", "x.", "x ", " ",
    "\0", "a\0b", "", "\ud800", "é" * 100, "🔩" * 100, "%2E%2E", "~", "-", "draft.json",
)  # fmt: skip


@pytest.mark.parametrize("name", [".", "..", "...", "." * 100, "", " x", "x ", "a\0b", "\ud800", "x" * 101])
def test_a_new_class_has_a_name_that_is_no_folder_of_its_own(name: str) -> None:
    with pytest.raises(BankError, match="class name"):
        check_class_name(name)


@pytest.mark.parametrize("name", [".x", "x.", "v1.2", "..a", "a/b", "Gehäuse 3"])
def test_dots_beside_other_signs_are_a_name(name: str) -> None:
    assert check_class_name(name) == name


def plain(name: str) -> bool:
    """Whether a name is one file below its folder, on any system."""
    windows = PureWindowsPath("drafts") / name
    own = Path("/drafts") / name
    return (
        own.parent == Path("/drafts") and own.name == name and name not in (".", "..") and name.isascii() and name.isprintable()
        and windows.parts == ("drafts", name) and name.partition(".")[0].strip().upper() not in ("CON", "AUX", "NUL", "COM1")
        and name == name.strip(" ").rstrip(".") and 0 < len(name) <= 200
    )  # fmt: skip


@pytest.mark.parametrize("name", [one for one in DANGEROUS if not one.startswith(" ")])
def test_any_class_has_one_plain_folder_name(name: str) -> None:
    assert plain(folder_name(name))


@given(st.text(max_size=110).map(str.strip), st.text(max_size=110).map(str.strip))
def test_other_classes_have_other_folders(one: str, other: str) -> None:
    assert plain(folder_name(one))
    if folder_name(one) == folder_name(other):
        assert unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


def test_long_names_that_begin_alike_have_other_folders() -> None:
    assert folder_name("é" * 99 + "a") != folder_name("é" * 99 + "b")
    assert (
        folder_name("new one") == "new one" and folder_name("a/b") == "a%2Fb"
    )  # as before: drafts that there are stay
