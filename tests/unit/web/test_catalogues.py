"""Every text of the pages is translated, with the same values in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import visionad_runtime
from visionad_runtime.station.worker.checks import ALARMS

STATIC = Path(visionad_runtime.__file__).parent / "web/station/static"
TEXT = re.compile(r"\bt\(\s*'((?:[^'\\]|\\.)*)'")
AUDITED = re.compile(r'audit\(\s*who,\s*"([^"]+)"')
VERDICTS = ("OK", "REJECT", "UNDECIDED", "OFFLINE", "FAULT", "NO PART")


def texts() -> set[str]:
    found = set()
    for path in STATIC.rglob("*.js"):
        if path.name != "lit-html.js":
            found |= set(TEXT.findall(path.read_text(encoding="utf-8")))
    assert len(found) > 100
    return found | {text for pair in ALARMS.values() for text in pair}


@pytest.mark.parametrize("language", ["de", "zh"])
def test_every_text_is_translated_with_its_values(language: str) -> None:
    catalogue = json.loads((STATIC / f"i18n/{language}.json").read_text(encoding="utf-8"))
    assert sorted(texts() - catalogue.keys()) == []
    for text, translated in catalogue.items():
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", translated)), text


@pytest.mark.parametrize("language", ["de", "zh"])
def test_what_the_audit_says_is_translated(language: str) -> None:
    catalogue = json.loads((STATIC / f"i18n/{language}.json").read_text(encoding="utf-8"))
    sources = Path(visionad_runtime.__file__).parent.glob("station/page/*.py")
    said = {what for path in sources for what in AUDITED.findall(path.read_text(encoding="utf-8"))}
    assert {"draft put live", "part enrolled"} <= said and sorted(said - catalogue.keys()) == []


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_words_of_the_banner_have_ten_letters_at_most(language: str) -> None:
    path = STATIC / f"i18n/{language}.json"
    catalogue = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for text in VERDICTS:
        assert len(catalogue.get(text, text)) <= 10


def test_templates_take_no_inline_style_or_handler() -> None:
    """The content security policy refuses them, and a browser would say so only where someone looks."""
    for path in STATIC.rglob("*.js"):
        if path.name != "lit-html.js":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\bstyle=|\bon\w+=[\"']|innerHTML|\beval\(", text), path.name
