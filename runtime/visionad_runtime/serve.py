"""``visionad serve``: inspect over HTTP. The only module that needs the extra ``serve``.

Pictures of all clients are inspected in the order in which they came, as many at once as the chain has cameras. Each response is
what ``visionad predict --json`` says of that picture.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, Summary, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from . import __version__
from .artefacts import SupportImage, sha256_bytes
from .bank import Snapshot, check_class_name
from .errors import BankError, PictureError, VisionADError
from .inspector import Inspector, Result
from .overlay import overlay_png
from .picture import RGB8, decode, from_array

log = logging.getLogger("visionad")
T = TypeVar("T")

MOST_BYTES = 256 << 20
"""Of a request. Larger ones are refused before they are read to the end."""
MOST_WAITING = 32
"""Pictures that may wait, decoded. More would be answered so late that nobody wants to know, and fill the memory."""
MOST_SECONDS = 30.0
"""For a picture to arrive: it has a place of those that others wait for."""
GRACE_SECONDS = 10
"""For requests under way when the service is stopped."""
LATENCIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
RATIOS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)

CHANNELS = {"mono8": 1, "rgb8": 3, "bgr8": 3}
"""Pixel formats that need no file around them, by GenICam's names (PFNC) in small letters."""


class RefusalError(Exception):
    """A request that is not answered, and with which status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Given(NamedTuple):
    """A picture that was sent, what its sender calls it, and the bytes that it was sent as."""

    rgb: RGB8
    name: str
    body: bytes


Size = Annotated[int | None, Query(ge=1, le=1 << 20)]
ClassQuery = Annotated[str | None, Query(alias="class", description="class of the part; skips routing")]


async def received(
    request: Request,
    name: Annotated[str, Query(description="what to call the picture")] = "",
    pixels: Annotated[
        Literal["mono8", "rgb8", "bgr8"] | None, Query(description="the body is bare pixels, row after row, not a file")
    ] = None,
    width: Size = None,
    height: Size = None,
    bit_depth: Annotated[int | None, Query(ge=9, le=16, description="bits the camera fills in 16-bit files")] = None,
) -> AsyncIterator[Given]:
    """The picture of a request's body: a file's bytes, or with ``pixels``, ``width`` and ``height`` the pixels themselves."""
    origin = request.headers.get("origin")  # which browsers send, and programs do not
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise RefusalError(403, f"asked by a page of {origin}; only pages of this service's own address may")
    line: Line = request.app.state.line
    with line.place():
        body = bytearray()
        try:
            async with asyncio.timeout(MOST_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MOST_BYTES:
                        raise RefusalError(413, f"wanted a picture of at most {MOST_BYTES >> 20} MiB, found more")
        except TimeoutError:
            raise RefusalError(408, f"the picture was not all there after {MOST_SECONDS} s; send it again") from None
        except ClientDisconnect:
            raise RefusalError(400, "the sender went away before all of the picture was sent") from None
        yield await asyncio.to_thread(_decoded, bytes(body), name, pixels, width, height, bit_depth)


def _decoded(
    body: bytes, name: str, pixels: str | None, width: int | None, height: int | None, bit_depth: int | None
) -> Given:
    label = name or "the picture"
    if not body:
        raise PictureError(f"{label}: wanted a picture as the request's body, found nothing")
    if pixels is None:
        if width is not None or height is not None:
            raise PictureError(f"{label}: width and height go with bare pixels; say which: {', '.join(CHANNELS)}")
        return Given(decode(body, label, bit_depth), name, body)
    if width is None or height is None or bit_depth is not None:
        raise PictureError(f"{label}: bare pixels have 8 bits and need width and height")
    wanted = width * height * CHANNELS[pixels]
    if len(body) != wanted:
        raise PictureError(
            f"{label}: wanted {wanted} bytes for {width} x {height} pixels in {pixels}, found {len(body)}"
        )
    shape = (height, width) if pixels == "mono8" else (height, width, 3)
    rgb = from_array(np.frombuffer(body, np.uint8).reshape(shape), "bgr" if pixels == "bgr8" else "rgb")
    return Given(rgb, name, body)


class Metrics:
    """What a monitoring system asks for, in Prometheus's names."""

    def __init__(self, inspector: Inspector) -> None:
        self.registry = CollectorRegistry()
        self.pictures = Counter(
            "visionad_pictures", "pictures inspected", ["class_name", "verdict"], registry=self.registry
        )
        self.refused = Counter("visionad_refused", "requests without a result", ["status"], registry=self.registry)
        self.seconds = Histogram(
            "visionad_inspection_seconds",
            "decoded picture to result, waiting left out",
            buckets=LATENCIES,
            registry=self.registry,
        )
        self.stages = Summary("visionad_stage_seconds", "the same by stage", ["stage"], registry=self.registry)
        self.ratio = Histogram(
            "visionad_score_ratio",
            "score by threshold: drifts with light and lens before verdicts do",
            ["class_name"],
            buckets=RATIOS,
            registry=self.registry,
        )
        self.waiting = Gauge("visionad_waiting", "pictures that wait or are inspected", registry=self.registry)
        version = Gauge("visionad_bank_version", "version of the bank in force", registry=self.registry)
        version.set_function(lambda: inspector.bank.manifest.version if inspector.bank is not None else 0)
        labels = ["version", "backend", "precision"]
        info = Gauge("visionad_info", "what inspects", labels, registry=self.registry)
        info.labels(__version__, inspector.engine.name, inspector.engine.precision).set(1)
        ProcessCollector(registry=self.registry)

    def add(self, result: Result) -> None:
        """Count a result."""
        name = result.class_name or ""
        self.pictures.labels(name, result.verdict).inc()
        for stage, ms in result.timings.items():
            if stage == "total":
                self.seconds.observe(ms / 1e3)
            else:
                self.stages.labels(stage).observe(ms / 1e3)
        if result.threshold:
            self.ratio.labels(name).observe(result.score / result.threshold)


