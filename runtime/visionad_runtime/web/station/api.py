"""``/api/1``: what the pages ask for and change. Each change goes to the front, which checks the role and audits it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import AfterValidator, AwareDatetime, BeforeValidator

from ...station.records.records import verify_audit
from ...station.records.shifts import YEARS
from ..queue import RequestError
from . import answers
from .feed import Feed, binary, utc_text
from .history import Filter, History
from .link import CommandError
from .report_process import Form, Reports
from .sessions import COOKIE, Anyone, Reader

ERRORS = answers.problem_responses(401, 404, 409, 412, 423, 429)
PartNumber = Annotated[int, InPath(ge=1, le=answers.MAX_NUMBER)]
API = "/api/1"
MAX_TIME = timedelta(days=366)
"""Longest time of which statistics are made at once."""


def add_api(app: FastAPI) -> None:
    """Add the endpoints."""
    _add_sessions(app)
    _add_commands(app)
    _add_records(app)
    _add_administration(app)


def _json_only(request: Request) -> None:
    """Refuse what a form of another site could send."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(400, "expected a body of the type application/json")


CHANGE: dict[str, Any] = {"responses": ERRORS, "dependencies": [Depends(_json_only)]}


def _add_sessions(app: FastAPI) -> None:
    @app.post(f"{API}/login", response_model=answers.SessionFacts, **CHANGE)
    async def login(body: answers.Login, caller: Anyone, request: Request) -> Response:
        """Log in: by name and password, as the panel, or as the first user by the code that the station printed."""
        address = request.client.host if request.client else ""
        values = {**body.model_dump(), "address": address}
        facts = (await request.app.state.link.ask("login", session=caller.key, **values)).value
        answer = JSONResponse({key: facts[key] for key in ("name", "role", "panel")})
        answer.set_cookie(COOKIE, facts["session"], path="/", secure=True, httponly=True, samesite="strict")
        return answer

    @app.post(f"{API}/logout", response_model=answers.Done, **CHANGE)
    async def logout(body: answers.Nothing, caller: Anyone) -> Response:
        """Log out. A panel falls back to its operator."""
        del body
        await caller.ask("logout")
        return JSONResponse({})

    @app.get(f"{API}/session", response_model=answers.SessionFacts, responses=ERRORS)
    async def session(caller: Anyone) -> Response:
        """Who is logged in."""
        return JSONResponse(await caller.session())


def _add_commands(app: FastAPI) -> None:
    def command(path: str, name: str, body_type: Any, text: str) -> None:
        async def endpoint(body: Any, caller: Anyone) -> Response:
            return JSONResponse((await caller.ask(name, **body.model_dump())).value)

        endpoint.__annotations__["body"] = body_type
        endpoint.__doc__, endpoint.__name__ = text, name
        app.post(f"{API}/{path}", response_model=answers.Done, **CHANGE)(endpoint)

    command(
        "seen", "seen", answers.Seen, "Note that a person has seen what was not ok, up to a part. The PLC is not told."
    )
    command("recipe", "recipe", answers.RecipeChoice, "Prepare a recipe, while the page has control.")
    command("control", "control", answers.ControlChoice, "Take control from the PLC, or hand it back.")
    command("fault/clear", "clear", answers.Nothing, "Clear a fault whose cause is gone.")
    command("trigger", "trigger", answers.TriggerPart, "Inspect a part, while the page has control.")
    command("worker/restart", "restart_worker", answers.Nothing, "Replace the worker process.")
    command("users", "user_add", answers.NewUser, "Add a user, or change one's password or role.")

    @app.post(f"{API}/users/{{name:path}}/remove", response_model=answers.UserList, **CHANGE)
    async def remove(name: str, body: answers.Nothing, caller: Anyone) -> Response:
        """Remove a user. The last admin stays. A name of an older release may hold a slash."""
        del body
        return JSONResponse((await caller.ask("user_remove", name=name)).value)

    @app.post(f"{API}/records/{{number}}/review", response_model=answers.Done, **CHANGE)
    async def review(number: PartNumber, body: answers.Review, caller: Anyone) -> Response:
        """Say whether a part was good. The newest review counts; all stay in the audit. It changes no threshold."""
        return JSONResponse((await caller.ask("review", id=number, good=body.good, note=body.note)).value)

    @app.post(f"{API}/records/{{number}}/keep", response_model=answers.Done, **CHANGE)
    async def keep(number: PartNumber, body: answers.Nothing, caller: Anyone) -> Response:
        """Write the images of one of the newest parts to the archive. The answer comes when they lie there."""
        del body
        return JSONResponse((await caller.ask("keep", id=number)).value)

    @app.post(f"{API}/records/{{number}}/replay", response_model=answers.Replay, **CHANGE)
    async def replay(number: PartNumber, body: answers.Nothing, caller: Anyone) -> Response:
        """Compute an archived part again with the bank version that it was judged with, and compare all bits."""
        del body
        return JSONResponse((await caller.ask("draft_replay", record=number)).value)


