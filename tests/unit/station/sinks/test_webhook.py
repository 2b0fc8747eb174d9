"""The webhook against an HTTP server of the standard library: what arrives, what counts as delivered, and what is refused."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from visionad_runtime.station.sink import SINKS, SinkError
from visionad_runtime.station.sinks.webhook import WebhookSettings, WebhookSink

from tests.fakes.line import FakeLine

RECORD = {"id": 7, "station": "press 3", "part": "SN-ä", "evaluation": 2}


class Receiver(BaseHTTPRequestHandler):
    """Keeps what arrives, and answers with the first status that is left, else with 204."""

    protocol_version = "HTTP/1.1"
    statuses: ClassVar[list[int]] = []
    got: ClassVar[list[tuple[str, dict[str, str], bytes, Any]]] = []
    wait_s: ClassVar[float] = 0
    close: ClassVar[bool] = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((self.path, dict(self.headers), body, self.client_address))
        time.sleep(self.wait_s)
        status = self.statuses.pop(0) if self.statuses else 204
        self.send_response(status)
        text = b"" if status == 204 else b"line\nclosed"
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = self.close

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Receiver.statuses, Receiver.got, Receiver.wait_s, Receiver.close = [], [], 0, False
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as one:
        one.daemon_threads = True
        thread = threading.Thread(target=one.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield one
        one.shutdown()
        thread.join()


def sink(server: ThreadingHTTPServer, scheme: str = "http", **settings: Any) -> WebhookSink:
    url = f"{scheme}://127.0.0.1:{server.server_address[1]}/results?line=1"
    return WebhookSink("mes", WebhookSettings(kind="webhook", url=url, **settings))


def store(one: WebhookSink, *records: dict[str, Any]) -> None:
    async def scenario() -> None:
        for record in records:
            await one.store(record)

    asyncio.run(scenario())


def test_the_registry_has_it(server: ThreadingHTTPServer) -> None:
    assert SINKS.load("webhook") is WebhookSink
    assert sink(server).missing() is None


def test_a_record_arrives_signed_with_its_key(server: ThreadingHTTPServer) -> None:
    one = sink(server, token="t0ken", secret="k")
    store(one, RECORD, RECORD | {"id": 8})
    (path, headers, body, first), (_, later, _, second) = Receiver.got
    assert path == "/results?line=1"
    assert json.loads(body) == RECORD
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer t0ken"
    assert headers["X-VisionAD-Signature"] == "sha256=" + hmac.new(b"k", body, hashlib.sha256).hexdigest()
    assert (headers["Idempotency-Key"], later["Idempotency-Key"]) == ("press 3-7", "press 3-8")
    assert first == second  # one connection
    assert one.health() | {"last_success_s": 0} == {
        "ok": True,
        "detail": one.health()["detail"],
        "last_success_s": 0,
        "delivered": 2,
    }


def test_nothing_secret_is_sent_or_shown_unasked(server: ThreadingHTTPServer) -> None:
    store(sink(server), RECORD)
    assert not {"Authorization", "X-VisionAD-Signature"} & set(Receiver.got[0][1])
    assert "t0ken" not in repr(sink(server, token="t0ken", secret="t0ken")._settings)


@pytest.mark.parametrize("status", [199 + 101, 301, 400, 401, 404, 500, 503])
def test_only_2xx_counts(server: ThreadingHTTPServer, status: int) -> None:
    one = sink(server)
    Receiver.statuses = [status]
    with pytest.raises(SinkError, match=rf"record 7: .*got {status} line closed"):
        store(one, RECORD)
    assert not one.health()["ok"]
    store(one, RECORD)  # the cursor offers it again
    assert one.health()["ok"]
    assert [headers["Idempotency-Key"] for _, headers, _, _ in Receiver.got] == ["press 3-7"] * 2


def test_a_receiver_that_closes_idle_connections_is_no_failure(server: ThreadingHTTPServer) -> None:
    Receiver.close = True
    store(sink(server), *(RECORD | {"id": n} for n in range(5)))
    assert len(Receiver.got) == 5


def test_no_answer_in_time_is_no_delivery_and_blocks_nothing(server: ThreadingHTTPServer) -> None:
    Receiver.wait_s = 1.0
    one = sink(server, timeout_s=0.2)

    async def scenario() -> int:
        turns, task = 0, asyncio.create_task(one.store(RECORD))
        while not task.done():
            await asyncio.sleep(0.002)
            turns += 1
        with pytest.raises(SinkError, match="timed out"):
            await task
        return turns

    assert asyncio.run(scenario()) > 10


def test_nobody_listens(server: ThreadingHTTPServer) -> None:
    one = WebhookSink("mes", WebhookSettings(kind="webhook", url="http://127.0.0.1:1/x"))
    with pytest.raises(SinkError, match="check that the receiver runs"):
        store(one, RECORD)


def test_tls_is_checked(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    from tests.line.components import need
    from tests.line.test_t9_mqtt import make_authority

    need("openssl")
    make_authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "broker.pem", tmp_path / "broker.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    store(sink(server, "https", ca=tmp_path / "ca.pem"), RECORD)
    with pytest.raises(SinkError, match="CERTIFICATE_VERIFY_FAILED"):
        store(sink(server, "https"), RECORD)
    with pytest.raises(SinkError, match=r"cannot read .*none\.pem"):
        asyncio.run(sink(server, "https", ca=tmp_path / "none.pem").run(FakeLine()))


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "ftp://a/b"},
        {"url": "mes"},
        {"url": "http://u:p@h/"},
        {"url": "http://h", "ca": "x"},
        {"url": "http://h:99999/"},
    ],
)
def test_addresses_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|[Pp]ort"):
        WebhookSettings(kind="webhook", **settings)
