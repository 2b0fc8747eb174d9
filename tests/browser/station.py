"""A real station for browser tests: front, worker and page as processes, a folder camera, and parts over TCP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from visionad_runtime import Inspector

from tests.data import part
from tests.ports import free_port

BITS, CELL = 10, 8
"""Bits of the number that is drawn into an image, and the side of the cell of each, in pixels."""


def numbered(number: int, defect: bool = False) -> NDArray[np.uint8]:
    """A part, uint8 (96, 128, 3) BGR, with its number in black and white cells along the upper edge."""
    image = part(0)
    if defect:
        image[40:90, 40:100] = (0, 0, 255)
    for bit in range(BITS):
        image[:CELL, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)
    return image


DRAWN_NUMBER = f"""const [left, top, scale] = canvas.dataset.drawn.split(',').map(Number);
  const context = canvas.getContext('2d');
  let number = 0;
  for (let bit = 0; bit < {BITS}; bit += 1) {{
    const x = Math.round(left + (bit + 0.5) * {CELL} * scale), y = Math.round(top + {CELL / 2} * scale);
    if (context.getImageData(x, y, 1, 1).data[1] > 127) number += 1 << bit;
  }}"""
"""Lines of a script that read the number of :func:`numbered` from an image that is drawn into ``canvas``."""


class RunningStation:
    """A station that runs in processes of its own.

    Args:
        folder: empty; gets bank, images, station file and records.
        model: model folder.
        images: what the camera takes, in order, again and again; BGR.
        more: further lines of the station file.

    Attributes:
        under: a command that starts it, such as ``chrt``.
    """

    under: Sequence[str] = ()

    def __init__(self, folder: Path, model: Path, images: list[NDArray[np.uint8]], more: str = "") -> None:
        self.folder = folder
        self.port, self.tcp = free_port(), free_port()
        with Inspector.open(model, folder / "bank", threads=1) as inspector:
            inspector.enroll("disc", [numbered(number) for number in (0, 341, 682, 1023)])
            inspector.confirm("disc", [numbered(number) for number in range(7, 1000, 60)])
        (folder / "images").mkdir()
        for number, image in enumerate(images):
            cv2.imwrite(str(folder / "images" / f"{number:04d}.png"), image)
        self.file = folder / "station.yaml"
        self.file.write_text(
            f"""
station: press-3
model: {model}
bank: bank
threads: 1
deadline_ms: 5000
ack_ms: 300
cameras: {{top: {{kind: folder, path: images}}}}
recipes: {{1: {{name: gear, class: disc}}}}
sinks: [{{kind: tcp, port: {self.tcp}}}]
archive: {{folder: archive, keep: {{not_ok: all, ok: none}}, min_free_gb: 0}}
web: {{port: {self.port}}}
checks: {{rejects_in_a_row: 0, light: "off"}}
{more}"""
        )
        self._begin()

    def _begin(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self.sequence = 0

    @classmethod
    def of_file(cls, file: Path) -> RunningStation:
        """The station of a file that another program wrote. It gets TCP in place of its sinks, and a page."""
        self = cls.__new__(cls)
        self.port, self.tcp = free_port(), free_port()
        lines = [
            line
            for line in file.read_text().splitlines()
            if not line.startswith(("sinks:", "  - {kind: modbus", "web:"))
        ]
        own = [f"sinks: [{{kind: tcp, port: {self.tcp}}}]", f"web: {{port: {self.port}}}"]
        self.file = file.with_name("station-page.yaml")
        self.file.write_text("\n".join([*lines, *own]) + "\n")
        self.folder = file.parent / "station"
        self.folder.mkdir(exist_ok=True)
        self._begin()
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> RunningStation:
        log = (self.folder / "log").open("ab")
        command = "import sys; from visionad_runtime.cli.entry import main; sys.exit(main())"
        self._process = subprocess.Popen(
            [*self.under, sys.executable, "-c", command, "station", str(self.file)],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.until(self.ready, 120)
        return self

    def stop(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._process is None:
            return
        for one in (*self.children(), self._process.pid):
            self.signal(one, signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def forget(self) -> None:
        """Take note that the front is dead."""
        assert self._process is not None
        self._process.wait(5)
        self._process, self._line = None, None

    # -- processes ----------------------------------------------------------------------------------------------------

    @property
    def front(self) -> int:
        assert self._process is not None
        return self._process.pid

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.front}/task/{self.front}/children").read_text()
        return [int(one) for one in text.split()]

    def process(self, which: str) -> int:
        """Process id of ``front``, ``page``, ``worker`` or ``teacher``, once it is there."""
        if which == "front":
            return self.front

        names = {"worker": "visionad-worker", "teacher": "visionad-teach"}

        def find() -> int:
            for one in self.children():
                try:
                    line = Path(f"/proc/{one}/cmdline").read_bytes()
                    name = Path(f"/proc/{one}/comm").read_text().strip()
                except OSError:
                    continue
                if b"web.station" in line if which == "page" else name == names[which]:
                    return one
            return 0

        return int(self.until(find, 20))

    @staticmethod
    def resident_mb(process: int) -> float:
        """Memory of a process that is in use."""
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    @staticmethod
    def signal(process: int, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(process, number)

    # -- talking to it ------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], Any], seconds: float = 20) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            assert time.monotonic() < deadline, f"not in {seconds} s; log: {(self.folder / 'log').read_text()[-2000:]}"
            assert self._process is None or self._process.poll() is None, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.02)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Ask over HTTP. Returns status, JSON (or bytes), and headers in small letters."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            given = {} if body is None or isinstance(body, bytes) else {"Content-Type": "application/json"}
            connection.request(method, path, data, {**given, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            is_json = found.get("content-type", "").startswith("application/json")
            return answer.status, json.loads(content) if is_json else content, found
        finally:
            connection.close()

    def ready(self) -> bool:
        try:
            return bool(self.request("GET", "/health")[0] == 200)
        except OSError:
            return False

    def login(self, **values: str) -> str:
        """Log in; the cookie to send."""
        status, facts, headers = self.request("POST", "/api/1/login", values)
        assert status == 200, facts
        return headers["set-cookie"].partition(";")[0]

    def panel_token(self) -> str:
        return (self.folder / "panel-token").read_text()

    def code(self) -> str:
        line = next(line for line in (self.folder / "log").read_text().splitlines() if "with the code" in line)
        return line.split()[-1]

    def inspect(self, part: str = "") -> str:
        """Have the line inspect a part; the line's answer."""
        if self._line is None:
            self._line = socket.create_connection(("127.0.0.1", self.tcp), timeout=20)
        self.sequence += 1
        self._line.sendall(f"TRIGGER {self.sequence} {part or f'SN-{self.sequence:04d}'}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            answer += self._line.recv(4096)
        return answer.decode().strip()