def _time(value: object) -> object:
    """Refuse a bare number: it could be seconds, milliseconds or a year."""
    if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d*\.?\d*\s*", value):
        raise ValueError(f"expected a time such as 2026-11-30T06:00:00Z, got {value!r}")
    return value


def _known(moment: datetime) -> datetime:
    if moment.year not in YEARS:
        raise ValueError(f"expected a time from {YEARS[0]} to {YEARS[-1]}, got {moment.isoformat()}")
    return moment


Moment = Annotated[AwareDatetime, BeforeValidator(_time), AfterValidator(_known)]
"""A time with an offset: without one, it would mean another moment in each zone."""


def _filter(
    before: Annotated[
        int, Query(ge=0, le=answers.MAX_NUMBER, description="only parts with smaller numbers; 0: the newest")
    ] = 0,
    verdict: Annotated[Literal["", "ok", "reject", "undecided", "not_ok"], Query()] = "",
    recipe: Annotated[int, Query(ge=0, le=answers.MAX_NUMBER)] = 0,
    part: Annotated[str, Query(max_length=100, description="what the part's text begins with")] = "",
    start: Annotated[Moment | None, Query(alias="from", description="included, with an offset")] = None,
    end: Annotated[Moment | None, Query(alias="to", description="not included, with an offset")] = None,
    review: Annotated[Literal["", "none", "good", "bad"], Query()] = "",
) -> Filter:
    first, last = (utc_text(moment) if moment else "" for moment in (start, end))
    return Filter(before, verdict, recipe, part, first, last, review)


Filters = Annotated[Filter, Depends(_filter)]
Start = Annotated[Moment, Query(alias="from", description="included, with an offset")]
End = Annotated[Moment, Query(alias="to", description="not included, with an offset")]


