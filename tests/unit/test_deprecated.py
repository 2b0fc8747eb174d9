"""Deprecated names work, warn, are listed in the changelog and leave in time."""

from __future__ import annotations

import re

import pytest
import visionad_runtime
from visionad_runtime import _release

from tests.data import ROOT

EVERY = {**_release.API, **_release.PRESETS}


@pytest.mark.parametrize("old", _release.API)
def test_a_deprecated_name_works_and_warns(old: str) -> None:
    renamed = _release.API[old]
    with pytest.warns(DeprecationWarning, match=rf"{old} is now called {renamed.name}; release {renamed.until} drops"):
        assert getattr(visionad_runtime, old) is getattr(visionad_runtime, renamed.name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Chain'"):
        _ = visionad_runtime.Chain


@pytest.mark.parametrize("old", EVERY)
def test_a_deprecated_name_is_dropped_in_time(old: str) -> None:
    """When this fails: delete the name from ``_release.py``, and its row from the changelog's table."""
    version, until = (
        tuple(int(number) for number in text.split(".")[:2])
        for text in (visionad_runtime.__version__, EVERY[old].until)
    )
    assert version < until, f"release {EVERY[old].until} drops {old}"


def test_the_changelog_lists_every_deprecated_name() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    table = text.split("### Deprecated\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| (?:preset )?`(\S+)` \| `(\S+)` \| (\S+) \|$", table, re.MULTILINE)
    assert {(old, name, f"{until}.0") for old, name, until in rows} == {
        (old, renamed.name, renamed.until) for old, renamed in EVERY.items()
    }
