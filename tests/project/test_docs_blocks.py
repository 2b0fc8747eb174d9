"""Every Python and shell block of README and docs runs, in a folder that holds the files it names, or says why it cannot.

A block that cannot run here has ``<!-- not run: reason -->`` on the line before it. The blocks of a page run in order and share
their variables. A block with ``title="NAME"`` is first written to that file. A guide that a unit test names as its ``GUIDE``
is left to that test.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.data import ROOT
from tests.workplace import make_workplace

TESTED_APART = {
    name
    for path in (ROOT / "tests" / "unit").rglob("test_*.py")
    for name in re.findall(r'^GUIDE = .*"([\w-]+)\.md"$', path.read_text(encoding="utf-8"), re.MULTILINE)
}
"""Guides that a unit test follows step by step, because they need files or weights of their own."""
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.stem not in TESTED_APART)]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^ *```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n(?P<code>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
SHELL = ("bash", "sh", "console", "shell")
MAX_NOT_RUN = 24
"""Limit of blocks that are not run. Raise it only for a reason that holds on every test machine."""


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    code: str
    reason: str | None
    title: str | None


def blocks(page: Path) -> list[Block]:
    """Return the page's Python and shell blocks, and those that are files."""
    fenced = [
        Block(m["language"], m["code"], m["reason"], m["title"])
        for m in FENCE.finditer(page.read_text(encoding="utf-8"))
    ]
    return [block for block in fenced if block.title or block.language in ("python", *SHELL)]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return make_workplace(tmp_path_factory.mktemp("prepared"), tiny_model)


@pytest.fixture
def place(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, a copy for each page."""
    folder = shutil.copytree(prepared, tmp_path / "place", symlinks=True)
    monkeypatch.chdir(folder)
    return folder


def run_shell(code: str) -> None:
    """Run the ``visionad`` commands of a shell block in this process.

    Raises:
        AssertionError: a command fails, or is not ``visionad``: such a block needs a reason not to run.
    """
    from visionad_runtime.cli.main import run

    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if not words:
            continue
        assert words[0] == "visionad", f"cannot run {words[0]!r} here: put <!-- not run: reason --> before the block"
        assert run(words[1:]) == 0, line


@pytest.mark.parametrize("page", [page for page in PAGES if any(not b.reason for b in blocks(page))], ids=page_id)
def test_the_blocks_of_a_page_run(page: Path, place: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks(page), 1):
        if block.reason:
            continue
        if block.title:
            (place / block.title).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.code, f"{page_id(page)}, block {number}", "exec"), names)
        else:
            run_shell(block.code)


NOT_RUN = [(page_id(page), block.reason) for page in PAGES for block in blocks(page) if block.reason is not None]


@pytest.mark.parametrize(("page", "reason"), NOT_RUN)
def test_blocks_that_are_not_run(page: str, reason: str) -> None:
    """Listed among the skipped tests."""
    assert reason.strip()
    pytest.skip(f"{page}: {reason}")


def test_few_blocks_are_not_run() -> None:
    assert len(NOT_RUN) <= MAX_NOT_RUN
