"""The service and its clients' sockets: slow ones, idle ones, too many, other sites' pages, proxies, probes, forms."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import cv2
import pytest
from visionad_runtime import Inspector

from tests.data import part

pytest.importorskip("fastapi", reason="serving takes the serve extra")

SHORT = (
    "from visionad_runtime.web import connections as c, uploads, server; "
    "c.HEAD_SECONDS = 2; c.LIMITS.update({c.Phase.HEAD: 2, c.Phase.DRAIN: 1, c.Phase.IDLE: 7, c.Phase.CLOSING: 3}); "
    "uploads.UPLOAD_TIMEOUT = 3; server.GRACE_SECONDS = 2; "
)
"""Time limits that a test can wait for."""
MAIN = "from visionad_runtime.cli.entry import main; main()"
IMAGE = cv2.imencode(".png", part(0))[1].tobytes()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Service:
    """A running ``visionad serve``, ended by its process id."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process, self.log = process, log
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("serving on "), log.read_text()
        address = urllib.parse.urlsplit(ready.split()[2])
        assert address.port is not None
        self.host, self.port = str(address.hostname), address.port

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=20)

    def ask(self, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = HTTPConnection(self.host, self.port, timeout=30)
        connection.putrequest(method, target, skip_host="Host" in headers, skip_accept_encoding=True)
        for name, value in headers.items():
            if value:
                connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        connection.close()
        return answer

    def raw(self, data: bytes, *, half_close: bool = False) -> bytes:
        """All that comes back until the service closes the connection."""
        with self.connect() as client:
            client.sendall(data)
            if half_close:
                client.shutdown(socket.SHUT_WR)
            return read_all(client)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def read_all(client: socket.socket) -> bytes:
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(1 << 16):
            received += piece
    return received


@contextlib.contextmanager
def running(folder: Path, *options: str, prefix: str = "", files: int | None = None) -> Iterator[Service]:
    """Start a service; ``files``: how many it may open."""
    name = uuid.uuid4().hex
    command = [sys.executable, "-c", prefix + MAIN, "serve", str(folder / "model"), str(folder / "bank"), "--port", "0"]
    if files is not None:
        command = ["bash", "-c", f'ulimit -n {files}; exec "$0" "$@"', *command]
    log = folder / f"{name}.log"
    with (
        log.open("w") as err,
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=err, text=True) as process,
    ):
        try:
            yield Service(process, log)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def place(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "model").symlink_to(tiny_model)
    with Inspector.open(tiny_model, folder / "bank") as inspector:
        inspector.enroll("disc", [part(0), part(1)])
    return folder


@pytest.fixture(scope="module")
def service(place: Path) -> Iterator[Service]:
    with running(place, "--allow-host", "Linebox.Example", "--allow-origin", "https://pages.example") as started:
        yield started
        assert started.ask("GET", "/health").status == 200
        assert started.stop() == 0
        log = started.log.read_text()
        assert "Traceback" not in log and len(log.splitlines()) < 20, log


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:{port}", 200), ("LOCALHOST.:{port}", 200), ("127.0.0.1", 200), ("127.0.0.1:1", 200), ("[::1]:{port}", 200),
        ("[::ffff:127.0.0.1]", 200), ("linebox.example", 200), ("LineBox.Example.:8443", 200), ("pages.example", 200),
        ("127.0.0.1:", 200), ("evil.example:{port}", 403), ("localhost.evil.example:{port}", 403), ("127.0.0.1.evil.example", 403),
        ("evil.example.", 403), ("sub.linebox.example", 403), ("10.1.2.3:{port}", 403), ("localhost..", 403), ("[::2]", 403),
        ("", 400), ("a b", 400), ("localhost@evil.example", 400), ("localhost:99999", 400), ("localhost:x", 400), ("[::1", 400),
        ("localhost,evil.example", 400),
    ],
)  # fmt: skip
def test_only_the_services_own_names_are_hosts(service: Service, host: str, status: int) -> None:
    answer = service.ask("GET", "/classes", Host=host.format(port=service.port))
    assert answer.status == status
    if status == 403:
        assert "--allow-host" in answer.json["error"]
    enrolled = service.ask("POST", "/classes/pwned", b"x", Host=host.format(port=service.port)).status
    assert enrolled == (400 if status == 200 else status)


