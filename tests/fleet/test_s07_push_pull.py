"""S7: push and pull over a folder, plain HTTP and S3; a kill at any moment leaves the old bank or the new one, always sound."""

from __future__ import annotations

import functools
import http.server
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from visionad_runtime import Inspector
from visionad_runtime.bank.history import verify
from visionad_runtime.errors import VisionADError
from visionad_runtime.fleet.storage import open_storage
from visionad_runtime.fleet.store.minisign import PublicKey, SecretKey, generate
from visionad_runtime.fleet.store.pull import PullOptions, pull_bank
from visionad_runtime.fleet.store.push import push_bank
from visionad_runtime.fleet.store.revisions import NamedRevisions, parse_target
from visionad_runtime.formats.manifest import BankManifest, read_manifest

from tests.data import part
from tests.fleet.components import module

COMMAND = "from visionad_runtime.cli.entry import main; main()"


@pytest.fixture
def key(tmp_path: Path) -> SecretKey:
    module("cryptography")
    return generate(tmp_path / "visionad.key", tmp_path / "visionad.pub")


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def digest(bank: Path) -> str:
    return read_manifest(bank, BankManifest).content_digest()


def pull(target: str, bank: Path, *keys: PublicKey) -> str:
    pull_bank(parse_target(target), bank, PullOptions(keys))
    verify(bank)
    return digest(bank)


def test_s7_what_is_pulled_is_what_was_pushed(root: str, station: Path, tmp_path: Path, key: SecretKey) -> None:
    target = parse_target(f"{root}/line3")
    first = push_bank(station, target, key)
    assert (first.revision, first.is_new) == (1, True)
    assert push_bank(station, target, key)[:2] == (1, False)
    other = tmp_path / "other"
    assert pull(f"{root}/line3", other, key.public) == digest(station)
    again = pull_bank(target, other, PullOptions([key.public]))
    assert (again.is_new, again.bytes) == (False, 0)


def test_s7_one_enrollment_moves_one_support(
    root: str, station: Path, tiny_model: Path, tmp_path: Path, key: SecretKey
) -> None:
    target, other = parse_target(f"{root}/line3"), tmp_path / "other"
    whole = push_bank(station, target, key).bytes
    pull(f"{root}/line3", other, key.public)
    with Inspector.open(tiny_model, station, threads=1) as inspector:
        inspector.enroll("disc", [part(300)])
    second = push_bank(station, target, key)
    assert second.revision == 2 and second.bytes < whole / 5
    pulled = pull_bank(target, other, PullOptions([key.public]))
    assert (pulled.bytes, digest(other)) == (second.bytes, digest(station))


def test_s7_eight_pushes_at_once_have_one_winner(root: str, station: Path, tmp_path: Path, key: SecretKey) -> None:
    push_bank(station, parse_target(f"{root}/line3"), key)
    names = NamedRevisions(parse_target(f"{root}/line3"))
    won = []

    def create(number: int) -> None:
        try:
            open_storage(root).create("names/line3/000002.json", bytes([number]) * 1000)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert names.storage.read("names/line3/000002.json") == bytes(won) * 1000


