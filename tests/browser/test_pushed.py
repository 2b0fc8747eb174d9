"""Images that programs push to a station's camera: who may, what is refused, and that they decide about the part."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from visionad_runtime.station.front.cycle import ANOMALOUS, NOT_DECIDABLE, OK

from tests.browser.station import RunningStation, numbered

pytestmark = pytest.mark.slow(group="browser")
TOKEN = "a token of the line"


def png(number: int, defect: bool = False) -> bytes:
    return bytes(cv2.imencode(".png", numbered(number, defect))[1])


def station_of(folder: Path, model: Path, camera: str) -> RunningStation:
    running = RunningStation(folder, model, [])
    text = running.file.read_text()
    assert "{kind: folder, path: images}" in text
    running.file.write_text(text.replace("{kind: folder, path: images}", camera))
    return running.start()


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[RunningStation]:
    """A station whose only camera waits for pushed images."""
    running = station_of(tmp_path_factory.mktemp("pushed"), model, "{kind: http, max_bytes: 40000}")
    yield running
    running.stop()


def push(station: RunningStation, body: bytes, camera: str = "top", **headers: str) -> tuple[int, Any]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    status, answer, _ = station.request("POST", f"/cameras/{camera}/frame", body, given)
    return status, answer


def judged(station: RunningStation, body: bytes, **headers: str) -> tuple[tuple[int, Any], int]:
    """Trigger a part, then push its image while the worker waits for it. The answer to the push, and the part's evaluation."""
    line: list[str] = []
    part = threading.Thread(target=lambda: line.append(station.inspect()))
    part.start()
    time.sleep(0.3)  # an image that came before the trigger is another part's
    answer = push(station, body, **headers)
    part.join(20)
    word, _, evaluation, *_ = line[0].split()
    assert word == "RESULT"
    return answer, int(evaluation)


def test_the_pushed_image_decides_about_the_part(station: RunningStation) -> None:
    (status, good), evaluation = judged(station, png(5))
    assert status == 200 and good["camera"] == "top" and evaluation == OK
    (status, bad), evaluation = judged(station, png(6, defect=True))
    assert status == 200 and bad["frame"] == good["frame"] + 1 and evaluation == ANOMALOUS


def test_a_form_is_taken_as_curl_sends_it(station: RunningStation) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        + png(7)
        + b"\r\n--x--\r\n"
    )
    (status, _), evaluation = judged(station, body, Content_Type="multipart/form-data; boundary=x")
    assert status == 200 and evaluation == OK


def test_an_image_that_cannot_be_read_is_no_good_part(station: RunningStation) -> None:
    (status, _), evaluation = judged(station, b"not an image")
    assert status == 200 and evaluation == NOT_DECIDABLE


def test_what_is_refused(station: RunningStation) -> None:
    status, problem = push(station, png(1), camera="bottom")
    assert status == 404 and "no camera bottom" in json.dumps(problem)
    status, problem = push(station, png(1), X_Forwarded_For="10.0.0.9")
    assert status == 403 and "token" in json.dumps(problem)
    status, problem = push(station, b"")
    assert status == 400 and "got 0" in json.dumps(problem)
    status, problem = push(station, bytes(40_001))
    assert status == 400 and "40000" in json.dumps(problem)
    status, problem = push(station, png(1), Origin="http://elsewhere.example")
    assert status == 403


def test_a_token_lets_other_machines_in_and_strangers_not(tmp_path: Path, model: Path) -> None:
    station = station_of(tmp_path, model, f"{{kind: http, token: {TOKEN}}}")
    try:
        assert push(station, png(1))[0] == 403
        assert push(station, png(1), Authorization="Bearer something else")[0] == 403
        assert push(station, png(1), Authorization=f"Basic {TOKEN}")[0] == 403
        (status, _), evaluation = judged(station, png(5), Authorization=f"Bearer {TOKEN}", X_Forwarded_For="10.0.0.9")
        assert status == 200 and evaluation == OK
        assert TOKEN not in (tmp_path / "log").read_text()
    finally:
        station.stop()


def test_an_image_for_a_class_that_is_not_there_is_the_senders_mistake(station: RunningStation) -> None:
    status, problem, _ = station.request("POST", "/inspect?class=nothing", png(1))
    assert status == 400 and "nothing" in json.dumps(problem)
