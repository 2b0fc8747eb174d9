"""The documentation agrees with the result files and the code, and its links resolve."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import typer

from tests.data import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
GENERATED = (
    "docs/reference/cli.md",
    "docs/reference/schemas.md",
    "docs/reference/images.md",
    "docs/reference/station.md",
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]*))?\)")


def load(folder: str, name: str) -> ModuleType:
    sys.path.insert(0, str(ROOT / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / folder))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load("benchmarks", "tables")


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "<!-- table" in page.read_text()], ids=lambda page: page.name
)
def test_tables_equal_the_result_files(page: Path, tables: ModuleType) -> None:
    text = page.read_text()
    assert tables.filled(text) == text, "run `python benchmarks/tables.py`"


def test_every_table_is_on_a_page(tables: ModuleType) -> None:
    used = {match[1] for page in PAGES for match in tables.MARK.finditer(page.read_text())}
    assert used == set(tables.TABLES)


def test_a_stale_table_is_seen(tables: ModuleType) -> None:
    stale = "a\n<!-- table overhead -->\n| old |\n<!-- end -->\nb\n"
    filled = tables.filled(stale)
    assert filled != stale
    assert filled.startswith("a\n<!-- table overhead -->\n| measured |")
    assert filled.endswith("<!-- end -->\nb\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve() if target else page
        name = path.relative_to(ROOT).as_posix()
        if name in GENERATED:
            continue
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_the_front_page_links_every_page() -> None:
    docs = ROOT / "docs"
    pages = {path.relative_to(ROOT).as_posix() for path in docs.rglob("*.md")} | set(GENERATED)
    linked = {f"docs/{target}" for target, _ in LINK.findall((docs / "index.md").read_text())}
    assert pages - {"docs/index.md"} == linked


def test_the_readme_has_every_command() -> None:
    from visionad_runtime.cli.main import app

    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    rows = re.findall(r"^\| (`visionad .*?`) \| ", text, re.MULTILINE)
    words = {word for row in rows for word in re.findall(r"[a-z]+", row)}
    assert set(typer.main.get_command(app).commands) <= words  # type: ignore[attr-defined]


def test_the_layers_are_those_that_are_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = " > ".join(next(one["layers"] for one in settings if one["type"] == "layers"))
    for name in ("CONTRIBUTING.md", "docs/architecture.md"):
        assert layers in " ".join((ROOT / name).read_text().split()), name


def test_the_guide_has_every_metric_of_the_service() -> None:
    web = ROOT / "runtime" / "visionad_runtime" / "web"
    code = "".join((web / name).read_text() for name in ("metrics.py", "image_metrics.py"))
    metrics = set(re.findall(r'"(visionad_\w+)"', code))
    guide = (ROOT / "docs" / "guides" / "line.md").read_text()
    assert len(metrics) >= 8
    assert [name for name in sorted(metrics) if f"`{name}" not in guide] == []


def test_the_api_page_has_every_module_that_guides_and_examples_import() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    pattern = re.compile(r"^from (visionad_runtime\.[\w.]+) import", re.MULTILINE)
    modules = {name for page in pages for name in pattern.findall(page.read_text(encoding="utf-8"))}
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    assert len(modules) >= 6
    assert [name for name in sorted(modules) if f"`{name}`" not in text] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the site makes them."""
    slugs = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE):
        explicit = re.search(r"\{ #(\S+) \}", heading)
        slug = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        slugs.add(explicit[1] if explicit else re.sub(r"[\s-]+", "-", slug))
    return slugs


def test_the_command_page_has_every_command_and_option() -> None:
    from visionad_runtime.cli.main import app

    text = load("docs", "generate").command_page()
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"predict", "bank", "export"} <= set(commands)
    for name, command in commands.items():
        assert f"## `visionad {name}`" in text
        for parameter in command.params:
            for option in (o for o in parameter.opts if o.startswith("--")):
                assert option in text, f"{name} {option}"


def test_the_schema_page_has_every_field() -> None:
    text = load("docs", "generate").schema_page()
    for field in ("weights_sha256", "top_share", "threshold", "undo_to"):
        assert f'"{field}"' in text


def test_the_image_page_has_every_kind_and_ending() -> None:
    from visionad_runtime.images.support import ENDINGS, ROWS

    text = load("docs", "generate").image_page()
    assert all(row.content in text for row in ROWS)
    assert all(f"`{ending}`" in text for group in ENDINGS.values() for ending in group)


def test_the_station_page_explains_every_key_alarm_and_register() -> None:
    from visionad_runtime.station.settings import StationSettings
    from visionad_runtime.station.sinks.modbus import ModbusSettings
    from visionad_runtime.station.sinks.modbus_map import CONTROL_BITS, REGISTERS, STATUS_BITS
    from visionad_runtime.station.worker.checks import ALARMS

    generate = load("docs", "generate")
    text = generate.station_page()
    for model in (StationSettings, ModbusSettings):
        rows = [row for row in generate.key_rows(model) if row[0] != "kind"]
        assert len(rows) >= len(model.model_fields) - 1
        assert [key for key, _, _, meaning in rows if not meaning] == [], "explain it in the model's docstring"
    keys = {row[0] for row in generate.key_rows(StationSettings)}
    assert {"checks.golden.overdue", "recipes.NUMBER.class", "archive.keep.ok", "shifts.zone"} <= keys
    assert all(f"| `{key}` |" in text for key in keys)
    assert all(f"| `{code}` | {meaning} | {remedy} |" in text for code, (meaning, remedy) in ALARMS.items())
    assert all(f"`{name}`" in text for name in (*CONTROL_BITS, *STATUS_BITS, *(row.name for row in REGISTERS)))


def test_the_committed_modbus_map_is_that_of_the_code() -> None:
    generate = load("docs", "generate")
    for path, text in generate.FILES.items():
        assert (ROOT / "docs" / path).read_text() == text(), "run `python docs/generate.py`"


def test_the_program_for_a_plc_uses_the_bits_of_the_map() -> None:
    from visionad_runtime.station.sinks.modbus_map import CONTROL_BITS, REGISTERS, STATUS_BITS

    text = (ROOT / "docs" / "guides" / "station.md").read_text()
    code = re.search(r"```iecst\n(.*?)```", text, re.DOTALL)
    assert code is not None
    bits = re.findall(r"(Inp|Out)\[0\]\.(\d+)[^\n]*?\(\* (control|status)\.(\w+) \*\)", code[1])
    assert len(bits) == len(re.findall(r"(?:Inp|Out)\[0\]\.", code[1])) >= 10  # each is named
    for block, bit, register, name in bits:
        assert (block, register) in (("Inp", "status"), ("Out", "control"))
        assert (STATUS_BITS if register == "status" else CONTROL_BITS)[int(bit)] == name
    words = re.findall(r"(Inp|Out)\[(\d+)\](?!\.)[^\n]*?\(\* (\w+) \*\)", code[1])
    assert len(words) >= 3
    known = {(row.space, row.address): row.name for row in REGISTERS}
    for block, address, name in words:
        assert known["input" if block == "Inp" else "holding", int(address)] == name


def test_the_station_file_of_the_guide_is_sound(tmp_path: Path) -> None:
    from visionad_runtime.station.settings import read_station

    text = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "guides" / "station.md").read_text(), re.DOTALL)
    assert text is not None
    (tmp_path / "station.yaml").write_text(text[1])
    assert read_station(tmp_path / "station.yaml").settings.station == "press-3"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="building the site takes the docs extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "visionad predict" in (tmp_path / "site" / "reference" / "cli" / "index.html").read_text()
