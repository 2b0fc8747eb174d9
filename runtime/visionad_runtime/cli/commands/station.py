"""``visionad station``: run a production line's station, or check, start and try one."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ...errors import VisionADError
from ..console import complain, progress, say


def station(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE | init FILE | demo",
            help="station file; init writes a commented one; demo runs a simulated line",
        ),
    ],
    check: Annotated[bool, typer.Option("--check", help="check the file and all that it needs; start nothing")] = False,
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose",
            help="try each camera and each bus, step by step, while the station is stopped; record nothing",
        ),
    ] = False,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="use folders instead of cameras, and set the bit `simulated`")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="folder of `station demo`")] = Path("visionad-demo"),
    parts: Annotated[
        int, typer.Option("--parts", min=1, help="parts of `station demo`; more than there are: again")
    ] = 12,
    serve: Annotated[
        bool, typer.Option("--serve", help="`station demo`: show the station in the browser, until Ctrl-C")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="of `station demo --serve`")] = 8000,
) -> int:
    """Run a station: cameras in, verdicts out, until Ctrl-C or SIGTERM."""
    if words[0] == "init" and len(words) == 2:
        return _init(Path(words[1]))
    if words == ["demo"]:
        return _demo(out, parts, port if serve else None)
    if len(words) != 1:
        raise VisionADError("expected a station file, `init FILE`, or `demo`")
    try:
        import yaml  # noqa: F401
    except ImportError:
        raise VisionADError("a station needs pyyaml: pip install 'visionad[station]'") from None
    from ...station.settings import StationFileError, read_station
    from ...station.sink import SinkError

    path = Path(words[0])
    try:
        found = read_station(path, simulate=simulate)
    except StationFileError as exc:
        for line in exc.problems:
            complain(line)
        return 2
    if diagnose:
        from ...station.diagnosis import diagnose as diagnose_station

        return 0 if diagnose_station(found, say) else 1
    from ...station.preflight import problems_of

    problems = problems_of(found)
    for line in problems:
        complain(line)
    if problems:
        return 2
    if check:
        say(
            f"{path}: sound: {len(found.cameras)} cameras, {len(found.settings.recipes)} recipes, {len(found.sinks)} sinks"
        )
        return 0
    import asyncio

    from ...station.front.front import Front
    from ...station.front.logs import start_logging

    try:
        asyncio.run(Front(found, simulate=simulate, say=start_logging(found.settings.log)).run())
    except SinkError as exc:
        raise VisionADError(str(exc)) from None
    return 0


def _check_demo_packages(pages: bool) -> None:
    """Check what the demo of a station needs, before any of it runs.

    Raises:
        VisionADError: A package is missing. The message names all that are, and the command that installs them.
    """
    needed = {"yaml": ("pyyaml", "station"), "pymodbus": ("pymodbus", "modbus")}
    if pages:
        needed |= {name: (name, "page") for name in ("fastapi", "uvicorn", "httptools", "websockets")}
    missing = [needed[name] for name in needed if find_spec(name) is None]
    if missing:
        packages, extras = (", ".join(name for name, _ in missing), ",".join(dict.fromkeys(of for _, of in missing)))
        raise VisionADError(f"the demo of a station needs {packages}: pip install 'visionad[{extras}]'")


def _demo(out: Path, parts: int, port: int | None) -> int:
    _check_demo_packages(port is not None)
    from ...tools.demo.run import run_demo
    from ...tools.demo.station import run_station_demo
    from .demo import export_for_demo

    if not (out / "bank" / "manifest.json").is_file():
        run_demo(out, data=None, shots=4, threads=None, export_model=export_for_demo, say=say, progress=progress)
    run_station_demo(out, parts, say, port)
    return 0


def _init(path: Path) -> int:
    from ...formats.files import atomic_write
    from ...station.template import TEMPLATE

    if path.exists():
        raise VisionADError(f"{path} exists already; choose another name, or edit it")
    atomic_write(path, TEMPLATE.encode())
    say(f"wrote {path}: fill in model, bank, cameras and recipes, then `visionad station {path} --check`")
    return 0