def test_a_forwarded_host_is_not_believed(service: Service) -> None:
    headers = {"X_Forwarded_Host": "localhost", "Forwarded": "host=localhost", "X_Forwarded_Proto": "https"}
    assert service.ask("GET", "/classes", Host="evil.example", **headers).status == 403
    assert service.ask("GET", "/classes", X_Forwarded_Host="evil.example").status == 200


def test_a_host_is_named_once(service: Service) -> None:
    two = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert service.raw(two).startswith(b"HTTP/1.1 400 ")
    assert service.raw(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert service.raw(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://127.0.0.1:{port}"}, 200), ({"Origin": "https://pages.example"}, 200),
        ({"Origin": "https://pages.example:443"}, 200), ({"Origin": "HTTPS://Pages.Example"}, 200),
        ({"Host": "linebox.example", "Origin": "https://linebox.example"}, 200),
        ({"Origin": "http://pages.example"}, 403), ({"Origin": "https://pages.example:8443"}, 403),
        ({"Origin": "https://pages.example.evil.example"}, 403), ({"Origin": "null"}, 403), ({"Origin": "file://"}, 403),
        ({"Origin": "http://localhost:1"}, 403), ({"Origin": "http://evil.example:{port}"}, 403),
        ({"Origin": "http://127.0.0.1:{port}/page"}, 403), ({"Origin": "http://[bad"}, 403),
        ({"Host": "linebox.example", "Origin": "https://linebox.example:8443"}, 403),
        ({"Referer": "http://evil.example/page"}, 403), ({"Referer": "http://127.0.0.1:{port}/page"}, 200),
        ({"Referer": "https://pages.example/a?b"}, 200), ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-origin"}, 200), ({"Sec_Fetch_Site": "none"}, 200),
    ],
)  # fmt: skip
def test_only_the_services_own_pages_may_ask(service: Service, headers: dict[str, str], status: int) -> None:
    filled = {name: value.format(port=service.port) for name, value in headers.items()}
    assert service.ask("POST", "/inspect", IMAGE, **filled).status == status
    assert service.ask("POST", "/classes/disc", b"x", **filled).status == (400 if status == 200 else 403)


def test_a_machines_own_address_is_a_host(place: Path) -> None:
    with running(place, "--host", "0.0.0.0") as service:
        for host in ("0.0.0.0", "127.0.0.1", "localhost", socket.gethostname()):
            assert service.ask("GET", "/health", Host=f"{host}:{service.port}").status == 200, host
        for host in ("evil.example", "10.1.2.3"):
            assert service.ask("GET", "/health", Host=host).status == 403


