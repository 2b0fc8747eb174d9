"""Code, documentation and messages use the project's words (CONTRIBUTING.md, "Words")."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.data import ROOT

SUFFIXES = {".py", ".md", ".toml", ".yml", ".yaml", ".cff", ".sh", ".c", ".html", ".css", ".js", ".txt", ""}
BANNED = {
    "picture": (re.compile("picture", re.IGNORECASE), "image"),
    "enrol": (re.compile("enrol(?!l)", re.IGNORECASE), "enroll"),
    "wanted, found": (re.compile(r"\bwanted\b[^\n]*\bfound\b", re.IGNORECASE), "expected …, got …"),
}
ALLOWED = {
    "picture_": "names of arrays in the resumable store of eval",
    "pictures_per_s": "a field of bench's JSON, which other programs read",
    "visionad_pictures": "a metric of serve, which dashboards read",
    "joules_per_picture": "a field of bench's JSON",
    '"pictures"': "a field of the JSON of bench, audit and eval",
    "'pictures'": "a field of JSON, in an f-string",
    '["enrol': "a field of result files",
}
"""Allowed text that has a banned word → the reason."""
BRITISH = re.compile(
    r"\b\w*(?:colour|grey|centre|neighbour|behaviour|favour|licence"
    r"|(?:normal|recogn|real|organ|initial|optim|summar|serial|synchron|minim|maxim)is(?:e|ed|es|ing|ation)\b)\w*",
    re.IGNORECASE,
)
CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
"""Code in Markdown. Names in it stay as they are: the spelling is that of prose."""
EXCEPT = {
    "CONTRIBUTING.md": "names the words that are not used",
    "CHANGELOG.md": "names what was renamed",
    "tests/project/test_words.py": "this file",
    "runtime/visionad_runtime/_release.py": "names what was renamed",
    "benchmarks/tables.py": "reads the fields of result files made before the words changed",
    "benchmarks/results/": "records of runs stay as they were written",
}
"""Files and folders that are not checked → the reason."""


def tracked() -> list[Path]:
    """Return the repository's text files."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in done.stdout.split("\0") if name and not name.startswith(tuple(EXCEPT))]
    return [ROOT / name for name in names if Path(name).suffix in SUFFIXES and (ROOT / name).is_file()]


def violations(text: str) -> list[str]:
    """Return the lines with a banned word, each with its number and the word to use."""
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        rest = line
        for allowed in ALLOWED:
            rest = rest.replace(allowed, "")
        lines += [
            f"{number}: use {better!r}: {line.strip()[:90]}" for word, better in BANNED.values() if word.search(rest)
        ]
    return lines


def test_no_banned_word() -> None:
    lines = []
    for path in tracked():
        text = path.read_text(encoding="utf-8", errors="ignore")
        lines += [f"{path.relative_to(ROOT)}:{line}" for line in violations(text)]
    assert not lines, f"{len(lines)} lines, the first:\n" + "\n".join(lines[:40])


def test_documents_are_in_american_english() -> None:
    pages = [path for path in tracked() if path.suffix == ".md"] + [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    words = {
        f"{path.relative_to(ROOT)}: {word}"
        for path in pages
        for word in BRITISH.findall(CODE.sub("", path.read_text(encoding="utf-8")))
    }
    assert not words


def test_british_words_are_seen_outside_of_code() -> None:
    text = "the realised colour, normalised\n`colour`\n```python\ngrey = 1\n```\nrealistic, organism"
    assert BRITISH.findall(CODE.sub("", text)) == ["realised", "colour", "normalised"]


@pytest.mark.parametrize(
    "line",
    [
        "a picture",
        "two Pictures",
        "find_pictures",
        "PictureError",
        "check_picture(x)",
        "to enrol a part",
        "the enrolment",
        'f"wanted {a}, found {b}"',
    ],
)
def test_banned_words_are_seen(line: str) -> None:
    assert violations(line)


@pytest.mark.parametrize(
    "line",
    [
        "an image",
        "enroll, enrolled, enrolling, enrollment",
        '"pictures_per_s"',
        "visionad_pictures_total",
        "what was found",
        "expected 3, got 4",
    ],
)
def test_other_words_are_not(line: str) -> None:
    assert not violations(line)