class _Server(http.server.ThreadingHTTPServer):
    sent = 0
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that is killed is no error here."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Plain files, with ranges, sent slowly enough to be interrupted."""

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
        for place in range(start, len(data), 16384):
            self.wfile.write(data[place : place + 16384])
            self.server.sent += len(data[place : place + 16384])  # type: ignore[attr-defined]
            time.sleep(0.001)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, _Server]]:
    (tmp_path / "store").mkdir()
    server = _Server(("127.0.0.1", 0), functools.partial(_Handler, directory=str(tmp_path / "store")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", server
    server.shutdown()
    server.server_close()


def test_s7_a_plain_web_server_is_enough_to_pull(
    web: tuple[str, _Server], station: Path, tmp_path: Path, key: SecretKey
) -> None:
    url, server = web
    sent = push_bank(station, parse_target(f"{tmp_path}/store/line3"), key).bytes
    assert pull(f"{url}/line3", tmp_path / "other", key.public) == digest(station)
    assert server.sent < sent + 65536
    server.sent = 0
    pull(f"{url}/line3", tmp_path / "other", key.public)
    assert server.sent < 32768
    with pytest.raises(VisionADError, match="read only"):
        push_bank(tmp_path / "other", parse_target(f"{url}/line4"), key)


def test_s7_a_pull_that_is_killed_goes_on(
    web: tuple[str, _Server], station: Path, tmp_path: Path, key: SecretKey
) -> None:
    """Kills at random moments of one pull after the other; what was received is not sent again."""
    url, server = web
    size = push_bank(station, parse_target(f"{tmp_path}/store/line3"), key).bytes
    other, kills, rng = tmp_path / "other", 0, random.Random(7)
    arguments = ["bank", "pull", f"{url}/line3", str(other), "--pub", str(tmp_path / "visionad.pub")]
    pub = str(tmp_path / "visionad.pub")
    fork = (
        "import sys, os, time, random\nfrom visionad_runtime.fleet.store.pull import *\n"
        "from visionad_runtime.fleet.store.revisions import *\nfrom visionad_runtime.fleet.store.minisign import read_public\n"
        "from pathlib import Path\nfrom visionad_runtime.fleet.store.minisign import _library\n_library()\n"
        f"keys = [read_public(Path({pub!r}))]\n"
        "for line in sys.stdin:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try:\n"
        f"            pull_bank(parse_target({url + '/line3'!r}), Path({str(other)!r}), PullOptions(keys))\n"
        "        finally:\n"
        "            os._exit(0)\n"
        "    time.sleep(float(line))\n"
        "    os.kill(child, 9)\n"
        "    os.waitpid(child, 0)\n"
        "    print('done', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", fork], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        while not (other / "manifest.json").exists() and kills < 100:
            process.stdin.write(f"{rng.uniform(0, 0.1)}\n")
            process.stdin.flush()
            assert process.stdout.readline() == "done\n"
            kills += 1
            if (other / "manifest.json").exists():
                verify(other)
        process.stdin.close()
    subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True, timeout=120)
    verify(other)
    assert digest(other) == digest(station)
    assert kills > 1
    assert server.sent <= size + (kills + 2) * 65536 + (kills << 20)
    print(f"S7: {kills} kills, {server.sent} bytes for {size}")


def test_s7_a_push_that_is_killed_is_invisible(station: Path, tmp_path: Path, key: SecretKey, tiny_model: Path) -> None:
    root, rng = tmp_path / "store", random.Random(3)
    target = parse_target(f"{root}/line3")
    push_bank(station, target, key)
    with Inspector.open(tiny_model, station, threads=1) as inspector:
        inspector.enroll("disc", [part(400 + i) for i in range(4)])
    old, new = digest(shutil.copytree(station, tmp_path / "copy")), digest(station)
    del old
    script = (
        "import sys\nfrom visionad_runtime.fleet.store.push import *\nfrom visionad_runtime.fleet.store.revisions import *\n"
        "from visionad_runtime.fleet.store.minisign import read_secret\nfrom pathlib import Path\nprint('ready', flush=True)\n"
        f"push_bank(Path({str(station)!r}), parse_target({target.url!r}), read_secret(Path({str(tmp_path / 'visionad.key')!r})))\n"
    )
    seen = set()
    for turn in range(20):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0, 0.08))
            process.kill()
        other = tmp_path / f"other{turn}"
        seen.add(pull(target.url, other, key.public))
        if len(seen) > 1 or new in seen:
            break
    push_bank(station, target, key)
    assert pull(target.url, tmp_path / "last", key.public) == new
    numbers = NamedRevisions(target).numbers()
    assert numbers == list(range(1, len(numbers) + 1))
