"""One way to judge an image, for watch, serve and a station."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime import Inspector
from visionad_runtime.errors import BankError
from visionad_runtime.result import Result
from visionad_runtime.station.judging.judge import Judge

from tests.data import part


@pytest.fixture
def inspector(tiny_model: Path, tmp_path: Path) -> Inspector:
    inspector = Inspector.open(tiny_model, tmp_path / "bank", threads=1)
    inspector.enroll("disc", [part(number) for number in range(4)])
    inspector.confirm("disc", [part(number) for number in range(10, 45)])
    return inspector


def facts(result: Result) -> str:
    return json.dumps(
        {key: value for key, value in result.to_dict("x").items() if "ms" not in key and key != "timings"}
    )


@pytest.mark.parametrize("evidence", [False, True])
def test_a_part_an_image_and_a_file_get_the_inspectors_result(
    inspector: Inspector, tmp_path: Path, evidence: bool
) -> None:
    judge, image = Judge(inspector, evidence=evidence), part(50, defect=True)
    rgb = np.ascontiguousarray(image[..., ::-1])
    path = tmp_path / "part.png"
    cv2.imwrite(str(path), image)
    of_file = judge.judge_file(path, "disc", None)
    assert of_file.result is not None and of_file.error is None
    expected = inspector.inspect(image, class_name="disc", evidence=evidence)
    found = [judge.judge(rgb, "disc"), judge.look(rgb, "disc"), of_file.result]
    assert {facts(one) for one in found} == {facts(expected)}


def test_only_parts_are_evidence(inspector: Inspector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = inspector.bank
    assert bank is not None
    limit = bank.classes["disc"].entry.review_threshold
    assert limit is not None
    near = replace(inspector.inspect(part(50), class_name="disc"), score=0.999 * limit, verdict="ok")
    monkeypatch.setattr(inspector, "trace_batch", lambda rgbs, *_, **__: [(near, None)])
    said: list[str] = []
    judge = Judge(inspector, said.append)
    looked = [judge.look(part(50), "disc") for _ in range(200)]
    assert all(one.promise is not None and not one.promise.void for one in looked) and said == []
    judged = [judge.judge(part(50), "disc") for _ in range(200)]
    assert judged[-1].promise is not None and judged[-1].promise.void
    assert len(said) == 1 and judge.promises.void() == {"disc"}


def test_what_cannot_be_judged_is_said(inspector: Inspector, tmp_path: Path) -> None:
    judge = Judge(inspector)
    (tmp_path / "no.png").write_bytes(b"no image")
    outcome = judge.judge_file(tmp_path / "no.png", "disc", None)
    assert outcome.result is None and "no.png" in str(outcome.error)
    with pytest.raises(BankError, match="gear"):
        judge.judge(part(1), "gear")


def test_a_version_of_another_process_is_taken_over(inspector: Inspector, tiny_model: Path) -> None:
    judge = Judge(inspector)
    assert not judge.refresh()
    assert inspector.bank is not None
    with Inspector.open(tiny_model, inspector.bank.folder, threads=1) as other:
        other.enroll("gear", [part(70)])
    assert judge.refresh() and not judge.refresh()
    assert judge.look(part(70), "gear").class_name == "gear"
