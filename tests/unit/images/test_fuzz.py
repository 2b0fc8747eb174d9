"""Mutated files at every decoder. By hand, and longer: ``python -m tests.fuzz_decode --minutes 30``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import fuzz_decode


@pytest.mark.parametrize("name", fuzz_decode.ORIGINALS)
def test_what_is_mutated_is_sound(name: str) -> None:
    data = fuzz_decode.ORIGINALS[name]
    assert fuzz_decode.decoder.decode(data, name, 16 if name.endswith(" 16") else None).size


def test_a_few_mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fuzz_decode.fuzz(0) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow(group="fuzz")
def test_a_minute_of_mutants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fuzz_decode.fuzz(60, first_seed=1) >= 1
