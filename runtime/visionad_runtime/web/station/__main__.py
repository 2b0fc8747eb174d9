"""The page process of a station. The front starts it: ``python -m visionad_runtime.web.station FILE --fd N``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from ...errors import VisionADError
from ...station.records.report import Source
from ...station.settings import StationSettings, read_settings
from ..access import AccessPolicy
from ..connections import KEEP_ALIVE_SECONDS, Connection
from ..log import bounded_log
from ..server import Server, listen
from .app import make_app
from .feed import Feed
from .history import History
from .link import FrontLink

log = logging.getLogger("visionad.web")
NICE = 10
"""Judging comes first."""


class PageConnection(Connection):
    """A connection that may become a WebSocket."""

    upgrades = True


def main() -> int:
    """Serve the pages until the front is gone."""
    parser = argparse.ArgumentParser(prog="visionad_runtime.web.station")
    parser.add_argument("file", type=Path)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the front's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    token = sys.stdin.readline().strip()
    if options.fd is not None:
        connection = socket.socket(fileno=options.fd)
    else:
        connection = socket.create_connection(("127.0.0.1", options.port))
    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(NICE)
    logging.basicConfig(format="page: %(message)s", level=logging.WARNING)
    try:
        settings = read_settings(options.file)
        with bounded_log():
            asyncio.run(_serve(options.file, settings, connection, token))
    except VisionADError as exc:
        log.error("%s", exc)
        return 2
    return 0


async def _serve(file: Path, settings: StationSettings, connection: socket.socket, token: str) -> None:
    web = settings.web
    assert web is not None
    history = History(settings.records)
    feed = Feed(history, settings.shifts)
    greeted = asyncio.Event()

    def on_event(event: dict[str, Any], blobs: list[bytes]) -> None:
        feed.on_event(event, blobs)
        if event["event"] == "hello":
            greeted.set()

    link = FrontLink(on_event)
    feed.link = link
    access = AccessPolicy(web.host, web.allow_hosts, web.allow_origins)
    names = {number: recipe.name for number, recipe in settings.recipes.items()}
    source = Source(settings.station, settings.records, settings.shifts, names)
    app = make_app(feed, link, history, source, file, settings, access)
    config = uvicorn.Config(
        app,
        http=PageConnection,
        ws="websockets-sansio",
        ws_max_size=1 << 16,
        ws_ping_interval=20,
        ws_ping_timeout=20,
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    server = Server(config)
    front = asyncio.create_task(link.run(connection, token))
    await asyncio.wait([front, asyncio.create_task(greeted.wait())], return_when=asyncio.FIRST_COMPLETED)
    waiting = listen(web.host, web.port)
    serving = asyncio.create_task(server.serve(sockets=[waiting]))
    others = [asyncio.create_task(feed.count()), asyncio.create_task(feed.watch_panels())]
    await asyncio.wait([front, serving], return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    os._exit(0)  # the front is gone, or will start another: nothing waits to be written


if __name__ == "__main__":
    sys.exit(main())
