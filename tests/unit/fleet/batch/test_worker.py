"""A worker in another working folder than the run's, as on a node of a cluster."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import cv2
import pytest
from visionad_runtime import Inspector

from tests.data import part

pytest.importorskip("pyarrow", reason="batch runs take the batch extra")

from visionad_runtime.fleet.batch.source import Block
from visionad_runtime.fleet.batch.worker import Settings, Worker, _read


def test_relative_images_are_those_of_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Inspector.open(tiny_model, tmp_path / "bank", threads=1) as inspector:
        inspector.enroll("disc", [part(100 + i) for i in range(3)])
    for folder, seed in (("run", 1), ("node", 2)):  # the node has another image of that name
        (tmp_path / folder / "in").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / folder / "in" / "a.png"), part(seed))
    monkeypatch.chdir(tmp_path / "node")
    worker = Worker(Settings(str(tiny_model), str(tmp_path / "bank"), folder=str(tmp_path / "run")), str(tmp_path))
    images = ("in/a.png", str(tmp_path / "run/in/a.png"), str(tmp_path / "node/in/a.png"), "in/b.png")
    rows = worker.rows(Block(0, 0, images, (None,) * 4))
    worker.close()
    assert rows[0]["score"] == rows[1]["score"] != rows[2]["score"]
    assert rows[0]["image"] == "in/a.png"
    assert str(tmp_path / "run/in/b.png") in rows[3]["error"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("name", ["my%20part.png", "my part.png", "100%25.png", "k%C3%A4se.png"])
def test_urls_may_be_percent_encoded(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for kept in ("my part.png", "100%.png", "k\u00e4se.png"):
        (folder / kept).write_bytes(kept.encode())
    expected = {"my%20part.png": b"my part.png", "my part.png": b"my part.png", "100%25.png": b"100%.png"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        for root in (f"http://127.0.0.1:{server.server_port}/in", f"file://{folder}"):
            assert _read(f"{root}/{name}", "") == expected.get(name, "k\u00e4se.png".encode())
    finally:
        server.shutdown()
        server.server_close()


def test_keys_of_object_stores_are_not_encoded() -> None:
    fsspec = pytest.importorskip("fsspec")
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/in/my%20part.png", b"raw")
    assert _read("memory://in/my%20part.png", "") == b"raw"
