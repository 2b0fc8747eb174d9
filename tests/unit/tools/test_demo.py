"""The demo from end to end on the user's own parts, with the tiny model in place of the one that it would export."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime.bank.store import Bank
from visionad_runtime.errors import BankError
from visionad_runtime.tools.demo.run import run_demo

from tests.data import part

NORMALS = 5


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes as MVTec-AD lays them out; one mask is a label map, another lies in two files."""
    root = tmp_path / "data"
    for kind in ("disc", "grid"):
        for folder, count in (("train/good", 2 + NORMALS), ("test/good", 2), ("test/scratch", 2)):
            (root / kind / folder).mkdir(parents=True)
            for i in range(count):
                seed = i + 100 * ("test" in folder) + 200 * ("scratch" in folder)
                cv2.imwrite(str(root / kind / folder / f"{i:03}.png"), part(seed, "scratch" in folder, kind))
        truth = root / kind / "ground_truth" / "scratch"
        (truth / "001").mkdir(parents=True)
        mask = np.zeros((96, 128), np.uint8)
        mask[40:60, 50:80] = 1
        cv2.imwrite(str(truth / "000_mask.png"), mask)
        cv2.imwrite(str(truth / "001" / "0.png"), 255 * mask)
        cv2.imwrite(str(truth / "001" / "1.png"), 255 * np.roll(mask, 20, axis=1))
    return root


def demo(out: Path, data: Path) -> tuple[str, list[str]]:
    """The summary, and what was said on the way."""
    said: list[str] = []

    def progress(_what: str, _total: int) -> AbstractContextManager[object]:
        return nullcontext(lambda: None)

    def export(_backbone: str, _model: Path) -> dict[str, object]:
        pytest.fail("it exported, though there is a model")

    return run_demo(out, data=data, shots=2, threads=1, export_model=export, say=said.append, progress=progress), said  # type: ignore[arg-type]


def test_on_own_parts(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_model, out / "model")
    summary, said = demo(out, data)
    assert "inspect  8 images" in summary and "from an earlier run" in said[0]
    rows = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    assert len(rows) == 8 == len(list((out / "overlays").rglob("*.png")))
    assert all(row["threshold"] is not None or row["class"] is None for row in rows)
    page = (out / "report.html").read_text()
    assert page.count('<article class="case') == 8
    # five good parts cannot promise the 5 % that nineteen can
    assert f"disc {1 / (NORMALS + 1):.1%}; grid {1 / (NORMALS + 1):.1%}" in page and "at most 5" not in page


def test_goes_on_after_an_interruption(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended between the old classes' removal and the first enrollment, it has left a bank without a class."""
    out = tmp_path / "out"
    shutil.copytree(tiny_model, out / "model")
    demo(out, data)

    def end(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(Bank, "add", end)
        with pytest.raises(KeyboardInterrupt):
            demo(out, data)
    assert not Bank.open(out / "bank").classes
    demo(out, data)
    assert sorted(Bank.open(out / "bank").classes) == ["disc", "grid"]


def test_a_bank_of_another_model_is_refused_untouched(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_model, out / "model")
    demo(out, data)
    before = (out / "bank" / "manifest.json").read_text()
    (out / "bank" / "manifest.json").write_text(before.replace('"layers": [\n   0', '"layers": [\n   5'))
    changed = (out / "bank" / "manifest.json").read_text()
    assert changed != before
    with pytest.raises(BankError, match="was made with"):
        demo(out, data)
    assert (out / "bank" / "manifest.json").read_text() == changed


def test_on_one_class_by_a_relative_path(
    tiny_model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    shutil.copytree(tiny_model, tmp_path / "out" / "model")
    summary, _ = demo(tmp_path / "out", Path("disc"))
    assert "inspect  4 images" in summary
    assert (tmp_path / "out" / "overlays" / "disc" / "test" / "scratch" / "000.png").is_file()
