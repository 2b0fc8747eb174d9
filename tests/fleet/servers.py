"""Real processes of ``visionad serve`` on loopback."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import cv2

COMMAND = "from visionad_runtime.cli.entry import main; main()"


class Service:
    """A running service."""

    def __init__(self, model: Path, bank: Path, port: int = 0) -> None:
        command = [sys.executable, "-c", COMMAND, "serve", str(model), str(bank), "--port", str(port)]
        command += ["--threads", "1", "--read-only"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "http://" in line, self.process.communicate()
        self.address = next(word for word in line.split() if word.startswith("http"))
        self.port = int(self.address.rpartition(":")[2])

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        return ask(self.port, method, path, body, **headers)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Send one request; return status and body."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(
            method, path, body or None, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.read()


@contextlib.contextmanager
def serving(model: Path, bank: Path) -> Iterator[Service]:
    """Run a service as long as the block lasts."""
    service = Service(model, bank)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.stop()


def png(image: Any) -> bytes:
    """Return pixels as a PNG file."""
    return cv2.imencode(".png", image)[1].tobytes()


def untimed(facts: dict[str, Any]) -> dict[str, Any]:
    """Return a result without what differs from call to call."""
    return {k: v for k, v in facts.items() if k not in ("timings_ms", "image")}


def inspected(port: int, image: Any, query: str = "") -> dict[str, Any]:
    """Return what ``/inspect`` says of an image."""
    status, body = ask(port, "POST", f"/inspect{query}", png(image))
    assert status == 200, body
    return untimed(json.loads(body))
