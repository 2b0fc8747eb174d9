"""The command as a user meets it: output, exit status, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest
from visionad_runtime.cli.main import run

from tests.data import ROOT, part, slow


@pytest.fixture
def bank(tiny_model: Path, good: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "bank"
    assert run(["bank", "add", str(tiny_model), str(folder), "--class", "disc", *map(str, good[:2])]) == 0
    return folder


def test_predict_json_lines_in_input_order(
    tiny_model: Path, bank: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.png").write_bytes(good[0].read_bytes()[:200])
    (tmp_path / "empty").mkdir()
    paths = [good[3], tmp_path / "broken.png", tmp_path / "none.png", tmp_path / "empty", good[2]]
    outputs = []
    for batch in ("1", "3", "7"):
        capsys.readouterr()
        status = run(["predict", str(tiny_model), str(bank), *map(str, paths), "--json", "--batch", batch])
        assert status == 2  # two files could not be read, one folder is empty
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    rows = outputs[0]
    assert [r["image"] for r in rows] == list(map(str, paths))
    assert "truncated" in rows[1]["error"] and "cannot be read" in rows[2]["error"]
    assert "holds no image" in rows[3]["error"]
    assert set(rows[0]) == {
        "image", "class", "class_source", "class_margin", "score", "threshold", "verdict", "p_value", "promise", "class_mismatch",
        "bank_version", "bank", "model", "regions", "timings_ms", "backend", "precision",
    }  # fmt: skip
    assert rows[0]["verdict"] == "ok" and rows[0]["promise"]["guaranteed"] == pytest.approx(1 / 3)  # from two supports
    assert set(rows[0]["timings_ms"]) == {
        "decode",
        "preprocess",
        "engine",
        "route",
        "search",
        "map",
        "verdict",
        "total",
    }
    for other in outputs[1:]:
        assert [{**r, "timings_ms": 0} for r in other] == [{**r, "timings_ms": 0} for r in rows]


def test_maps_and_overlays_are_named_after_the_path_below_the_argument(
    tiny_model: Path, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    cv2.imwrite(str(folder / "a" / "x.png"), part(1))
    cv2.imwrite(str(folder / "y.jpg"), part(2))
    maps, overlays = tmp_path / "maps", tmp_path / "overlays"
    common = [str(tiny_model), str(bank), "--class", "disc"]
    assert run(["predict", *common, str(folder), "--maps", str(maps), "--overlays", str(overlays), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert sorted(p.relative_to(maps).as_posix() for p in maps.rglob("*.*")) == ["a/x.npy", "y.npy"]
    assert sorted(p.relative_to(overlays).as_posix() for p in overlays.rglob("*.*")) == ["a/x.png", "y.png"]
    saved = np.load(maps / "a" / "x.npy", allow_pickle=False)
    assert (saved.shape, saved.dtype) == ((256, 256), np.float32)
    assert np.sort(saved.ravel())[-655:].astype(np.float64).mean() == pytest.approx(rows[0]["score"], rel=1e-6)

    before = {p: p.read_bytes() for p in maps.rglob("*.npy")}
    cv2.imwrite(str(folder / "a" / "x.bmp"), part(3))
    assert run(["predict", *common, str(folder), "--maps", str(maps)]) == 2
    assert "written twice" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in maps.rglob("*.npy")} == before  # an error before any work


@pytest.mark.parametrize("option", ["--maps", "--overlays"])
def test_results_are_never_written_over_images(
    tiny_model: Path, bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    image = tmp_path / ("x.npy" if option == "--maps" else "x.png")
    image.write_bytes(cv2.imencode(".png", part(1))[1].tobytes())
    before = image.read_bytes()
    assert run(["predict", str(tiny_model), str(bank), str(image), option, str(tmp_path / "." / "bank" / "..")]) == 2
    assert "would be written over" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_calibrated_verdicts_for_people(
    tiny_model: Path, bank: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["calibrate", str(tiny_model), str(bank), "--class", "disc", str(good[0].parent)]
    assert run(args) == 0  # the best that four images can promise
    assert "4 good parts: at most 20 % false rejects; 19 for 5 %; 99 for 1 %" in capsys.readouterr().out
    assert run([*args, "--max-false-reject", "0.01"]) == 2  # a rate that is asked for must be reached
    assert "takes at least 99 good images" in capsys.readouterr().err
    assert run([*args, "--max-false-reject", "0.25"]) == 0
    assert "confidence" in capsys.readouterr().out
    cv2.imwrite(str(tmp_path / "bad.png"), np.zeros((96, 128, 3), np.uint8))
    assert run(["predict", str(tiny_model), str(bank), "--class", "disc", str(good[2]), str(tmp_path / "bad.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ok ") and lines[1].startswith("anomalous ")
    assert lines[2] == "1 anomalous  1 ok"


def test_bank_commands(bank: Path, tiny_model: Path, good: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bank", "add", str(tiny_model), str(bank), "--class", "nut", str(good[3])]) == 0
    assert run(["bank", "verify", str(bank)]) == 0
    capsys.readouterr()
    assert run(["bank", "info", str(bank), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["version"], info["classes"]["disc"]["shots"], info["classes"]["nut"]["shots"]) == (2, 2, 1)
    assert run(["bank", "info", str(bank)]) == 0
    assert "disc: 2 shots" in capsys.readouterr().out
    sha = info["classes"]["disc"]["images"][0]["sha256"]
    capsys.readouterr()
    assert run(["bank", "remove", str(bank), "--class", "disc", "--image", sha[:8]]) == 0
    gone = info["classes"]["disc"]["images"][0]["source"]
    out, expected = (
        capsys.readouterr().out,
        f"bank version 3: remove disc: {gone}; its threshold was dropped, and its parts are for review ",
    )
    assert out.startswith(expected), out
    assert run(["bank", "remove", str(bank), "--class", "nut"]) == 0
    assert run(["bank", "undo", str(bank)]) == 0
    assert "version 5" in capsys.readouterr().out.splitlines()[-1]
    assert run(["bank", "info", str(bank)]) == 0
    assert "--to VERSION` restores any of: 1, 2, 3, 4" in capsys.readouterr().out.splitlines()[-1]
    assert run(["bank", "undo", str(bank), "--to", "4"]) == 0
    assert "nut" not in capsys.readouterr().out.split("classes:")[-1]
    assert run(["bank", "undo", str(bank), "--to", "77"]) == 2
    assert "version 77 cannot be brought back; those that are kept: 1, 2, 3, 4, 5" in capsys.readouterr().err


def test_shots_and_seed_choose(
    tiny_model: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from visionad_runtime.teaching.sampling import sample_support

    folder = str(good[0].parent)
    for name, extra, expected in (("a", [], [0, 1]), ("b", ["--seed", "3"], sample_support(4, 2, 3))):
        args = [
            "bank",
            "add",
            str(tiny_model),
            str(tmp_path / name),
            "--class",
            name,
            folder,
            "--shots",
            "2",
            "--json",
            *extra,
        ]
        assert run(args) == 0
        capsys.readouterr()
        assert run(["bank", "info", str(tmp_path / name), "--json"]) == 0
        images = json.loads(capsys.readouterr().out)["classes"][name]["images"]
        assert [Path(i["source"]) for i in images] == [good[i] for i in expected]


@pytest.mark.slow(group="command")
def test_a_class_name_in_composed_or_decomposed_letters(tiny_model: Path, good: list[Path], tmp_path: Path) -> None:
    bank, name = str(tmp_path / "bank"), "Mu\u0308hle"
    assert run(["bank", "add", str(tiny_model), bank, "--class", name, str(good[0])]) == 0
    assert run(["predict", str(tiny_model), bank, "--class", name, str(good[1])]) == 0
    assert run(["bank", "audit", str(tiny_model), bank, "--class", name]) == 0
    assert run(["parity", str(tiny_model), bank, str(good[1]), "--class", name]) == 0
    asked = ["--class", name, "--seconds", "0", "--rounds", "1", "--starts", "0", "--backend", "onnxruntime-cpu"]
    assert run(["bench", str(tiny_model), bank, *asked]) == 0
    assert run(["bank", "remove", bank, "--class", name]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nonsense"], "No such command"),
        (["predict"], "Missing argument"),
        (["predict", "{model}"], "Missing argument"),
        (["predict", "{model}", "{bank}", ""], "an argument is empty"),
        (
            ["predict", "{model}", "{bank}", "{good}", "--maps", "{text}"],
            "expected a folder for the results, got a file",
        ),
        (["predict", "{model}", "{bank}", "{good}", "--batch", "0"], "batch"),
        (["predict", "{nowhere}", "{bank}", "{good}"], "does not exist"),
        (["predict", "{model}", "{nowhere}", "{good}"], "bank .* does not exist"),
        (["predict", "{bank}", "{model}", "{good}"], "expected format"),
        (["predict", "{model}", "{bank}", "{good}", "--class", "nut"], "no class 'nut'; it has 'disc'"),
        (["predict", "{model}", "{bank}", "{good}", "--backend", "abacus"], "abacus"),
        (["predict", "{model}", "{bank}", "{good}", "--views", "sepia"], "views sepia"),
        (["predict", "{model}", "{bank}", "{empty}"], "holds no image"),
        (["bank", "add", "{model}", "{bank}", "--class", "disc", "{good}"], "enrolled already"),
        (["bank", "add", "{model}", "{bank}", "--class", "x", "{good}", "{good}"], "same image"),
        (["bank", "add", "{model}", "{bank}", "--class", " ", "{good}"], "class name"),
        (["bank", "add", "{model}", "{bank}", "--class", "x", "{good}", "--shots", "2"], "only 1 images"),
        (["bank", "add", "{model}", "{bank}", "--class", "x", "{good}", "--seed", "2"], "--shots"),
        (["bank", "add", "{model}", "{bank}", "--class", "x", "{text}"], "no image of a known format"),
        (["bank", "add", "{model}", "{bank}", "--class", "x", "{empty}"], "holds no image"),
        (["bank", "add", "{model}", "{folder}", "--class", "x", "{good}"], "not empty and no bank"),
        (["bank", "info", "{nowhere}"], "does not exist"),
        (["bank", "undo", "{bank}"], "nothing to undo"),
        (["bank", "remove", "{bank}", "--class", "x"], "no class 'x'"),
        (["calibrate", "{model}", "{bank}", "--class", "x", "{good}"], "no class 'x'"),
        (["export", "--out", "{nowhere}"], "--backbone"),
        (["export", "--backbone", "resnet_of_my_dreams", "--out", "{nowhere}"], "unknown backbone"),
        (["demo", "--out", "{folder}"], "holds other files"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    args: list[str], message: str, tiny_model: Path, bank: Path, good: list[Path], tmp_path: Path
) -> None:
    import re

    folder = tmp_path / "folder"
    (folder / "empty").mkdir(parents=True)
    (folder / "text.png").write_text("not an image")
    names = {
        "model": tiny_model, "bank": bank, "good": good[0], "nowhere": tmp_path / "nowhere",
        "empty": folder / "empty", "text": folder / "text.png", "folder": folder,
    }  # fmt: skip
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    out, err = StringIO(), StringIO()
    before = sorted((p, p.stat().st_mtime_ns) for p in bank.rglob("*.*") if p.is_file())
    with redirect_stdout(out), redirect_stderr(err):
        status = run([a.format(**names) for a in args])
    lines = err.getvalue().splitlines()
    assert status == 2
    assert len(lines) == 1, lines
    assert re.search(message, lines[0]), lines[0]
    assert not (tmp_path / "nowhere").exists()
    assert sorted((p, p.stat().st_mtime_ns) for p in bank.rglob("*.*") if p.is_file()) == before


def visionad(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    code = "from visionad_runtime.cli.entry import main; main()"
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120, **kwargs
    )


@pytest.mark.parametrize("module", [slow("command", name) for name in ("cv2", "PIL", "safetensors", "onnxruntime")])
def test_a_library_that_does_not_load_is_said_in_one_line(
    tiny_model: Path, bank: Path, tmp_path: Path, module: str
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / f"{module}.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "broken"), *sys.path])}
    done = visionad("predict", tiny_model, bank, tmp_path, env=env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{module} does not import (libGL.so.1" in done.stderr and "): pip install --force-reinstall " in done.stderr
    done = visionad("doctor", "--json", env=env)
    problems = json.loads(done.stdout)["problems"]
    assert json.loads(visionad("doctor", "--model", tiny_model, "--json", env=env).stdout)["problems"][:1] == problems
    assert done.returncode == 2 and [p.split()[0].split(".")[0] for p in problems] == [module], problems
    assert "pip install --force-reinstall" in problems[0]


@pytest.mark.slow(group="command")
def test_what_one_onnx_runtime_leaves_when_the_other_is_uninstalled(
    tiny_model: Path, bank: Path, tmp_path: Path
) -> None:
    """Python imports the folder that is left, and nothing is in it; the one that pip still lists is installed again."""
    left = tmp_path / "left"
    (left / "onnxruntime_gpu-1.31.1.dist-info").mkdir(parents=True)
    (left / "onnxruntime_gpu-1.31.1.dist-info" / "METADATA").write_text("Name: onnxruntime-gpu\nVersion: 1.31.1\n")
    module = "import sys, types; sys.modules['onnxruntime'] = m = types.ModuleType('onnxruntime')"
    without = "sys.modules['openvino'] = None"  # which would run instead
    (left / "sitecustomize.py").write_text(f"{module}; m.__path__ = ['/left/onnxruntime']; {without}")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(left), *sys.path])}
    for backend in ("auto", "onnxruntime-cuda"):
        done = visionad("predict", tiny_model, bank, tmp_path, "--backend", backend, env=env)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "/left/onnxruntime holds only remains of ONNX Runtime" in done.stderr
    problems = json.loads(visionad("doctor", "--json", env=env).stdout)["problems"]
    assert problems[-1].endswith("pip install --force-reinstall onnxruntime-gpu")


def test_foreign_and_damaged_artefacts_by_process(
    tiny_model: Path, bank: Path, good: list[Path], tmp_path: Path
) -> None:
    model = tmp_path / "damaged"
    shutil.copytree(tiny_model, model)
    with open(model / "backbone.onnx", "r+b") as f:
        f.truncate(1000)
    done = visionad("predict", model, bank, good[0])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "damaged" in done.stderr
    for name in bank.glob("supports/*"):
        name.write_bytes(b"x")
    done = visionad("predict", tiny_model, bank, good[0])
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "damaged" in done.stderr and "undo" in done.stderr


def test_no_progress_bar_in_a_pipe_and_a_reader_may_leave(tiny_model: Path, bank: Path, good: list[Path]) -> None:
    done = visionad("predict", tiny_model, bank, good[0].parent)
    assert (done.returncode, done.stderr) == (0, "")
    code = f"{sys.executable} -c 'from visionad_runtime.cli.entry import main; main()' predict {tiny_model} {bank} {good[0].parent}"
    piped = subprocess.run(
        f"set -o pipefail; {code} | head -n 1", shell=True, executable="/bin/bash", capture_output=True, text=True
    )
    assert (piped.returncode, piped.stderr) == (0, "")
    assert piped.stdout.startswith("ok")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("streams", "status", "said"),
    [(">&-", 0, ""), ("2>&-", 0, ""), ("> /dev/full", 2, "visionad: the output could not be written")],
)
def test_streams_that_are_closed_or_full(
    tiny_model: Path, bank: Path, good: list[Path], streams: str, status: int, said: str
) -> None:
    code = f"{sys.executable} -c 'from visionad_runtime.cli.entry import main; main()' predict {tiny_model} {bank} {good[0]}"
    done = subprocess.run(f"{code} {streams}", shell=True, executable="/bin/bash", capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr.startswith(said) and done.stderr.count("\n") == bool(said)


def test_json_is_utf_8_whatever_the_locale_and_the_name(
    tiny_model: Path, bank: Path, good: list[Path], tmp_path: Path
) -> None:
    paths = [tmp_path / os.fsdecode(name) for name in (b"sch\xc3\xb6n.png", b"broken\xff.png")]
    for path in paths:
        shutil.copy(good[0], path)
    code = "from visionad_runtime.cli.entry import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", tiny_model, bank, *paths, "--json"],
        capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert [Path(json.loads(line)["image"]) for line in done.stdout.decode().splitlines()] == paths


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    "moment",
    [
        "discover.find_images = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)",
        "typer.main.get_command = lambda app: os.kill(os.getpid(), signal.SIGINT)",  # before the parser would see to it
        "sys.modules['visionad_runtime.bank.names'] = Native()",
    ],
    ids=["at work", "before", "importing"],
)
def test_ctrl_c_is_said_in_one_line(tiny_model: Path, tmp_path: Path, moment: str) -> None:
    code = f"""import os, signal, sys, typer