@pytest.mark.parametrize(
    ("option", "value"),
    [("--allow-host", v) for v in ("http://a", "a:80", "*", "a/b")]
    + [("--allow-origin", v) for v in ("a.example", "null", "*", "ftp://a.example", "https://a.example/page")],
)
def test_a_malformed_name_is_the_users_mistake(
    place: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from visionad_runtime.cli.main import run

    assert run(["serve", str(place / "model"), str(place / "bank"), option, value]) == 2
    assert f"{option}: expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("POST", "/inspect?class_name=disc", "did you mean 'class'"),
        ("POST", "/inspect?Class=disc", "did you mean 'class'"),
        ("POST", "/inspect?class=disc&class=grid", "expected parameter 'class' once, got it 2 times"),
        ("POST", "/inspect?class=disc&clas%73=disc", "once"),
        ("POST", "/overlay?bitdepth=12", "did you mean 'bit_depth'"),
        ("POST", "/classes/disc?class=disc", "no parameter 'class'"),
        ("GET", "/classes?verbose", "it has none"),
        ("GET", "/health?x=1", "it has none"),
        ("HEAD", "/health?x=1", ""),
        ("GET", "/metrics?x=1", "it has none"),
        ("GET", "/openapi.json?x=1", "it has none"),
        ("POST", "/inspect?name=M%FCller.png", "the query is not UTF-8"),
        ("POST", "/inspect?name=M%C3", "the query is not UTF-8"),
        ("POST", "/inspect?name=50%.png", "no percent-encoding"),
        ("POST", "/inspect?%FF=1", "the query is not UTF-8"),
        ("POST", "/classes/M%FCller", "the path is not UTF-8"),
        ("POST", "/classes/%ED%A0%80", "the path is not UTF-8"),
        ("POST", "/classes/50%", "no percent-encoding"),
        ("GET", "/health%", "no percent-encoding"),
    ],
)
def test_parameters_and_targets_are_understood_or_refused(
    service: Service, method: str, target: str, message: str
) -> None:
    answer = service.ask(method, target, IMAGE if method == "POST" else None)
    assert answer.status == 400
    if method != "HEAD":
        assert message in answer.json["error"]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_names_that_are_not_encoded(service: Service, encoding: str) -> None:
    answer = service.raw("POST /inspect?name=Müller.png HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(encoding))
    assert answer.startswith(b"HTTP/1.1 400 ") and b"percent-encode" in answer


def test_probes(service: Service) -> None:
    for path in ("/health", "/classes", "/metrics", "/openapi.json"):
        head, get, options = (service.ask(method, path) for method in ("HEAD", "GET", "OPTIONS"))
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]
        assert options.status == 200
        assert options.headers["allow"] == "GET, HEAD, OPTIONS"
    for path in ("/inspect", "/overlay", "/classes/a%2Fb"):
        assert service.ask("OPTIONS", path).headers["allow"] == "OPTIONS, POST"
        refused = service.ask("GET", path)
        assert (refused.status, refused.headers["allow"]) == (405, "OPTIONS, POST")
        assert "expected OPTIONS, POST, got GET" in refused.json["error"]
        assert service.ask("HEAD", path).status == 405
    assert service.ask("OPTIONS", "*").headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert service.ask("OPTIONS", "/nothing").status == 404
    assert service.ask("OPTIONS", "/health", Origin="http://evil.example").status == 403


def test_a_class_with_a_slash(place: Path) -> None:
    with running(place) as service:
        for number, target in enumerate(("/classes/line%201/a", "/classes/line%201%2Fb")):
            data = cv2.imencode(".png", part(5 + number))[1].tobytes()
            assert service.ask("POST", target, data).status == 201
        names = service.ask("GET", "/classes").json["classes"]
        assert {"line 1/a", "line 1/b"} <= set(names)
        again = service.ask("POST", "/classes/other", data)
        assert again.status == 409 and "is enrolled already, as line 1/b" in again.json["error"]
        assert service.ask("POST", "/classes/", data).status == 409


def form(*parts: tuple[str, bytes], boundary: str = "xyz") -> bytes:
    text = b"".join(
        f"--{boundary}\r\n{header}\r\n\r\n".encode("utf-8", "surrogateescape") + data + b"\r\n"
        for header, data in parts
    )
    return text + f"--{boundary}--\r\n".encode()


FILE = 'Content-Disposition: form-data; name="file"; filename="good.png"\r\nContent-Type: image/png'


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (FILE, "good.png"),
        ('Content-Disposition: form-data; name=a; filename="C:\\parts\\good.png"', "good.png"),
        ('Content-Disposition: form-data; name="a"; filename="Müller.png"', "Müller.png"),
        ('Content-Disposition: form-data; name="a"; filename="M\udcfcller.png"', "Müller.png"),
        ("Content-Disposition: form-data; name=\"a\"; filename*=UTF-8''M%C3%BCller.png", "Müller.png"),
        ('content-disposition: form-data; name="image"', ""),
    ],
)
def test_the_file_of_a_form(service: Service, header: str, name: str) -> None:
    kind = {"Content_Type": 'multipart/form-data; boundary="xyz"'}
    plain = service.ask("POST", "/inspect", IMAGE).json
    answer = service.ask("POST", "/inspect", form((header, IMAGE)), **kind).json
    assert answer["image"] == name and answer["score"] == plain["score"]
    assert service.ask("POST", "/inspect?name=mine", form((header, IMAGE)), **kind).json["image"] == "mine"
    pixels = form((header, part(0)[:, :, 0].tobytes()))
    assert service.ask("POST", "/inspect?pixels=mono8&width=128&height=96", pixels, **kind).status == 200


