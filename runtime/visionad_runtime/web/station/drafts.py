"""``/api/1/draft`` and ``/api/1/versions``: a class is prepared beside the line, put live as one version, and brought back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response
from fastapi import Path as InPath
from fastapi.responses import JSONResponse

from ...errors import BankError
from ...formats.manifest import BankManifest, ClassEntry
from ..uploads import REQUEST_BODY
from . import answers
from .api import API, CHANGE, ERRORS
from .feed import binary
from .inspection import Upload
from .sessions import Anyone, Caller, Reader

FILE_ERRORS = {**ERRORS, **answers.problem_responses(408, 413)}
Class = Annotated[str, Query(alias="class", min_length=1, max_length=100, description="the class of the draft")]
Digest = Annotated[str, InPath(pattern="^[0-9a-f]{64}$")]
Version = Annotated[int, Query(ge=1, description="of the draft, as it was seen; another one is refused")]
Before = Annotated[int, Query(ge=0, description="only older ones; 0: the newest")]
VERSIONS = 100
"""Versions of one answer."""


_NO_THRESHOLD = (
    "it has no threshold: brought back, every part is undecided until a new one is calibrated or set by hand"
)


def add_drafts(app: FastAPI) -> None:
    """Add the endpoints."""
    _add_reading(app)
    _add_changes(app)
    _add_versions(app)


async def _asked(caller: Caller, command: str, values: Mapping[str, Any], blobs: tuple[bytes, ...] = ()) -> Response:
    return JSONResponse((await caller.send(command, values, blobs)).value)


def _add_reading(app: FastAPI) -> None:
    @app.get(f"{API}/drafts", response_model=answers.DraftList, responses=ERRORS)
    async def drafts(caller: Anyone) -> Response:
        """All drafts, and the classes of the bank in force with their number of supports."""
        return await _asked(caller, "drafts", {})

    @app.get(f"{API}/draft", response_model=answers.DraftFacts, responses=ERRORS)
    async def draft(caller: Anyone, class_name: Class) -> Response:
        """A draft: its parts, regions, threshold, and what was collected."""
        return await _asked(caller, "draft_facts", {"class": class_name})

    @app.get(f"{API}/draft/images/{{which}}", response_model=None, response_class=Response, responses=ERRORS)
    async def image(caller: Anyone, which: Digest, class_name: Class) -> Response:
        """Image and heat of a part: a support without itself, by its sha256; or a collected part, by its pixels."""
        answer = await caller.send("draft_image", {"class": class_name, "which": which})
        facts = {key: value for key, value in answer.value.items() if key not in ("regions", "score")}
        header = {"images": [facts], "regions": answer.value["regions"], "score": answer.value["score"]}
        return Response(binary(header, answer.blobs), media_type="application/octet-stream")

    @app.get(f"{API}/draft/what-if", response_model=answers.Done, responses=ERRORS)
    async def what_if(
        caller: Anyone, class_name: Class, threshold: Annotated[float, Query(ge=0, allow_inf_nan=False)]
    ) -> Response:
        """What a threshold would have done with the kept parts that were tried on the draft."""
        return await _asked(caller, "draft_what_if", {"class": class_name, "threshold": threshold})

    @app.post(f"{API}/draft/raster", response_model=answers.Raster, **CHANGE)
    async def raster(caller: Anyone, class_name: Class, body: answers.Regions) -> Response:
        """The patches that regions would leave to be scored. Nothing is changed."""
        return await _asked(caller, "draft_raster", {"class": class_name, "regions": _regions(body)})


def _regions(body: answers.Regions) -> dict[str, Any] | None:
    return None if body.regions is None else body.regions.model_dump(exclude_none=True)


def _add_changes(app: FastAPI) -> None:
    def change(path: str, command: str, body_type: Any, text: str) -> None:
        async def endpoint(body: Any, caller: Anyone, class_name: Class) -> Response:
            return await _asked(caller, command, {**body.model_dump(), "class": class_name})

        endpoint.__annotations__["body"] = body_type
        endpoint.__doc__, endpoint.__name__ = text, command
        app.post(f"{API}/draft{path}", response_model=answers.DraftFacts, **CHANGE)(endpoint)

    change("", "draft_begin", answers.Nothing, "Begin a draft of a class, or go on with the one that there is.")
    change("/discard", "draft_discard", answers.OfVersion, "Give a draft up. The line keeps what it has.")
    change(
        "/parts",
        "draft_add",
        answers.SeenPart,
        "Take the image of a part of the line, or a live frame, as a good part.",
    )
    change("/collect", "draft_collect", answers.Collecting, "Begin to collect all parts of the line, or end it.")
    change(
        "/threshold", "draft_threshold", answers.WantedRate, "Calibrate the draft with the collected parts that count."
    )
    change(
        "/threshold/by-hand",
        "draft_by_hand",
        answers.TypedThreshold,
        "Set a threshold by hand, which promises nothing.",
    )
    change("/effect", "draft_effect", answers.OfVersion, "Begin to try the newest kept parts on the draft.")
    change(
        "/live", "draft_live", answers.OfVersion, "Put parts, regions and threshold live, as one version of the bank."
    )

    @app.post(
        f"{API}/draft/files", response_model=answers.DraftFacts, responses=FILE_ERRORS, openapi_extra=REQUEST_BODY
    )
    async def file(caller: Anyone, class_name: Class, version: Version, upload: Upload) -> Response:
        """Take the image file in the body as a good part."""
        rgb = upload.rgb
        values = {"class": class_name, "version": version, "shape": list(rgb.shape), "name": upload.name}
        return await _asked(caller, "draft_add", values, (rgb.tobytes(),))

    @app.post(f"{API}/draft/parts/{{support}}/remove", response_model=answers.DraftFacts, **CHANGE)
    async def remove(support: Digest, body: answers.OfVersion, caller: Anyone, class_name: Class) -> Response:
        """Take a part out of the draft."""
        return await _asked(caller, "draft_remove", {**body.model_dump(), "class": class_name, "support": support})

    @app.post(f"{API}/draft/parts/{{support}}/decide", response_model=answers.DraftFacts, **CHANGE)
    async def decide(support: Digest, body: answers.Reason, caller: Anyone, class_name: Class) -> Response:
        """Say why a part that stands out is good all the same. It is kept in the audit."""
        return await _asked(caller, "draft_decide", {**body.model_dump(), "class": class_name, "support": support})

    @app.post(f"{API}/draft/regions", response_model=answers.DraftFacts, **CHANGE)
    async def regions(body: answers.NewRegions, caller: Anyone, class_name: Class) -> Response:
        """Change what is inspected. Thresholds from collected parts are dropped."""
        values = {"class": class_name, "version": body.version, "regions": _regions(body)}
        return await _asked(caller, "draft_regions", values)

    @app.post(f"{API}/draft/collected/{{pixels}}", response_model=answers.DraftFacts, **CHANGE)
    async def look(pixels: Digest, body: answers.Looked, caller: Anyone, class_name: Class) -> Response:
        """Note that a person has looked at a collected part, and whether it counts."""
        return await _asked(caller, "draft_look", {**body.model_dump(), "class": class_name, "pixels": pixels})


def _add_versions(app: FastAPI) -> None:
    bank: Path = app.state.bank

    @app.get(f"{API}/versions", response_model=answers.VersionPage, responses=ERRORS)
    async def versions(
        _: Reader, before: Annotated[int, Query(ge=0, description="only older ones; 0: the newest")] = 0
    ) -> Response:
        """Versions of the line's bank, newest first: each class's parts, threshold and regions, and what to know before it is
        brought back.
        """
        return JSONResponse(await asyncio.to_thread(_versions, bank, before))

    @app.post(f"{API}/versions/{{number}}/back", response_model=answers.Done, **CHANGE)
    async def back(
        number: Annotated[int, InPath(ge=1)], body: answers.Nothing, caller: Anyone, class_name: Class
    ) -> Response:
        """Bring a class of an older version back: its parts, regions and threshold become a new version.

        A class that had no threshold then makes every part undecided. `GET versions` says so under `warning`.
        """
        del body
        return await _asked(caller, "version_back", {"class": class_name, "version": number})


def _versions(bank: Path, before: int) -> dict[str, Any]:
    from ...bank.folder import read_version, restorable_versions  # only now: a page that shows no bank stays small

    kept = sorted(restorable_versions(bank).items(), reverse=True)
    wanted = [path for version, path in kept if not before or version < before]
    rows, damaged = [], []
    for path in wanted[:VERSIONS]:
        try:
            rows.append(_version(read_version(path)))
        except BankError as exc:
            damaged.append(str(exc))
    return {"versions": rows, "more": len(wanted) > VERSIONS, "problems": damaged}


def _version(manifest: BankManifest) -> dict[str, Any]:
    classes = {name: _class(entry) for name, entry in manifest.classes.items()}
    return {"version": manifest.version, "time_utc": manifest.created, "change": manifest.change, "classes": classes}


def _class(entry: ClassEntry) -> dict[str, Any]:
    record = entry.promising
    return {
        "parts": len(entry.images),
        "threshold": entry.threshold,
        "warning": _NO_THRESHOLD if entry.threshold is None else "",
        "rate": None if record is None else record.guaranteed_false_reject,
        "normals": None if record is None else record.normals,
        "by_hand": None if entry.by_hand is None else entry.by_hand.model_dump(mode="json"),
        "regions": [] if entry.roi is None else list(entry.roi.names),
        "ignored": entry.roi is not None and bool(entry.roi.ignore or entry.roi.mask),
    }