class Line:
    """The inspector behind the requests: whoever comes first is served first."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector, self.metrics = inspector, Metrics(inspector)
        self._pool = ThreadPoolExecutor(inspector.chain.cameras, "visionad-serve")
        self._taken = 0

    async def inspect(self, given: Given, class_name: str | None) -> Result:
        """As :meth:`Inspector.inspect`, with the bank that is on disk."""

        def work() -> Result:
            self.inspector.refresh()
            return self.inspector.trace_batch([given.rgb], class_name, trace=False)[0][0]

        result = await self._turn(work)
        self.metrics.add(result)
        return result

    async def enroll(self, class_name: str, given: Given) -> int:
        """Enrol a good part; the bank's new version."""

        def work() -> int:
            support = SupportImage(sha256=sha256_bytes(given.body), source=given.name or "sent to visionad serve")
            tokens = self.inspector.encode_support(given.rgb)
            return self.inspector.enroll_encoded(class_name, [support], [tokens])

        return await self._turn(work)

    def bank(self) -> Snapshot:
        """The bank in force, as it is on disk."""
        self.inspector.refresh()
        assert self.inspector.bank is not None
        return self.inspector.bank.snapshot

    async def _turn(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue, while the picture is read, decoded and inspected.

        Raises:
            RefusalError: all are taken.
        """
        if self._taken >= MOST_WAITING:
            raise RefusalError(503, f"{self._taken} pictures wait already; send fewer, or to another box")
        self._taken += 1
        self.metrics.waiting.set(self._taken)
        try:
            yield
        finally:
            self._taken -= 1
            self.metrics.waiting.set(self._taken)

    def close(self) -> None:
        """End its threads once what they do is done."""
        self._pool.shutdown()


def make_app(line: Line, *, read_only: bool = False) -> FastAPI:
    """The service as an ASGI application.

    Args:
        read_only: nobody may enrol.
    """
    inspector = line.inspector
    # No pages to look at: those that FastAPI offers load their scripts from the internet.
    app = FastAPI(title="VisionAD", version=__version__, docs_url=None, redoc_url=None)
    app.state.line = line

    @app.exception_handler(VisionADError)
    async def mistake(_: Request, exc: VisionADError) -> Response:
        known: bool = isinstance(exc, PictureError | BankError)
        if not known:
            log.error("%s", exc)
        return answer(400 if isinstance(exc, PictureError) else 409 if known else 500, str(exc))

    @app.exception_handler(RefusalError)
    async def refused(_: Request, exc: RefusalError) -> Response:
        return answer(exc.status, str(exc))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, exc: RequestValidationError) -> Response:
        return answer(400, "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors()))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, exc: HTTPException) -> Response:
        return answer(exc.status_code, f"{exc.detail}; there are /inspect, /overlay, /classes, /health and /metrics")

    def answer(status: int, message: str) -> Response:
        line.metrics.refused.labels(status).inc()
        return JSONResponse({"error": message}, status, {"Retry-After": "1"} if status == 503 else None)

    @app.post("/inspect", response_model=None)
    async def inspect(given: Annotated[Given, Depends(received)], class_name: ClassQuery = None) -> Response:
        """Score, verdict and regions of the picture in the body, as ``visionad predict --json`` prints them."""
        return JSONResponse((await line.inspect(given, class_name)).to_dict(given.name))

    @app.post("/overlay", response_model=None)
    async def overlay(given: Annotated[Given, Depends(received)], class_name: ClassQuery = None) -> Response:
        """The picture in the body with heat, regions and verdict drawn on it, as PNG."""
        result = await line.inspect(given, class_name)
        png = await asyncio.to_thread(overlay_png, given.rgb, result)
        return Response(png, media_type="image/png")

    @app.post("/classes/{class_name}", response_model=None)
    async def enroll(class_name: str, given: Annotated[Given, Depends(received)]) -> Response:
        """Enrol the good part in the body in a class, new or existing. Its threshold is dropped: calibrate again."""
        if read_only:
            raise RefusalError(
                403, "this service was started with --read-only; enrol with `visionad bank add` on its box"
            )
        class_name = check_class_name(class_name)
        version = await line.enroll(class_name, given)
        return JSONResponse({"class": class_name, "bank_version": version}, 201)

    @app.get("/classes", response_model=None)
    async def classes() -> Response:
        """What is enrolled."""
        held = await asyncio.to_thread(line.bank)
        facts = {
            name: {"shots": len(one.entry.images), "threshold": one.entry.threshold}
            for name, one in held.classes.items()
        }
        return JSONResponse({"bank_version": held.manifest.version, "classes": facts})

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Status 200 if pictures can be inspected, 503 if no class is enrolled."""
        held = await asyncio.to_thread(line.bank)
        facts = {
            "ready": bool(held.classes),
            "version": __version__,
            "model": inspector.manifest.identity.describe(),
            "backend": inspector.engine.name,
            "bank_version": held.manifest.version,
            "notes": inspector.uncalibrated() if held.classes else ["no class is enrolled"],
        }
        return JSONResponse(facts, 200 if held.classes else 503)

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(line.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for clients; port 0 is any free one.

    Raises:
        VisionADError: taken, not permitted, or no such address.
    """
    try:
        waiting = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # By name, as clients' sockets then are: where the protocol is 0, asyncio leaves TCP_NODELAY out, and the second packet of
        # every answer waits 40 ms for the first one to be acknowledged.
        return socket.socket(waiting.family, waiting.type, socket.IPPROTO_TCP, waiting.detach())
    except OSError as exc:
        why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else "no such address"  # the resolver's are below 0
        raise VisionADError(f"cannot listen on {host}, port {port}: {why}; choose another --port or --host") from None


def serve(inspector: Inspector, waiting: socket.socket, stop: threading.Event, *, read_only: bool = False) -> None:
    """Answer requests until ``stop`` is set by a signal; what is under way then is finished."""
    line = Line(inspector)
    try:
        config = uvicorn.Config(
            make_app(line, read_only=read_only),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        if not stop.is_set():
            uvicorn.Server(config).run(sockets=[waiting])
    finally:
        line.close()
