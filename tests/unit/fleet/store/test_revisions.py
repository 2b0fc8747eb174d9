"""Web servers that do not say 404 for a file that is missing."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from visionad_runtime.errors import VisionADError
from visionad_runtime.fleet.store.revisions import NamedRevisions, Target


@contextmanager
def server(folder: Path, missing: int) -> Iterator[str]:
    """Serve a folder that answers for missing files with a status, and a page."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            data = path.read_bytes() if path.is_file() else b"<html>Welcome</html>"
            self.send_response(200 if path.is_file() else missing)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


def revisions(url: str) -> NamedRevisions:
    return NamedRevisions(Target(url, "line", None))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    names = tmp_path / "names" / "line"
    names.mkdir(parents=True)
    for number in range(1, 4):
        (names / f"{number:06d}.json").write_text("{}")
    (names / "latest").write_text("2\n")
    return tmp_path


def test_a_page_for_every_file_is_no_revision(store: Path) -> None:
    with server(store, 200) as url, pytest.raises(VisionADError, match="answer 404"):
        revisions(url).newest()
    with server(store / "names", 200) as url, pytest.raises(VisionADError, match="answer 404"):
        revisions(url).newest()


@pytest.mark.parametrize("status", [404, 403])
def test_the_newest_is_found_where_missing_files_are_forbidden(status: int, store: Path) -> None:
    with server(store, status) as url:
        assert revisions(url).newest() == 3
        assert revisions(url).numbers() == [1, 2, 3]


def test_a_store_that_may_not_be_read_is_said(store: Path) -> None:
    with server(store / "names", 403) as url, pytest.raises(VisionADError, match="403"):
        revisions(url).newest()
