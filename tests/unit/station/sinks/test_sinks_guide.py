"""The guide on sinks: its example works, its station file is valid, and its tables are those of the code."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from visionad_runtime.station.sink import SINKS, SinkError

from tests.data import ROOT

GUIDE = ROOT / "docs" / "guides" / "sinks.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def test_the_example_delivers_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    match = re.search(r'```python title="label_printer.py"\n(.*?)```', TEXT, re.DOTALL)
    assert match
    (tmp_path / "label_printer.py").write_text(match[1], encoding="utf-8")
    info = tmp_path / "label_printer-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: label-printer\nVersion: 1\n")
    entry = re.search(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    assert entry
    lines = entry[1].replace('[project.entry-points."visionad.sinks"]', "[visionad.sinks]").replace('"', "")
    (info / "entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "printer" in SINKS.kinds()
    leaf: Any = SINKS.load("printer")
    printed: list[bytes] = []

    async def scenario() -> None:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            printed.append(await reader.read())
            writer.close()

        server = await asyncio.start_server(take, "127.0.0.1", 0)
        sink = leaf("label", leaf.Settings(kind="printer", host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
        await sink.store({"id": 1, "part": "a", "evaluation": 1, "reason": "none"})
        await sink.store({"id": 2, "part": "b", "evaluation": 2, "reason": "anomalous"})
        while not printed:
            await asyncio.sleep(0.01)
        server.close()
        await server.wait_closed()
        with pytest.raises(SinkError, match="check it"):
            await sink.store({"id": 3, "part": "c", "evaluation": 3, "reason": "camera"})

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert printed == [b"2 b anomalous\n"]


def test_the_table_of_kinds_is_the_registry() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:server|client|outputs|writer) \|", TEXT, re.MULTILINE)
    assert sorted(rows) == sorted(SINKS._builtin)


def test_the_station_file_lines_are_valid() -> None:
    yaml = pytest.importorskip("yaml")
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!env", lambda _loader, node: node.value)  # type: ignore[attr-defined]
    entries = [one for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) for one in yaml.load(block, loader)]
    assert {one["kind"] for one in entries} == {"tcp", "mqtt", "webhook", "files", "opcua", "gpio"}
    for one in entries:
        SINKS.load(one["kind"]).Settings.model_validate(one)


def test_the_flat_variables_are_all_listed() -> None:
    pytest.importorskip("asyncua")
    from visionad_runtime.station.sinks.opcua.flat import FLAT

    table = TEXT.partition("| group | variables |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`(\w+)`", table))
    assert listed == {*FLAT, "Heartbeat"}


def test_no_sink_imports_its_library_before_it_runs() -> None:
    code = (
        "import sys; from visionad_runtime.station.sink import SINKS\n"
        "for kind in ('mqtt', 'webhook', 'files', 'opcua', 'gpio'): SINKS.load(kind)\n"
        "loaded = {'paho', 'asyncua', 'gpiod', 'pymodbus', 'cryptography', 'yaml', 'numpy', 'onnxruntime'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
