"""Runs over sources that hold an image several times."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="batch runs take the batch extra")

from visionad_runtime.fleet.batch import compare as module
from visionad_runtime.fleet.batch.compare import Row, compare

Run = dict[str, list[Row]]


def row(class_name: str | None, score: float, verdict: str = "ok") -> Row:
    return Row(class_name, score, 0.5, verdict)


def compared(a: Run, b: Run, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Row, Row]]:
    monkeypatch.setattr(module, "read_run", {"a": ({}, a), "b": ({}, b)}.__getitem__)
    found = compare("a", "b", tolerance=-1)
    assert found.images == len(found.largest)
    assert found.only == tuple(sum(map(len, run.values())) - found.images for run in (a, b))
    return [(one.image, one.before, one.after) for one in found.largest]


def test_an_image_of_two_classes_counts_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    a = {"p.png": [row("disc", 0.1), row("grid", 0.2)]}
    b = {"p.png": [row("grid", 0.9, "anomalous"), row("disc", 0.1)]}
    pairs = compared(a, b, monkeypatch)
    assert [(before.class_name, after.class_name) for _, before, after in pairs] == [("grid", "grid"), ("disc", "disc")]


def test_what_is_routed_otherwise_is_still_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    a = {"p.png": [row("disc", 0.1), row("disc", 0.2), row("grid", 0.3)], "q.png": [row("disc", 0.4)]}
    b = {"p.png": [row("disc", 0.1), row("grid", 0.3), row("grid", 0.9)], "q.png": [row(None, 0.5)]}
    pairs = {(image, before.score, after.score) for image, before, after in compared(a, b, monkeypatch)}
    assert pairs == {("p.png", 0.1, 0.1), ("p.png", 0.3, 0.3), ("p.png", 0.2, 0.9), ("q.png", 0.4, 0.5)}


def test_what_one_run_lacks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    a = {"p.png": [row("disc", 0.1), row("disc", 0.2)], "r.png": [row("disc", 0.2)]}
    assert len(compared(a, {"p.png": [row("disc", 0.1)]}, monkeypatch)) == 1


def test_a_run_keeps_both_classes_of_an_image(tmp_path: Path) -> None:
    import json

    from visionad_runtime.fleet.batch.record import FIELDS, FORMAT, SCHEMA_VERSION
    from visionad_runtime.fleet.batch.rows import to_parquet

    facts = [
        {"id": i, "image": "p.png", "class": name, "score": 0.1, "threshold": 0.5, "verdict": "ok"}
        for i, name in enumerate(("disc", "grid"))
    ]
    (tmp_path / "part-00000000.parquet").write_bytes(to_parquet(facts))
    (tmp_path / "part-00000001.parquet").write_bytes(to_parquet(facts[:1]))  # a row that stands twice
    record = {name: kind() for name, kind in FIELDS.items()}
    record |= {"format": FORMAT, "schema_version": SCHEMA_VERSION, "blocks": 2}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert [one.class_name for one in module.read_run(str(tmp_path))[1]["p.png"]] == ["disc", "grid"]
