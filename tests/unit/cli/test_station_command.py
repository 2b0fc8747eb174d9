"""``visionad station demo`` says what it lacks before it does anything."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from visionad_runtime.cli.commands import station
from visionad_runtime.cli.main import run


@pytest.mark.parametrize(
    ("absent", "serve", "message"),
    [
        (("websockets",), True, "websockets: pip install 'visionad[page]'"),
        (("pymodbus", "fastapi", "uvicorn"), True, "pymodbus, fastapi, uvicorn: pip install 'visionad[modbus,page]'"),
        (("yaml", "pymodbus", "fastapi"), False, "pyyaml, pymodbus: pip install 'visionad[station,modbus]'"),
    ],
)
def test_the_demo_names_what_it_needs_before_it_runs(
    absent: tuple[str, ...],
    serve: bool,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = ModuleSpec("there", None)
    monkeypatch.setattr(station, "find_spec", lambda name: None if name in absent else there)
    out = tmp_path / "demo"
    assert run(["station", "demo", "--out", str(out), *(["--serve"] if serve else [])]) == 2
    assert capsys.readouterr().err == f"visionad: the demo of a station needs {message}\n"
    assert not out.exists()
