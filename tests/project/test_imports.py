"""The structure of the code, as a fact: no import circle at all, and nothing below the command line knows the exporter.

`lint-imports` holds the order of the layers (pyproject.toml). This test holds what that tool cannot say of imports inside functions
and under ``TYPE_CHECKING``: it reads every import statement of every module.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "visionad_runtime": ROOT / "runtime" / "visionad_runtime",
    "visionad_export": ROOT / "export" / "visionad_export",
    "visionad_ref": ROOT / "visionad_ref" / "visionad_ref",
}


def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a module imports, wherever the statement stands."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                found.add(full if full in known else source)
    return {target for target in found if target in known and target != name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def test_no_module_is_part_of_an_import_circle() -> None:
    known = modules()
    graph = {name: imports(name, path, known) for name, path in known.items()}
    assert sum(map(len, graph.values())) > 200, "the imports were not found"
    assert circles(graph) == []


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize("package", ["visionad_export", "visionad_ref"])
def test_only_the_command_line_names_the_exporter(package: str) -> None:
    folder = PACKAGES["visionad_runtime"]
    naming = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if re.search(rf"\b{package}\b", path.read_text(encoding="utf-8")) and path.relative_to(folder).parts[0] != "cli"
    }
    assert naming == set()


def test_the_reference_imports_nothing_of_the_product() -> None:
    known = modules()
    for name, path in known.items():
        if name.startswith("visionad_ref"):
            assert not {t for t in imports(name, path, known) if not t.startswith("visionad_ref")}, name


def test_modules_stay_small_and_the_top_level_too() -> None:
    """Limits of docs/architecture.md. Rendering, kernels and work tables may be longer."""
    folder = PACKAGES["visionad_runtime"]
    assert len(list(folder.glob("*.py"))) <= 8
    assert len([p for p in folder.iterdir() if p.is_dir() and any(p.glob("*.py"))]) <= 16
    longer = {"rendering.py", "source.py", "work_tables.py"}
    for path in modules().values():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 500 or path.name in longer, f"{path.relative_to(ROOT)} has {lines} lines; split it by its jobs"