def _add_records(app: FastAPI) -> None:
    history: History = app.state.history
    reports: Reports = app.state.reports
    archive: Path | None = app.state.archive

    @app.get(f"{API}/state", response_model=answers.Done, responses=ERRORS)
    async def state(_: Reader) -> Response:
        """State and counts of the shift, as the events `state` and `counts` have them."""
        feed: Feed = app.state.feed
        return JSONResponse({**feed.state, "counts": feed.counts, "boot": feed.hello.get("boot")})

    @app.get(f"{API}/records", response_model=answers.RecordPage, responses=ERRORS)
    async def records(_: Reader, wanted: Filters) -> Response:
        """A hundred parts, newest first."""
        return JSONResponse(await asyncio.to_thread(history.page, wanted))

    @app.get(f"{API}/records/{{number}}", response_model=answers.FullRecord, responses=ERRORS)
    async def record(number: PartNumber, _: Reader) -> Response:
        """A part with everything that is recorded of it."""
        return JSONResponse(await _found(history, number))

    @app.get(f"{API}/records/{{number}}/images", response_model=None, response_class=Response, responses=ERRORS)
    async def images(number: PartNumber, caller: Reader) -> Response:
        """Images and heat of one of the newest parts: length of the header (4 bytes, big endian), header as JSON, bytes."""
        answer = await caller.ask("image", part=number)
        if not answer.blobs:
            raise RequestError(404, f"the images of part {number} are not in memory any more")
        return Response(binary({"images": answer.value}, answer.blobs), media_type="application/octet-stream")

    @app.get(
        f"{API}/records/{{number}}/archived/{{place}}", response_model=None, response_class=Response, responses=ERRORS
    )
    async def archived(number: PartNumber, place: Annotated[int, InPath(ge=0)], _: Reader) -> Response:
        """An archived image of a part, as PNG: its pixels are those that were judged."""
        paths = (await _found(history, number))["archived"]
        path = Path(paths[place]) if place < len(paths) else None
        if (
            path is None
            or archive is None
            or not path.resolve().is_relative_to(archive.resolve())
            or not path.is_file()
        ):
            raise RequestError(404, f"the image of part {number} was not kept, or was deleted by the archive's limits")
        return FileResponse(path, media_type="image/png")

    @app.get(f"{API}/export.csv", response_model=None, response_class=Response, responses=ERRORS)
    async def export(_: Reader, wanted: Filters, separator: Annotated[Literal[",", ";"], Query()] = ",") -> Response:
        """The parts that fit the filter, oldest first, as CSV in UTF-8 with BOM.

        With the separator `;`, numbers have a decimal comma: spreadsheets that expect the one expect the other.
        """
        headers = {"content-disposition": 'attachment; filename="parts.csv"'}
        blocks = reports.export(wanted, separator)
        first = await anext(blocks)  # what is wrong is an answer in words, not half a file

        async def all_blocks() -> AsyncIterator[bytes]:
            yield first
            async for block in blocks:
                yield block

        return StreamingResponse(all_blocks(), media_type="text/csv; charset=utf-8", headers=headers)

    @app.get(f"{API}/statistics", response_model=answers.Statistics, responses=ERRORS)
    async def statistics(_: Reader, request: Request, start: Start, end: End) -> Response:
        """Statistics of each shift of a time, as `visionad report --json` gives them."""
        return Response(await _report(request, start, end, "json"), media_type="application/json")

    @app.get(f"{API}/report.html", response_model=None, response_class=Response, responses=ERRORS)
    async def report(_: Reader, request: Request, start: Start, end: End) -> Response:
        """The same as one file to keep or print, as `visionad report` writes it."""
        headers = {"content-disposition": 'attachment; filename="report.html"'}
        return Response(await _report(request, start, end, "html"), media_type="text/html", headers=headers)

    @app.get(f"{API}/audit", response_model=answers.AuditPage, responses=ERRORS)
    async def audit(_: Reader, before: Annotated[int, Query(ge=0, le=answers.MAX_NUMBER)] = 0) -> Response:
        """A hundred changes, newest first, and each row at which the chain is broken."""
        entries = await asyncio.to_thread(history.audit, before)
        problems = await asyncio.to_thread(verify_audit, history.path)
        return JSONResponse({"entries": entries, "problems": problems})


async def _report(request: Request, start: datetime, end: datetime, form: Form) -> bytes:
    if end - start > MAX_TIME:
        raise RequestError(400, f"expected a time of at most {MAX_TIME.days} days, got {(end - start).days}")
    reports: Reports = request.app.state.reports
    return await reports.make_for(request, start, end, form)


def _add_administration(app: FastAPI) -> None:
    @app.get(f"{API}/users", response_model=answers.UserList, responses=ERRORS)
    async def users(caller: Anyone) -> Response:
        """All users."""
        return JSONResponse((await caller.ask("users")).value)

    @app.get(f"{API}/health", response_model=answers.StationHealth, responses=ERRORS)
    async def health(caller: Anyone) -> Response:
        """Health of worker, cameras, sinks, records and clock."""
        return JSONResponse((await caller.ask("health")).value)

    @app.get(f"{API}/diagnosis", response_model=answers.Diagnosis, responses=ERRORS)
    async def diagnosis(caller: Anyone) -> Response:
        """What works of each camera and each way out, step by step. Nothing is triggered."""
        return JSONResponse((await caller.ask("diagnosis")).value)


async def _found(history: History, number: int) -> dict[str, Any]:
    found = await asyncio.to_thread(history.one, number)
    if found is None:
        raise CommandError("no_part", f"there is no part {number}")
    return found