def test_a_form_in_chunks(service: Service) -> None:
    body = form((FILE, IMAGE))
    connection = HTTPConnection(service.host, service.port, timeout=30)
    pieces = (body[i : i + 7] for i in range(0, len(body), 7))
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    connection.request("POST", "/inspect", pieces, headers, encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


BASE64 = base64.b64encode(IMAGE)


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("multipart/form-data; boundary=xyz", form((FILE, IMAGE), (FILE, IMAGE)), "expected one file in the form, got 2"),
        ("multipart/form-data; boundary=xyz", form((FILE, IMAGE), ('Content-Disposition: form-data; name="class"', b"disc")),
         "parameters go into the URL"),
        ("multipart/form-data; boundary=xyz", form(), "form"),
        ("multipart/form-data; boundary=xyz", form((FILE, b"")), "got nothing"),
        ("multipart/form-data; boundary=xyz", form((FILE, b"notes"))[:-20], "cut off"),
        ("multipart/form-data; boundary=abc", form((FILE, IMAGE)), "malformed"),
        ("multipart/form-data", form((FILE, IMAGE)), "expected a boundary"),
        ("multipart/form-data; boundary=xyz", form((FILE + "\r\nContent-Transfer-Encoding: base64", BASE64)), "as they are"),
        ("multipart/form-data; boundary=xyz", form((FILE, BASE64)), "base64"),
        ("application/x-www-form-urlencoded", b"file=" + urllib.parse.quote(IMAGE).encode(), "urlencoded form"),
        ("application/x-www-form-urlencoded", IMAGE.replace(b"\r", b"").replace(b"\n", b""), "--data-binary"),
        ("application/json", json.dumps({"image": BASE64.decode()}).encode(), "JSON"),
        ("", BASE64, "base64"), ("text/plain", BASE64[:76] + b"\r\n" + BASE64[76:], "base64"),
        ("", b"data:image/png;base64," + BASE64, "a data URL"), ("application/gzip", gzip.compress(IMAGE), "gzip"),
        ("text/html", b"<html></html>", "HTML"), ("image/png", form((FILE, IMAGE)), "multipart form"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(service: Service, kind: str, body: bytes, message: str) -> None:
    for target in ("/inspect", "/overlay", "/classes/disc"):
        answer = service.ask("POST", target, body, Content_Type=kind)
        assert answer.status == 400 and message in answer.json["error"], answer
        assert "\n" not in answer.json["error"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, identity"])
def test_a_compressed_body_is_refused(service: Service, encoding: str) -> None:
    answer = service.ask("POST", "/inspect", IMAGE, Content_Encoding=encoding)
    assert answer.status == 400 and "Content-Encoding" in answer.json["error"]
    assert service.ask("POST", "/inspect", IMAGE, Content_Encoding="identity").status == 200


def test_what_is_no_http(service: Service) -> None:
    for _ in range(50):
        torn = service.ask("POST", "/inspect", b"--b\r\nbad\0: x", Content_Type="multipart/form-data; boundary=b")
        assert torn.status == 400
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET  HTTP/1.1\r\n\r\n"):
        for _ in range(50):
            answer = service.raw(junk)
            assert answer.startswith(b"HTTP/1.1 400 ") and b'{"error": ' in answer
    assert len(service.log.read_text()) < 2000


def test_requests_in_one_piece(service: Service) -> None:
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
    post = b"POST /inspect HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(IMAGE)
    answers = service.raw(get % b"" + post + IMAGE + get % b"Connection: close\r\n")
    assert answers.count(b"HTTP/1.1 200 ") == 3
    # A client that says that it will send no more, and waits.
    assert service.raw(post + IMAGE, half_close=True).startswith(b"HTTP/1.1 200 ")
    assert service.raw(post + IMAGE[:50], half_close=True) == b""


def test_an_upgrade_is_passed_over(service: Service) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    head = b"POST /inspect HTTP/1.1\r\nHost: localhost\r\n" + offer + b"Content-Length: %d\r\n\r\n"
    with service.connect() as client:
        client.sendall(head % len(IMAGE) + IMAGE)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [("/nothing", {}, 404), ("/inspect?klass=disc", {}, 400), ("/inspect", {"Host": "evil.example"}, 403),
     ("/inspect", {"Content-Encoding": "gzip"}, 400)],
)  # fmt: skip
def test_a_refusal_before_the_body_is_read_arrives(
    service: Service, target: str, headers: dict[str, str], status: int
) -> None:
    """urllib closes its connections: an answer in the middle of the body would be lost."""
    url = f"http://127.0.0.1:{service.port}{target}"
    for size in (100, 20_000_000):
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(url, b"x" * size, headers), timeout=30)
        assert refused.value.code == status and b"error" in refused.value.read()
        connection = HTTPConnection(service.host, service.port, timeout=30)
        connection.request("POST", target, b"x" * size, headers)
        assert connection.getresponse().status == status
        connection.close()


def test_an_answer_that_nobody_takes(place: Path) -> None:
    with running(place, prefix=SHORT) as service, contextlib.ExitStack() as held:
        big = cv2.imencode(".png", cv2.resize(part(0), (1500, 1500)))[1].tobytes()
        post = b"POST /overlay HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        for _ in range(3):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((service.host, service.port))
            held.enter_context(client)
            client.sendall(post % len(big) + big)
        for _ in range(100):
            time.sleep(0.2)
            metrics = service.ask("GET", "/metrics").body.decode()
            if re.search(r'class_name="disc",verdict="\w+"} 3.0', metrics) and "visionad_waiting 0.0" in metrics:
                break
        assert "visionad_waiting 0.0" in metrics
        for _ in range(100):
            if len(list(Path(f"/proc/{service.process.pid}/fd").iterdir())) < 12:
                break
            time.sleep(0.2)
        start = time.monotonic()
        assert service.stop() == 0 and time.monotonic() - start < 8


@pytest.mark.slow(group="http-fuzz")
def test_a_kept_connection_outlives_a_pollers_cycle(service: Service) -> None:
    connection = HTTPConnection(service.host, service.port, timeout=30)
    for wait in (0, 6.0):
        time.sleep(wait)
        connection.request("POST", "/inspect", IMAGE)
        response = connection.getresponse()
        response.read()
        assert response.status == 200 and response.headers["Keep-Alive"] == "timeout=75"
    connection.close()


@pytest.mark.slow(group="http-fuzz")
def test_time_limits(place: Path) -> None:
    """Each connection ends, with an answer where a request had begun; others are served meanwhile."""
    post = b"POST /inspect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with running(place, prefix=SHORT) as service:
        start = time.monotonic()
        silent, blank, half, slow = (service.connect() for _ in range(4))
        blank.sendall(b"\r\n")
        half.sendall(b"GET /health HTTP/1.1\r\nHost: loc")
        slow.sendall(post)
        unread = service.connect()
        unread.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\nx")
        idle = service.connect()
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        senders = [service.connect() for _ in range(40)]
        for client in senders:
            client.sendall(post + b"x")
        time.sleep(0.5)
        assert b"visionad_receiving 41.0" in service.ask("GET", "/metrics").body
        assert service.ask("POST", "/inspect", IMAGE).status == 200  # slow senders take no place
        assert service.ask("GET", "/health").json["waiting"] == 0
        assert read_all(silent) == b""
        assert read_all(blank)[:13] in (b"", b"HTTP/1.1 408 ")
        assert read_all(half).startswith(b"HTTP/1.1 408 ")
        assert read_all(unread).startswith(b"HTTP/1.1 404 ")
        assert time.monotonic() - start < 15
        for client in (slow, *senders):
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
        assert b"200 OK" in read_all(idle)
        assert 6 < time.monotonic() - start < 30
        assert service.stop() == 0
        assert service.log.read_text() == ""


def test_a_head_has_a_size(service: Service) -> None:
    fine = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"
    assert service.raw(fine).startswith(b"HTTP/1.1 200 ")
    with service.connect() as client, contextlib.suppress(ConnectionError):
        client.sendall(b"GET /health HTTP/1.1\r\nX: " + b"y" * 1_000_000)
        assert client.recv(13) == b"HTTP/1.1 431 "


@pytest.mark.parametrize("files", [128, None])
def test_a_flood_of_connections(place: Path, files: int | None) -> None:
    with running(place, files=files) as service, contextlib.ExitStack() as held:
        for count in range(600):
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect((service.host, service.port))
            if count % 2:
                with contextlib.suppress(OSError):
                    client.send(b"GET /hea")
        start = time.monotonic()
        for _ in range(3):
            assert service.ask("POST", "/inspect", IMAGE).status == 200
        assert time.monotonic() - start < 15
        if sys.platform == "linux":
            opened = len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))
            assert opened < (128 if files else 320)
        assert service.stop() == 0
        log = service.log.read_text()
        assert "Traceback" not in log and len(log) < 2000


