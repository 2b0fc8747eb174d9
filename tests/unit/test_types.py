"""Our calls of TensorRT against its published type stubs (10.13): names and signatures that no machine here could try out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data import ROOT

CHECKED = tuple(f"visionad_runtime.engine.tensorrt.{name}" for name in ("api", "builder", "engine"))
CONFIG = """[mypy]
strict = True
explicit_package_bases = True
ignore_missing_imports = True
[mypy-tensorrt.*,tensorrt_bindings.*]
ignore_errors = True
"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stubs, with the two things mended for which no type checker can read them: a parameter called `in`, and one without
    a default behind others with."""
    found = next((Path(p) for p in sys.path if (Path(p) / "tensorrt_bindings" / "tensorrt.pyi").exists()), None)
    if found is None:
        pytest.skip("takes the stubs: pip install --no-deps tensorrt-stubs")
    out = tmp_path_factory.mktemp("stubs")
    for package in ("tensorrt", "tensorrt_bindings"):
        (out / package).mkdir()
        for file in (found / package).glob("*.pyi"):
            text = re.sub(r"([(,] ?)in: ", r"\1in_: ", file.read_text())
            (out / package / file.name).write_text(text.replace("channel_axis: int)", "channel_axis: int = ...)"))
    (out / "mypy.ini").write_text(CONFIG)
    return out


def check(stubs: Path, runtime: Path) -> str:
    env = {**os.environ, "MYPYPATH": f"{stubs}:{runtime}", "PYTHONPATH": ""}
    modules = [word for name in CHECKED for word in ("-m", name)]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        str(stubs / "mypy.ini"),
        "--cache-dir",
        str(stubs / "cache"),
        *modules,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=stubs).stdout


@pytest.mark.slow(group="tensorrt-rtx")
def test_our_calls_fit_the_stubs(stubs: Path) -> None:
    assert check(stubs, ROOT / "runtime").startswith("Success"), check(stubs, ROOT / "runtime")


@pytest.mark.slow(group="tensorrt-rtx")
def test_a_wrong_call_would_be_found(stubs: Path, tmp_path: Path) -> None:
    import shutil

    runtime = tmp_path / "runtime"
    shutil.copytree(ROOT / "runtime", runtime, ignore=shutil.ignore_patterns("__pycache__"))
    package = runtime / "visionad_runtime" / "engine" / "tensorrt"
    for name, right, wrong in (
        ("builder.py", "builder.create_builder_config()", "builder.make_config()"),
        ("engine.py", "execute_async_v3(", "execute_async_v3(1, "),
    ):
        text = (package / name).read_text()
        assert right in text
        (package / name).write_text(text.replace(right, wrong))
    said = check(stubs, runtime)
    assert '"Builder" has no attribute "make_config"' in said and 'Too many arguments for "execute_async_v3"' in said
