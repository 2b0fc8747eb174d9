"""Stores behind servers that count what goes over the wire, and pushes and pulls in processes that are killed."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionad_runtime.bank.history import verify
from visionad_runtime.fleet.store.minisign import PublicKey
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.revisions import parse_target
from visionad_runtime.formats.manifest import BankManifest, read_manifest

from tests.data import ROOT

PIECE = 16384


def digest(bank: Path) -> str:
    """Return the content digest of a bank."""
    return read_manifest(bank, BankManifest).content_digest()


def pull(target: str, bank: Path, *keys: PublicKey) -> str:
    """Pull a bank, check all of its files, and return its digest."""
    pull_bank(parse_target(target), bank, PullOptions(keys))
    verify(bank)
    return digest(bank)


class PlainServer(http.server.ThreadingHTTPServer):
    """A web server of plain files. ``sent`` counts the bytes of their content."""

    sent = 0
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that is killed is no error here."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Plain files, with ranges, sent slowly enough to be interrupted."""

    def setup(self) -> None:
        super().setup()
        # What lies in buffers when a client is killed counts as sent.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PIECE)

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        given = self.headers.get("Range")
        start = int(given.removeprefix("bytes=").rstrip("-")) if given else 0
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        for place in range(start, len(data), PIECE):
            self.wfile.write(data[place : place + PIECE])
            self.server.sent += len(data[place : place + PIECE])  # type: ignore[attr-defined]
            time.sleep(0.001)

    def log_message(self, *_: object) -> None: ...


@contextlib.contextmanager
def plain_server(folder: Path) -> Iterator[PlainServer]:
    """Serve a folder on loopback as long as the block lasts."""
    folder.mkdir(exist_ok=True)
    server = PlainServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Wire:
    """A relay before a TCP server of loopback. ``moved`` counts the bytes of both directions, what protocols add included."""

    def __init__(self, port: int) -> None:
        self.moved, self._to = 0, port
        self._lock, self._listener = threading.Lock(), socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                with self._lock:
                    self.moved += len(data)
                target.sendall(data)
                time.sleep(0.0005)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.close()


FORK = """
import json, mmap, os, signal, struct, sys, time
from pathlib import Path
from visionad_runtime.fleet.storage import LocalStorage
from visionad_runtime.fleet.store.minisign import _library, read_public, read_secret
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import parse_target
_library()
if "s3" in sys.argv:
    import aiobotocore.session, s3fs
moved = mmap.mmap(-1, 8)
pieces = LocalStorage.pieces
def counted(self, name, start):
    for offset, data in pieces(self, name, start):
        moved[:] = struct.pack("q", struct.unpack("q", moved[:])[0] + len(data))
        yield offset, data
LocalStorage.pieces = counted
for line in sys.stdin:
    job, begun = json.loads(line), time.monotonic()
    moved[:] = bytes(8)
    child = os.fork()
    if not child:
        status = 1
        try:
            target, bank = parse_target(job["target"]), Path(job["bank"])
            if job["what"] == "pull":
                pull_bank(target, bank, PullOptions([read_public(Path(job["key"]))]))
            else:
                push_bank(bank, target, read_secret(Path(job["key"])))
            status = 0
        finally:
            os._exit(status)
    status = None
    while status is None and (job["after"] is None or time.monotonic() < begun + job["after"]):
        pid, found = os.waitpid(child, os.WNOHANG)
        status = found if pid else time.sleep(0.0005)
    if status is None:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    said = {"killed": os.WIFSIGNALED(status), "status": status, "seconds": time.monotonic() - begun}
    print(json.dumps({**said, "moved": struct.unpack("q", moved[:])[0]}), flush=True)
"""


class Forker:
    """A process that has loaded what a push or a pull needs, and forks a child for each, so that a kill hits the work itself."""

    def __init__(self, *drivers: str, **variables: str) -> None:
        self.environment = {**os.environ, **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORK, *drivers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=self.environment,
        )

    def run(self, what: str, target: str, bank: Path, key: Path, after: float | None = None) -> dict[str, Any]:
        """Push or pull in a child, and kill it after some seconds.

        Returns:
            ``killed``: whether the kill came before the child ended; ``status``; ``seconds``; ``moved``: bytes read from a folder.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        job = {"what": what, "target": target, "bank": str(bank), "key": str(key), "after": after}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        said: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert said["killed"] or said["status"] == 0, said
        return said

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)