from visionad_runtime.images import discover
from visionad_runtime.cli import main as cli
class Native:  # as pybind11 makes it
    def __getattr__(self, name):
        raise ImportError("initialization failed") from KeyboardInterrupt()
{moment}
cli.main()"""
    args = ["bank", "add", str(tiny_model), str(tmp_path / "bank"), "--class", "disc", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "visionad: interrupted; what was finished is kept\n")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_while_the_command_is_imported_is_silent() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["visionad"].split(":")
    code = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        f"sys.meta_path.insert(0, Interrupts())\nimport {module}\nsys.exit({module}.{function}())"
    )
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("package", "fault", "told"),
    [
        ("typer", "raise ImportError('x.so:\\n\\nno file')", "(x.so: no file): pip install --force-reinstall typer"),
        ("numpy", "import numpy._core", "(No module named 'numpy._core'): pip install --force-reinstall numpy"),
        ("pydantic", "raise ModuleNotFoundError(name='pydantic_core')", "(): pip install --force-reinstall pydantic"),
        ("PIL", None, "(import of PIL halted; None in sys.modules): pip install visionad"),
    ],
)  # fmt: skip
def test_a_package_that_does_not_import_is_named(
    tiny_model: Path, tmp_path: Path, package: str, fault: str | None, told: str
) -> None:
    """Those that every command needs, and so `doctor` too; as what is broken, and as what is not there (``None``)."""
    code = "import sys\n"
    if fault is None:
        code += f"import importlib.metadata as m\nsys.modules[{package!r}] = None\nm.packages_distributions = dict\n"
    else:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(fault + "\n")
        code += f"sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from visionad_runtime.cli.entry import main\nmain()"
    args = [
        "bank",
        "add",
        str(tiny_model),
        str(tmp_path / "bank"),
        "--class",
        "disc",
        str(tiny_model / "manifest.json"),
    ]
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, f"visionad: {package} does not import {told}\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_forbidden_file_is_an_error_of_its_own(tiny_model: Path, bank: Path, good: list[Path]) -> None:
    good[2].chmod(0)
    done = visionad("predict", tiny_model, bank, good[2], good[3], "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2
    assert "Permission denied" in rows[0]["error"] and "score" in rows[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_folder(tiny_model: Path, good: list[Path], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        done = visionad("bank", "add", tiny_model, tmp_path / "bank", "--class", "x", good[0])
    finally:
        tmp_path.chmod(0o700)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_place_that_is_a_file(
    tiny_model: Path, good: list[Path], bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for args in (
        ["bank", "add", tiny_model, good[0] / "bank", "--class", "x", good[1]],
        ["predict", tiny_model, bank, good[0], "--maps", good[0]],
        ["predict", tiny_model, bank, good[0], "--overlays", good[0]],
    ):
        assert run([str(arg) for arg in args]) == 2
        assert capsys.readouterr().err.count("\n") == 1, args


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in (
        ([], "predict"),
        (["bank"], "undo"),
        (["--version"], "visionad 0."),
        (["bank", "add", "--help"], "--shots"),
    ):
        assert run(args) == 0
        captured = capsys.readouterr()
        assert said in captured.out and not captured.err


def test_doctor(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json", "--model", str(tiny_model)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["chosen"] == "onnxruntime-cpu"
    assert report["self_test"].startswith("self-test passed")
    assert run(["doctor"]) == 0
    assert "Backend  onnxruntime-cpu" in capsys.readouterr().out


@pytest.mark.parametrize("preset", [slow("command", name) for name in ("full-image", "full-image-weighted")])
def test_a_preset_end_to_end(
    tiny_weights: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], preset: str
) -> None:
    """Reference and runtime agree on a preset's score; a threshold of another score is not used."""
    model, paper, bank = tmp_path / preset, tmp_path / "paper", tmp_path / "bank"
    small = f"--backbone deit_tiny_patch16_224 --weights {tiny_weights} --resize 96 --crop 96 --layers 0-1".split()
    assert run(["export", *small, "--preset", preset, "--out", str(model), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["views"], summary["top_share"], summary["dropped_area"]) == (["original"], 0.002, 0)
    assert summary["rarity"] is (preset == "full-image-weighted")
    assert run(["export", *small, "--views", "original", "--out", str(paper)]) == 0
    paths = [str(p) for p in good]
    assert run(["bank", "add", str(model), str(bank), "--class", "disc", paths[0]]) == 0
    capsys.readouterr()
    assert run(["parity", str(model), str(bank), *paths, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["score"]["max_rel"] <= 1e-4
    assert run(["calibrate", str(model), str(bank), "--class", "disc", *paths[1:], "--max-false-reject", "0.25"]) == 0
    capsys.readouterr()
    # the threshold is the score of one of these very images, which may fall on either side of it
    assert run(["parity", str(model), str(bank), *paths, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict_disagreements"] == []
    scores = []
    for folder, verdicts in ((model, {"ok"}), (paper, {"unknown"})):
        assert run(["predict", str(folder), str(bank), *paths[1:], "--class", "disc", "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {line["verdict"] for line in lines} == verdicts
        scores.append([line["score"] for line in lines])
    # a mean of fewer, larger values is larger; weights below 1 make it smaller all the same
    assert all((ours >= plain) is (preset == "full-image") for ours, plain in zip(*scores, strict=True))
    assert run(["export", *small, "--top-share", "0", "--out", str(tmp_path / "no")]) == 2


def test_parity(
    tiny_model: Path, bank: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from visionad_runtime.bank.memory_bank import SupportTokens
    from visionad_runtime.bank.store import Bank
    from visionad_runtime.bank.supports import NewSupport

    cv2.imwrite(str(tmp_path / "bad.png"), part(5, defect=True))
    paths = [str(good[0].parent), str(tmp_path / "bad.png")]
    assert run(["parity", str(tiny_model), str(bank), *paths, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["pass"] is True
    assert set(report["stages"]) == {
        "bank features", "preprocess", "patch features", "class token", "distances", "map", "score",
    }  # fmt: skip
    assert report["stages"]["preprocess"]["max_abs"] == 0
    assert abs(report["patch_min_cosine"] - 1) < 1e-6
    assert all(s["max_rel"] <= 1e-4 and s["max_rel_image"] for s in report["stages"].values())

    # It must be able to fail: a bank whose rows are not what the reference computes.
    stored = Bank.open(bank)
    right = stored.classes["disc"]
    stored.remove("disc")
    wrong = [
        NewSupport(image, SupportTokens((np.roll(tokens.rois[0], 1, axis=-1),), tokens.class_tokens))
        for image, tokens in zip(right.entry.images, right.supports, strict=True)
    ]
    stored.add("disc", wrong)
    assert run(["parity", str(tiny_model), str(bank), *paths, "--class", "disc", "--json"]) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["pass"] is False
    assert not report["stages"]["bank features"]["pass"] and not report["stages"]["score"]["pass"]
    assert report["stages"]["patch features"]["pass"]


def test_nothing_is_left_below_the_users_home(tmp_path: Path) -> None:
    """ONNX Runtime would put an identifier and a database there, of what it runs."""
    code = (
        "from visionad_runtime.search import nearest; import numpy as np; nearest(*2 * [np.eye(64, dtype=np.float32)])"
    )
    off = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in off} | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["png", "tiff", "pgm"])
def test_parity_with_images_of_12_bits(
    form: str, tiny_model: Path, good: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep, other, colour = (str(tmp_path / f"{name}.{form}") for name in ("deep", "other", "colour"))
    noise = np.random.default_rng(0).integers(0, 16, (2, *part(1).shape[:2]), np.uint16)  # below the 8 bits that count
    for path, seed in ((deep, 0), (other, 1)):
        cv2.imwrite(path, (part(1 + seed)[..., 0].astype(np.uint16) << 4) + noise[seed])
    cv2.imwrite(colour.replace("pgm", "png"), part(3).astype(np.uint16) << 4)
    bank, model = str(tmp_path / "bank"), str(tiny_model)
    assert run(["bank", "add", model, bank, "--class", "disc", deep, "--bit-depth", "12"]) == 0
    assert run(["parity", model, bank, deep, other, "--bit-depth", "12", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["images"] == 2 and report["bank_features"] == {"disc": "encoded by the reference"}
    assert report["stages"]["preprocess"]["max_abs"] == 0
    assert run(["parity", model, bank, str(good[0])]) == 0  # no depth is stated for what is compared
    assert "bank of disc: as stored (the reference cannot read the enrolled images" in capsys.readouterr().out
    if form != "pgm":
        assert run(["parity", model, bank, colour, "--bit-depth", "12"]) == 2
        error = capsys.readouterr().err
        assert "expected a grey image of 16 bits a pixel" in error and "Traceback" not in error
