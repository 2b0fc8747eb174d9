"""`visionad bank confirm --defect --remember MASK`: what is stored, and that verdicts and replays use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from visionad_runtime.cli.main import run

from tests.data import part


def said(capsys: pytest.CaptureFixture[str], *args: object) -> list[dict[str, Any]]:
    """Run a command and return its lines of JSON."""
    capsys.readouterr()
    assert run([str(arg) for arg in args]) == 0, capsys.readouterr().err
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_defect_is_remembered_and_replayed(
    tiny_model: Path, tmp_path: Path, good: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bank, disc = tmp_path / "bank", ["--class", "disc"]
    bad, mask = tmp_path / "bad.png", tmp_path / "mask.png"
    image = part(5, defect=True)
    cv2.imwrite(str(bad), image)
    cv2.imwrite(str(mask), 255 * (np.abs(image.astype(int) - part(5)).max(axis=2) > 20).astype(np.uint8))
    assert run(["bank", "add", str(tiny_model), str(bank), *map(str, good), *disc]) == 0
    (before,) = said(capsys, "predict", tiny_model, bank, bad, *disc, "--json")
    confirm = ["bank", "confirm", tiny_model, bank, bad, *disc]
    assert run([*map(str, confirm), "--good", "--remember", str(mask)]) == 2
    assert run([*map(str, confirm), str(good[0]), "--defect", "--remember", str(mask)]) == 2
    (facts,) = said(capsys, *confirm, "--defect", "--remember", mask, "--json")
    assert (facts["remembered"], facts["confirmed"]) == (1, 1)
    assert run(["bank", "verify", str(bank)]) == 0
    assert run(["bank", "info", str(bank)]) == 0
    assert "a remembered defect" in capsys.readouterr().out
    (after,) = said(capsys, "predict", tiny_model, bank, bad, *disc, "--json")
    assert after["score"] > before["score"]
    assert after["threshold"] == facts["threshold"]
    journal = tmp_path / "journal.jsonl"
    journal.write_text("".join(json.dumps(line) + "\n" for line in (before, after)))
    assert run(["replay", str(tiny_model), str(bank), str(journal)]) == 0
    (report,) = said(capsys, "parity", tiny_model, bank, bad, good[0], *disc, "--json")  # PyTorch, from the formula
    assert report["pass"] is True and report["stages"]["distances"]["max_rel"] < 1e-4
    assert report["bank_features"] == {"disc": "encoded by the reference; remembered defects as stored (1)"}
    good[0].rename(tmp_path / "moved.png")
    (report,) = said(capsys, "parity", tiny_model, bank, bad, *disc, "--json")
    assert report["pass"] is True and report["bank_features"]["disc"].startswith("as stored")
