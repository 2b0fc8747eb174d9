"""The workflows, the table of slow groups and the hooks: they parse, and what they call exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.data import ROOT

yaml = pytest.importorskip("yaml", reason="pyyaml comes with the export extra")

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FROM_REGISTRY = {"pip", "python", "pip-audit", "deptry", "cyclonedx-py", "sudo"}
"""Programs that a job installs or that the runner has."""
MODULES = {"build": "build", "venv": "venv"}


def load_slow() -> ModuleType:
    """Return the script `.ci/slow` as a module."""
    loader = SourceFileLoader("ci_slow", str(ROOT / ".ci" / "slow"))
    spec = importlib.util.spec_from_loader("ci_slow", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def run_steps(path: Path) -> list[str]:
    """Return the shell lines of a workflow."""
    jobs: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(("run" in step) != ("uses" in step) for step in steps)
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[\w./]+", step["uses"]) for step in steps if "uses" in step)
    return [line for step in steps for line in step.get("run", "").splitlines()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_a_workflow_parses_and_calls_what_exists(path: Path) -> None:
    commands = load_run().COMMANDS
    for line in run_steps(path):
        program, *arguments = line.split()
        if program == "bash":
            assert (ROOT / arguments[0]).is_file(), line
        elif (Path(program).name == "python" and arguments[0].endswith(".py")) or arguments[0].startswith(".ci/"):
            assert (ROOT / arguments[0]).is_file(), line
            if arguments[0] == "run.py":
                assert arguments[1] in commands, line
            if arguments[0] == ".ci/slow":
                assert {a for a in arguments[1:] if not a.startswith("-")} <= set(load_slow().read_table()), line
        elif Path(program).name == "python":
            assert arguments[0] == "-m" and arguments[1] in MODULES, line
        else:
            assert Path(program).name in FROM_REGISTRY, line


def load_run() -> ModuleType:
    """Return run.py as a module."""
    spec = importlib.util.spec_from_file_location("run_script", ROOT / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_make_has_the_commands_of_run_py() -> None:
    targets = re.findall(r"^([\w -]+):$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(" ".join(targets).split()) == set(load_run().COMMANDS)


def test_hooks_and_templates_parse() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    names = {hook["id"] for repo in hooks["repos"] for hook in repo["hooks"]}
    assert names >= {"ruff", "ruff-format", "end-of-file-fixer", "check-added-large-files", "codespell"}
    forms = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / ".github").glob("ISSUE_TEMPLATE/*")}
    assert any("visionad doctor --json" in part["attributes"]["label"] for part in forms["bug.yml"]["body"])


def test_pip_s_settings_reach_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run()
    listed = ":env:.find-links='/one/place'\nglobal.extra-index-url='https://a.example https://b.example'\nglobal.quiet='1'\n"
    done = subprocess.CompletedProcess((), 0, listed)
    monkeypatch.setattr(run.subprocess, "run", lambda *_, **__: done)
    monkeypatch.delenv("UV_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("UV_FIND_LINKS", "/asked/for")  # what the user sets for uv stays
    variables = run.uv_environment(Path(sys.executable))
    assert variables["UV_EXTRA_INDEX_URL"] == "https://a.example https://b.example" and "UV_FIND_LINKS" not in variables


def test_every_slow_group_has_its_line_and_every_glob_a_file() -> None:
    slow = load_slow()
    table = slow.read_table()
    used = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text("utf-8")
        used |= set(re.findall(r"mark\.slow\(group=\"([\w-]+)\"\)", text)) | set(
            re.findall(r"\bslow\(\s*\"([\w-]+)\"", text)
        )
    assert used == {name for name, group in table.items() if "paths" in group and "tests" not in group}
    assert all("first" in group for group in table.values() if not group.keys() & {"paths", "tests"})
    known = {"tests", "paths", "first", "inputs", "packages", "environment", "alone", "workers"}
    for name, group in table.items():
        assert set(group) <= known and group["packages"], name
        for glob in [*group["inputs"], *group.get("paths", [])]:
            assert slow.files([glob]), f"{name}: nothing matches {glob}"


def test_a_group_without_tests_is_its_commands() -> None:
    group = {"inputs": ["*.py"], "packages": ["mypy"]}
    assert load_slow().run("only", {**group, "first": [["-c", "pass"]]}) == 0
    assert load_slow().run("only", {**group, "first": [["-c", "raise SystemExit(3)"], ["-c", "pass"]]}) == 3


def test_a_group_runs_again_once_an_input_or_a_package_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = load_slow()
    monkeypatch.setattr(slow, "ROOT", tmp_path)
    monkeypatch.setattr(slow, "PASSED", tmp_path / "passed")
    monkeypatch.setattr(slow, "COMMON", [])
    (tmp_path / "one.py").write_text("1")
    ran, statuses, releases = [], {"good": 0, "bad": 1}, {"library": "1.0"}
    table = {name: {"inputs": ["*.py"], "packages": ["library"]} for name in statuses}
    monkeypatch.setattr(slow, "read_table", lambda: table)
    monkeypatch.setattr(slow, "version", releases.get)
    monkeypatch.setattr(slow, "run", lambda name, *_: (ran.append(name), statuses[name])[1])

    def call(*arguments: str) -> tuple[int, list[str]]:
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["slow", *arguments])
        return slow.main(), sorted(ran)  # two run at the same time

    assert call("--list") == (0, [])
    assert call() == (1, ["bad", "good"])
    assert call() == (1, ["bad"])  # what failed is tried again
    assert call("good") == (0, [])
    assert call("good", "--all") == (0, ["good"])
    (tmp_path / "one.py").write_text("2")
    assert slow.why("good", slow.state("good", table["good"])) == "changed: one.py"
    assert call("good") == (0, ["good"])
    releases["library"] = "1.1"
    assert call("good") == (0, ["good"])
    (tmp_path / "two.py").write_text("")
    assert call("good") == (0, ["good"])
    assert call("good") == (0, [])


def test_two_groups_run_at_a_time_and_some_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = load_slow()
    monkeypatch.setattr(slow, "ROOT", tmp_path)
    monkeypatch.setattr(slow, "PASSED", tmp_path / "passed")
    monkeypatch.setattr(slow, "COMMON", [])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it starts in a tenth of the time
    (tmp_path / "one.py").write_text("1")
    # A group that shares the cores waits until the other one of its pair is there too, and a third one is not.
    (tmp_path / "first.py").write_text(
        "import os, pathlib, sys, time\n"
        "name = sys.argv[1]\n"
        "here = pathlib.Path('here')\n"
        "here.mkdir(exist_ok=True)\n"
        "(here / name).touch()\n"
        "print(f'{name} begins with', os.environ['OMP_NUM_THREADS'], flush=True)\n"
        "end = time.monotonic() + 60\n"
        "while name in ('a', 'b') and len(list(here.iterdir())) < 2: assert time.monotonic() < end; time.sleep(0.01)\n"
        "if name in ('a', 'b'): time.sleep(0.3)\n"
        "assert len(list(here.iterdir())) <= (1 if name in ('d', 'e') else 2)\n"
        "print(f'{name} ends', flush=True)\n"
        "(here / name).unlink()\n"
        "sys.exit(name == 'c')\n"
    )
    (tmp_path / "test_none.py").write_text("")
    settings = {"first": [], "paths": ["test_none.py"], "inputs": ["one.py"], "packages": []}
    table = {name: {**settings, "first": [["first.py", name]], "alone": name in ("d", "e")} for name in "dabec"}
    monkeypatch.setattr(slow, "read_table", lambda: table)
    monkeypatch.setattr(sys, "argv", ["slow"])
    assert slow.main() == 1
    assert sorted(path.stem for path in (tmp_path / "passed").glob("*.json")) == ["a", "b", "d", "e"]
    said = capfd.readouterr().out
    assert "slow groups that failed: c" in said
    for name in "abcde":
        start, end = (said.index(f"{name} {word}") for word in ("begins", "ends"))
        between = said[start:end]
        assert f"{name} begins with {2 if name in ('d', 'e') else 1}" in between
        assert not any(f"{other} begins" in between for other in "abcde" if other != name), said
    assert max(said.index(f"{name} ends") for name in "abc") < min(said.index(f"{name} begins") for name in "de")
