"""What support asks for: the newest lines of the logs, and a bundle of everything but images and passwords."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from fastapi import FastAPI, Query, Response
from fastapi.responses import JSONResponse

from ...formats.manifest import MANIFEST
from ...station.settings import StationSettings
from . import answers
from .api import API, ERRORS
from .history import Filter, History
from .sessions import Anyone

LINES = 300
"""Lines of each log that the page shows."""
TAIL_BYTES = 1_000_000
"""Of each log in a bundle."""
IMAGES = 20
"""Rejects whose images a bundle may hold."""
DOCTOR_SECONDS = 120
_SECRET = re.compile("token|password|secret|passphrase|credential|api_?key", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?P<start>\w+://[^\s/:@]+:)[^\s/@]+(?=@)")


def add_support(app: FastAPI) -> None:
    """Add ``/api/1/log`` and ``/api/1/bundle``, for administrators."""
    settings: StationSettings = app.state.settings
    history: History = app.state.history

    @app.get(f"{API}/log", response_model=answers.Logs, responses=ERRORS)
    async def log(caller: Anyone) -> Response:
        """The newest lines of the station's logs."""
        await caller.ask("support")
        found = await asyncio.to_thread(lambda: {name: tail(path, TAIL_BYTES) for name, path in logs(settings)})
        return JSONResponse({"logs": {name: text.splitlines()[-LINES:] for name, text in found.items()}})

    @app.get(f"{API}/bundle", response_model=None, response_class=Response, responses=ERRORS)
    async def bundle(caller: Anyone, images: Annotated[bool, Query()] = False) -> Response:
        """A ZIP file: station file without secrets, health, `visionad doctor`, logs, bank, newest records and audit."""
        health = (await caller.ask("support")).value
        data = await asyncio.to_thread(make_bundle, app.state.file, settings, history, health, images)
        headers = {"content-disposition": f'attachment; filename="visionad-{settings.station}.zip"'}
        return Response(data, media_type="application/zip", headers=headers)


def logs(settings: StationSettings) -> Iterator[tuple[str, Path]]:
    """Yield the station's log files that exist, by name; none if it logs to the terminal."""
    path = settings.log
    if path is None:
        return
    for role in ("", "-worker", "-teach"):
        own = path.with_name(f"{path.stem}{role}{path.suffix}")
        if own.is_file():
            yield own.name, own


def tail(path: Path, size: int) -> str:
    """Return the last bytes of a file as text, from the beginning of a line on."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, 2) - size)
            file.seek(start)
            data = file.read(size)
    except OSError as exc:
        return f"{path} cannot be read: {exc.strerror}"
    text = data.decode("utf-8", "replace")
    return text.partition("\n")[2] if start else text


def without_passwords(text: str) -> str:
    """Return a text with ``***`` in place of the passwords in its URLs."""
    return _URL_PASSWORD.sub(r"\g<start>***", text)


class _Loader(yaml.SafeLoader):
    """Reads a station file without looking up its environment variables."""


_Loader.add_constructor("!env", lambda _, node: f"!env {node.value}")


def without_secrets(text: str) -> str:
    """Return a station file with ``***`` in place of tokens, passwords and the like. Names of environment variables stay.

    Args:
        text: YAML. Its comments are left out.
    """
    try:
        return yaml.safe_dump(_masked(yaml.load(text, _Loader)), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as exc:
        return f"not YAML: {exc}\n"


def _masked(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _masked(one, str(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [_masked(one, key) for one in value]
    if _SECRET.search(key) and value is not None and not str(value).startswith("!env "):
        return "***"
    return without_passwords(value) if isinstance(value, str) else value


def make_bundle(file: Path, settings: StationSettings, history: History, health: dict[str, Any], images: bool) -> bytes:
    """Return a ZIP file with what support asks for.

    Args:
        file: the station file.
        settings: what it says.
        history: its records.
        health: of the station.
        images: whether archived images of the newest rejects are added.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, text: str) -> None:
            archive.writestr(name, text)

        add("station.yaml", without_secrets(file.read_text("utf-8", "replace")))
        add("health.json", json.dumps(health, indent=1, ensure_ascii=False))
        add("doctor.json", _doctor())
        for name, path in logs(settings):
            add(f"logs/{name}", without_passwords(tail(path, TAIL_BYTES)))
        for name, path in (("bank.json", settings.bank / MANIFEST), ("model.json", settings.model / MANIFEST)):
            add(name, path.read_text("utf-8", "replace") if path.is_file() else f"{path} is missing")
        records: list[dict[str, Any]] = []
        for page in range(10):
            found = history.page(Filter(before=records[-1]["id"] if page else 0))
            records += found["records"]
            if not found["more"]:
                break
        add("records.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
        add("audit.json", json.dumps(history.audit(0, 1000), indent=1, ensure_ascii=False))
        rejects = history.page(Filter(verdict="not_ok"))["records"][:IMAGES] if images else []
        for one in rejects:
            full = history.one(one["id"])
            for path in map(Path, full["archived"] if full else ()):
                if path.is_file():
                    archive.write(path, f"images/{path.name}", zipfile.ZIP_STORED)
    return buffer.getvalue()


def _doctor() -> str:
    """Return what ``visionad doctor --json`` says: of this installation, in a process of its own."""
    program = "import sys; from visionad_runtime.cli.entry import main; sys.exit(main())"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, "doctor", "--json"], capture_output=True, text=True, timeout=DOCTOR_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return json.dumps({"error": str(exc)})
    return done.stdout or json.dumps({"error": done.stderr[-2000:]})