def test_a_stop_with_half_an_image(place: Path) -> None:
    with running(place, prefix=SHORT.replace("UPLOAD_TIMEOUT = 3", "UPLOAD_TIMEOUT = 30")) as service:
        with service.connect() as client:
            client.sendall(b"POST /inspect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n\x89PNG")
            time.sleep(0.5)
            start = time.monotonic()
            assert service.stop() == 0
            assert time.monotonic() - start < 10
            assert re.match(rb"HTTP/1.1 503 .*the service stops", read_all(client), re.DOTALL)
        assert len(service.log.read_text().splitlines()) == 1
        assert "1 requests were not complete" in service.log.read_text()


@pytest.mark.slow(group="http-fuzz")
def test_requests_made_up_from_the_description(place: Path, tmp_path: Path) -> None:
    """No made-up request gets a status of 500, an answer that is not described, or no answer."""
    tool = Path(sys.executable).with_name("schemathesis")
    if not tool.exists():
        pytest.skip("schemathesis is not installed (extra dev)")
    with running(place) as service:
        command = [
            tool, "run", f"http://127.0.0.1:{service.port}/openapi.json", "--max-examples", "60", "--request-timeout", "20",
            "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
            "--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert service.ask("POST", "/inspect", IMAGE).status == 200
        assert service.stop() == 0
        log = service.log.read_text()
        assert "Traceback" not in log and len(log) < 2000


@pytest.mark.slow(group="http-fuzz")
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_and_files_do_not_grow(place: Path) -> None:
    """Some hundred images over new and kept connections leave memory within 5 % and files as they were."""
    with running(place) as service:

        def send(count: int) -> None:
            kept = HTTPConnection(service.host, service.port, timeout=30)
            for number in range(count):
                data = cv2.imencode((".png", ".jpg", ".bmp")[number % 3], part(number % 7))[1].tobytes()
                if number % 5 == 0:
                    assert service.ask("POST", "/overlay", data).status == 200
                kept.request("POST", f"/inspect?name={number}", data if number % 11 else b"no image")
                response = kept.getresponse()
                response.read()
                assert response.status == (200 if number % 11 else 400)
            kept.close()

        def used() -> tuple[int, int]:
            time.sleep(1)
            status = Path(f"/proc/{service.process.pid}/status").read_text()
            resident = int(re.findall(r"VmRSS:\s+(\d+)", status)[0])
            return resident, len(list(Path(f"/proc/{service.process.pid}/fd").iterdir()))

        send(200)
        before = used()
        send(600)
        after = used()
        assert after[0] <= before[0] * 1.05
        assert after[1] == before[1]
