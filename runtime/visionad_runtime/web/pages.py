"""The page of ``visionad serve``: inspect images by hand, teach good parts. It is a reduced form of a station's pages."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from .station import bundle
from .station.gate import HEADERS

STATIC = Path(bundle.__file__).parent / "static"
_HEADERS = {**HEADERS, "cache-control": "no-cache"}


def add_pages(app: FastAPI) -> None:
    """Add the page under ``/`` and its files under ``/static``."""
    files = {path.relative_to(STATIC).as_posix(): path for path in STATIC.rglob("*") if path.is_file()}

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        missing = bundle.missing_bundle(STATIC)
        if missing:
            return Response(missing, 503, media_type="text/plain; charset=utf-8")
        return FileResponse(STATIC / "service.html", headers=_HEADERS)

    @app.get("/static/{name:path}", include_in_schema=False)
    async def static(name: str) -> Response:
        path = files.get(name)
        if path is None or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path, headers=_HEADERS)
