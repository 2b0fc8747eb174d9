"""The guide `docs/guides/add-a-data-set.md`, followed to the letter: one new file, and every command knows the data set."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from visionad_runtime.cli.main import run
from visionad_runtime.tools.evaluation import datasets
from visionad_runtime.tools.evaluation.datasets import registry
from visionad_runtime.tools.evaluation.datasets.base import DatasetError

from tests.data import ROOT

GUIDE = ROOT / "docs" / "guides" / "add-a-data-set.md"


def block(language: str) -> str:
    found = re.search(rf"^ *```{language}\n(.*?)^ *```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layouts and modules of one test are unknown to the next."""
    monkeypatch.setattr(registry, "_layouts", dict(registry.layouts()))
    monkeypatch.setattr(registry, "_broken", set())
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("ok/0", "ok/1", "new/0", "new/1", "masks/1"):
        path = tmp_path / "data" / "bolt" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 255).save(path)
    return tmp_path / "data"


def in_this_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the package's folder; here in a second folder of the package, to leave the first as it is."""
    (folder / "line_camera.py").write_text(block("python"))
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(folder)])


def in_a_package(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str = block("python")) -> None:
    """An installed distribution with the guide's entry point."""
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "line_camera.py").write_text(module)
    target = re.search(r'line-camera = "(.*)"', block("toml"))
    group = re.search(r'entry-points\."(.*)"', block("toml"))
    assert target is not None and group is not None
    info = folder / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group[1]}]\nline-camera = {target[1]}\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("install", [in_this_project, in_a_package])
def test_one_file_adds_a_data_set(
    install: object, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(registry.layouts())
    assert "line-camera" not in before
    (tmp_path / "code").mkdir()
    assert callable(install)
    install(tmp_path / "code", monkeypatch)
    assert set(registry.layouts()) == {*before, "line-camera"}
    data = registry.open_dataset("line-camera", root)
    assert [p.name for p in data.train("bolt")] == ["0.png", "1.png"]
    assert [(s.label, len(s.masks)) for s in data.test("bolt")] == [(0, 0), (1, 1)]
    with pytest.raises(DatasetError, match=r"unknown data set 'mnist'; expected one of .*line-camera"):
        registry.open_dataset("mnist", root)
    assert run(["eval", "--help"]) == 0
    assert "line-camera" in capsys.readouterr().out
    (root / "bolt" / "masks" / "9.png").touch()
    with pytest.raises(DatasetError, match="1 x mask without its image"):
        registry.open_dataset("line-camera", root)


def test_a_package_that_does_not_import_leaves_the_others_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_a_package(tmp_path, monkeypatch, "import a_module_that_is_not_there")
    with caplog.at_level(logging.WARNING, "visionad"):
        for _ in range(2):
            assert "line-camera" not in registry.layouts() and "mvtec" in registry.layouts()
    assert [r.getMessage() for r in caplog.records] == [
        "data set line-camera (my_package.line_camera) cannot be used: ModuleNotFoundError: "
        "No module named 'a_module_that_is_not_there'"
    ]


def test_no_two_layouts_have_one_name() -> None:
    with pytest.raises(ValueError, match=r"'mvtec' is registered twice: by visionad_runtime\..*mvtec and .*test_add"):

        @registry.register("mvtec")
        def other(*_: object) -> dict[str, object]:
            return {}
