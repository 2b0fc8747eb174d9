"""What every registered backend must keep, and a backend that is added in one file."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from visionad_runtime.engine import registry
from visionad_runtime.engine.base import BackendSpec, Engine, Probe
from visionad_runtime.engine.registry import auto_backends, backend_spec, backends
from visionad_runtime.errors import VisionADError
from visionad_runtime.formats.manifest import ModelManifest, Precision, read_manifest
from visionad_runtime.pipeline.opening import open_engine
from visionad_runtime.pipeline.self_test import read_golden, self_test

from tests.data import ROOT

GUIDE = ROOT / "docs" / "guides" / "add-a-backend.md"
REMEDY = re.compile(r"pip install|install it|use --?\w|visionad build|JetPack|LD_LIBRARY_PATH|update or uninstall")


@pytest.fixture(scope="module", params=list(backends()))
def spec(request: pytest.FixtureRequest) -> BackendSpec:
    return backend_spec(str(request.param))


@pytest.fixture(scope="module")
def manifest(tiny_model: Path) -> ModelManifest:
    return read_manifest(tiny_model, ModelManifest)


@pytest.fixture(scope="module")
def probed(spec: BackendSpec) -> Probe:
    return spec.probe()


@pytest.fixture(scope="module")
def engine(spec: BackendSpec, probed: Probe, tiny_model: Path, manifest: ModelManifest) -> Iterator[Engine | None]:
    """The opened engine; ``None`` where the backend cannot run here."""
    if not probed.runs:
        yield None
        return
    opened = open_engine(tiny_model, manifest, spec.name, batch_size=len(manifest.views))
    yield opened
    opened.close()


def images(manifest: ModelManifest, count: int) -> NDArray[np.float32]:
    crop = manifest.identity.preprocess.crop
    return np.random.default_rng(0).standard_normal((count, 3, crop, crop)).astype(np.float32)


def test_the_facts_of_a_spec(spec: BackendSpec) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]*", spec.name) and spec.name != registry.AUTO
    assert spec.device and spec.needs and spec.verified
    assert set(spec.precisions) <= set(get_args(Precision))
    assert spec.needs_build is (spec.require_engine is not None)
    assert spec.needs_build or not spec.build_targets
    assert not (spec.experimental and spec.priority is not None)  # auto takes nothing that never passed on its hardware
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if spec.extra is not None:
        named = {re.split(r"[>=<\[; ]", requirement)[0] for requirement in extras[spec.extra]}
        assert set(spec.packages) <= named
    assert {*spec.tested, *spec.not_run} <= {*spec.packages, "onnxruntime", "onnxruntime-gpu"}


def test_a_probe_says_in_one_line_what_mends_it(spec: BackendSpec, probed: Probe) -> None:
    assert probed.why and "\n" not in probed.why
    assert probed.runs or REMEDY.search(probed.why), probed.why


def test_what_cannot_run_is_an_error_when_it_is_asked_for(
    spec: BackendSpec, probed: Probe, tiny_model: Path, manifest: ModelManifest
) -> None:
    if not probed.runs:
        with pytest.raises(VisionADError) as caught:
            open_engine(tiny_model, manifest, spec.name)
        assert "\n" not in str(caught.value)


def test_an_engine_names_itself(spec: BackendSpec, engine: Engine | None, manifest: ModelManifest) -> None:
    if engine is not None:
        assert engine.name == spec.name and 1 <= engine.batch_size <= len(manifest.views)
        assert engine.precision == manifest.precision
        assert engine.info["chosen because"] == "it was requested" and engine.info["self-test"]


def test_tokens_are_unit_rows_of_the_models_shape(engine: Engine | None, manifest: ModelManifest) -> None:
    if engine is None:
        return
    identity = manifest.identity
    for count in (1, 4):
        patch, cls = engine.encode(images(manifest, count))
        assert cls is not None and patch.dtype == cls.dtype == np.float32
        assert patch.shape == (count, identity.grid**2, identity.dim) and cls.shape == (count, identity.class_token_dim)
        for rows in (patch, cls):
            np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-3)
    assert engine.encode(images(manifest, 2), class_token=False).cls is None


def test_a_row_does_not_depend_on_the_others(engine: Engine | None, manifest: ModelManifest) -> None:
    if engine is None:
        return
    several = images(manifest, 2 * engine.batch_size)
    whole = engine.encode(several)
    own = engine.encode(several[: engine.batch_size])
    np.testing.assert_array_equal(whole.patch[: engine.batch_size], own.patch)
    kept = own.patch.copy()
    engine.encode(several[::-1].copy())
    np.testing.assert_array_equal(own.patch, kept)  # no view of a buffer that the next call overwrites


def test_the_self_test_passes(engine: Engine | None, tiny_model: Path, manifest: ModelManifest) -> None:
    if engine is not None:
        assert {"patch_tokens", "class_token", "score", "rms"} <= set(
            self_test(engine, manifest, read_golden(tiny_model))
        )


def test_a_closed_engine_refuses_work(
    spec: BackendSpec, probed: Probe, tiny_model: Path, manifest: ModelManifest
) -> None:
    if not probed.runs:
        return
    engine = open_engine(tiny_model, manifest, spec.name)
    for _ in range(2):
        engine.close()
        with pytest.raises(VisionADError, match=f"{spec.name}: this engine was closed"):
            engine.encode(images(manifest, 1))


def test_a_wish_that_a_backend_does_not_take_is_an_error(
    spec: BackendSpec, tiny_model: Path, manifest: ModelManifest
) -> None:
    for precision in (p for p in get_args(Precision) if p not in (manifest.precision, *spec.precisions)):
        with pytest.raises(VisionADError, match=f"^{spec.name}: expected precision .*, got {precision}; "):
            open_engine(tiny_model, manifest, spec.name, precision=precision)
    if not spec.takes_device:
        with pytest.raises(VisionADError, match=f"^{spec.name}: expected no device, got 'NPU'; "):
            open_engine(tiny_model, manifest, spec.name, device="NPU")


def test_the_table_of_the_docs_says_what_the_spec_says(spec: BackendSpec) -> None:
    text = (ROOT / "docs" / "guides" / "backends.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith(f"| `{spec.name}` |")]
    in_auto = "yes" if spec.priority is not None else "no, experimental" if spec.experimental else "no"
    assert [cell.strip() for cell in row.split("|")[2:6]] == [in_auto, spec.device, spec.needs, spec.verified]


def test_the_table_of_the_docs_is_in_the_order_of_auto() -> None:
    names = re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "docs" / "guides" / "backends.md").read_text(), re.MULTILINE)
    assert [name for name in names if name in backends()] == list(backends())


def test_the_order_of_auto() -> None:
    names = [spec.name for spec in auto_backends()]
    built_in = ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"]
    assert [name for name in names if name in built_in] == built_in
    assert list(backends())[: len(names)] == names


def test_the_registry_loads_no_inference_library() -> None:
    code = (
        "import sys\n"
        "from visionad_runtime.engine.registry import backends; backends()\n"
        "heavy = {'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'pycuda', 'torch', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- a backend in one file ---------------------------------------------------------------------------------------------

ALL = """
import json, sys
from visionad_runtime.cli.main import run
from visionad_runtime.inspector import Inspector
model, bank, image = sys.argv[1:]
assert run(["doctor", "--json"]) == 0
assert run(["predict", model, bank, image, "--json", "--backend", "example"]) == 0
assert run(["predict", model, bank, image, "--json"]) == 0
"""


def installed(folder: Path, text: str) -> dict[str, str]:
    """An environment in which a distribution with one module and one entry point is installed."""
    (folder / "visionad_example.py").write_text(text)
    info = folder / "visionad_example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: visionad-example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[visionad.backends]\nexample = visionad_example:SPEC\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


def test_the_guides_backend_is_added_by_one_file(tiny_model: Path, good: list[Path], tmp_path: Path) -> None:
    from visionad_runtime.cli.main import run

    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    assert run(["bank", "add", str(tiny_model), str(tmp_path / "bank"), "--class", "disc", str(good[0])]) == 0
    arguments = [str(tiny_model), str(tmp_path / "bank"), str(good[1])]
    (tmp_path / "site").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ALL, *arguments],
        env=installed(tmp_path / "site", blocks[0]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    doctor, asked, auto = (json.loads(text) for text in re.split(r"\n(?=\{\")", done.stdout.strip()))
    assert doctor["backends"]["example"] == {"runs": True, "why": "ONNX Runtime is installed"}
    names = list(doctor["backends"])
    assert names.index("onnxruntime-cuda") < names.index("example") < names.index("onnxruntime-cpu")
    assert asked["backend"] == auto["backend"] == doctor["chosen"] == "example"


@pytest.mark.parametrize(
    ("text", "said"),
    [("import no_such_library", "ModuleNotFoundError: No module"), ("SPEC = 3", "expected a BackendSpec, got int")],
)
def test_an_entry_point_that_does_not_load_harms_nobody(tmp_path: Path, text: str, said: str) -> None:
    code = (
        "import json\n"
        "from visionad_runtime.engine.registry import backends\n"
        "print(json.dumps({name: spec.probe()._asdict() for name, spec in backends().items() if name == 'example'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=installed(tmp_path, text), capture_output=True, text=True, check=True
    )
    state = json.loads(done.stdout)["example"]
    assert not state["runs"] and said in state["why"]
    assert state["why"].endswith("update or uninstall visionad-example")
