"""The OpenAPI description: complete, and true of the answers."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("fastapi", reason="serving takes the serve extra")

import numpy as np
from pydantic import BaseModel
from visionad_runtime.result import Promise, Result
from visionad_runtime.scoring.regions import Region
from visionad_runtime.web import answers


def result() -> Result:
    region = Region(bbox=(1, 2, 3, 4), score=0.5, polygon=((1, 2), (3, 4), (1, 4)))
    known = {
        "score": 0.5, "verdict": "anomalous", "class_name": "gear", "class_source": "routed", "class_margin": 0.1,
        "threshold": 0.4, "p_value": 0.05, "promise": Promise(0.01, 0.05, 0.05, 19), "class_mismatch": None, "bank_version": 3,
        "bank": "ab" * 32, "model": "cd" * 32, "regions": (region,), "anomaly_map": np.zeros((256, 256), np.float32),
        "map_scale": (0.0, 1.0), "timings": {"total": 1.0}, "backend": "onnxruntime-cpu", "precision": "fp32",
    }  # fmt: skip
    fields = inspect.signature(Result).parameters
    return Result(**{"geometry": None, "areas": (), **{k: v for k, v in known.items() if k in fields}})  # type: ignore[arg-type]


def test_the_description_of_a_result_names_each_field() -> None:
    facts = result().to_dict("a.png")
    assert {f.alias or n for n, f in answers.Inspection.model_fields.items()} == set(facts)
    assert set(answers.Region.model_fields) == set(facts["regions"][0])
    answers.Inspection.model_validate(facts)


def test_every_model_is_documented() -> None:
    models = [
        m for _, m in inspect.getmembers(answers, inspect.isclass) if issubclass(m, BaseModel) and m is not BaseModel
    ]
    assert len(models) >= 7
    assert all(m.__doc__ for m in models)
