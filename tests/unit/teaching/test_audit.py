"""The audit of supports takes recorded scores for the supports that they are of."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from visionad_runtime import Inspector
from visionad_runtime.teaching.audit import leave_one_out_scores
from visionad_runtime.teaching.calibrate import calibrate_class

from tests.data import part


def test_recorded_scores_belong_to_their_supports_whatever_their_order(tiny_model: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), part(i))
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll_files("disc", paths)
        calibrate_class(inspector, "disc", paths[::-1])
        assert inspector.bank is not None
        held = inspector.bank.classes["disc"]
        recorded = leave_one_out_scores(held, inspector.scoring, recorded=True)
        expected = leave_one_out_scores(held, inspector.scoring)
    assert [row.score for row in recorded] == pytest.approx([row.score for row in expected], abs=1e-5)
    assert len({round(row.score, 4) for row in expected}) == 4
