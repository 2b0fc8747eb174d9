"""The support bundle tells no secret, and a log's end begins with a line."""

from __future__ import annotations

from pathlib import Path

import yaml
from visionad_runtime.web.station.support import tail, without_secrets

FILE = """\
# the token of the camera is elsewhere
station: press-3
cameras:
  top: {kind: http, token: 0123456789abcdef, max_age_ms: 5}
  side: {kind: http, token: !env SIDE_TOKEN}
  far: {kind: stream, url: "rtsp://admin:hunter2@10.0.0.4/live"}
sinks:
  - {kind: mqtt, password: [a, hunter2], user: line}
  - {kind: webhook, url: "http://10.0.0.4:8080/hook", api_key: hunter2}
"""


def test_secrets_are_left_out() -> None:
    text = without_secrets(FILE)
    assert "hunter2" not in text and "0123456789abcdef" not in text
    found = yaml.safe_load(text)
    assert found["cameras"]["top"] == {"kind": "http", "token": "***", "max_age_ms": 5}
    assert found["cameras"]["side"]["token"] == "!env SIDE_TOKEN"
    assert found["cameras"]["far"]["url"] == "rtsp://admin:***@10.0.0.4/live"
    assert found["sinks"][0] == {"kind": "mqtt", "password": ["***", "***"], "user": "line"}
    assert found["sinks"][1] == {"kind": "webhook", "url": "http://10.0.0.4:8080/hook", "api_key": "***"}
    assert without_secrets("a: [").startswith("not YAML")


def test_the_end_of_a_log_begins_with_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    assert tail(path, 30).splitlines() == ["line 997", "line 998", "line 999"]
    assert tail(path, 10**6).startswith("line 0\n")
    assert "cannot be read" in tail(tmp_path / "missing", 10)
