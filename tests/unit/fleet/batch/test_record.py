"""A record that is damaged, or of another run, is refused in one line, by `compare` and by a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="batch runs take the batch extra")

from visionad_runtime.cli.main import run
from visionad_runtime.errors import VisionADError
from visionad_runtime.fleet.batch.record import FIELDS, FORMAT, RUN_FILE, SCHEMA_VERSION, read_record, write_record
from visionad_runtime.fleet.storage import open_storage

WHOLE: dict[str, Any] = {
    "format": FORMAT,
    "schema_version": SCHEMA_VERSION,
    **{name: kind() for name, kind in FIELDS.items()},
}
DAMAGED = {
    "list": [],
    "null": None,
    "nothing": {},
    "text": "x",
    "version": {**WHOLE, "schema_version": 2},
    "type": {**WHOLE, "blocks": "3"},
    "truth": {**WHOLE, "blocks": True},
    **{name: {k: v for k, v in WHOLE.items() if k != name} for name in WHOLE},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_record_is_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / RUN_FILE).write_text(json.dumps(DAMAGED[name]))
    assert run(["compare", str(tmp_path), str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert RUN_FILE in err and len(err.splitlines()) == 1
    with pytest.raises(VisionADError, match=RUN_FILE):
        write_record(open_storage(str(tmp_path)), WHOLE)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000], ids=["empty", "bytes", "deep"])
def test_what_is_no_json_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_bytes(data)
    with pytest.raises(VisionADError, match="not JSON"):
        read_record(open_storage(str(tmp_path)))


def test_a_run_goes_on_beside_its_own_record_alone(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    for _ in range(2):
        write_record(storage, {**WHOLE, "run": "a"})
    assert read_record(storage) == {**WHOLE, "run": "a"}
    with pytest.raises(VisionADError, match="another run"):
        write_record(storage, {**WHOLE, "run": "b"})
